"""Tables, pictures and the report, of contenders that recite worked solutions."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from lt_jax.data import answers, latex
from lt_jax.errors import UserError
from lt_jax.evaluation import pictures, report, results, table
from lt_jax.evaluation.run import evaluate, kept
from lt_jax.evaluation.svg import Scale, labels, spread, ticks
from lt_jax.layout.build import build_row
from lt_jax.layout.scheme import Scheme
from lt_jax.lifetimes import NEVER
from tests.scripted import SPECIAL, encode, matrix, three


@pytest.fixture(scope="module")
def found():
    contenders, suite = three()
    return evaluate(contenders, suite, samples=2, note="recited")


def test_evaluate_judges_and_counts(found):
    vanilla, light, anllm = found.methods
    assert [sum(r.correct for r in m.records) for m in found.methods] == [22, 22, 20]
    wrong = light.records[9]
    assert not wrong.correct and wrong.given == "1" + wrong.answer
    assert light.records[0].text.rstrip().endswith(f"boxed{{{light.records[0].given}}}")
    for a, b in zip(light.records, vanilla.records, strict=True):
        assert a.counts.peak < b.counts.peak and a.counts.dependency < b.counts.dependency
    assert [s.problem for s in anllm.samples] == [0, 1] and len(anllm.records) == 24


def test_samples_keep_lifetimes(found):
    for method in found.methods:
        for sample in method.samples:
            assert pictures.mask(sample).sum(1).tolist() == sample.visible
            assert len(sample.pieces) == len(sample.role) == len(sample.death)


def test_saved_and_loaded(found, tmp_path):
    path = tmp_path / "new" / "results.json"
    results.save(found, path)
    assert results.load(path) == found
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_bad_results_files(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        results.load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="broken JSON"):
        results.load(tmp_path / "broken.json")
    (tmp_path / "old.json").write_text('{"version": 0}')
    with pytest.raises(UserError, match="evaluate again"):
        results.load(tmp_path / "old.json")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(UserError, match=r"report.html: cannot be written: No space left"):
        results.write_whole(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_table_fits_and_says_it_all(found):
    printed = table.table(found)
    assert max(map(len, printed.splitlines())) <= table.WIDTH
    assert re.search(r"^vanilla +91\.7 \(74\.2-97\.7\)", printed, re.MULTILINE)
    assert "LightThinker - vanilla: accuracy +0.0 points" in printed
    for family in table.families(found):
        assert re.search(rf"^{family} +12 ", printed, re.MULTILINE)


def test_table_tells_how_many_were_cut_off(found):
    assert "unfinished" not in table.table(found)
    light = found.methods[1]
    cut = [dataclasses.replace(r, finish="length" if r.problem < 3 else r.finish) for r in light.records]
    changed = results.Results(found.suite, [found.methods[0], dataclasses.replace(light, records=cut)])
    assert "\n\nunfinished (cut off: max_new): LightThinker 3\n\n" in table.table(changed)


def test_table_tells_how_many_replies_gave_no_answer_or_were_not_judged(found):
    assert "no answer" not in table.table(found) and "not judged" not in table.table(found)
    light = found.methods[1]
    changes = {0: {"given": None}, 1: {"given": None}, 2: {"given": None, "finish": "length"}, 3: {"judged": False}}
    records = [dataclasses.replace(r, **changes.get(r.problem, {})) for r in light.records]
    changed = results.Results(found.suite, [found.methods[0], dataclasses.replace(light, records=records)])
    lines = (
        "no answer found in a finished reply (counted as wrong): LightThinker 2",
        "not judged: the comparison ran out of time or ended (counted as wrong): LightThinker 1",
    )
    for line in lines:
        assert f"\n\n{line}\n\n" in table.table(changed) and f"<p class=note>{line}</p>" in report.page(changed)


def test_results_from_before_verdicts_could_be_missing_are_read(found, tmp_path):
    results.save(found, tmp_path / "old.json")
    data = json.loads((tmp_path / "old.json").read_text())
    for method in data["methods"]:
        for record in method["records"]:
            assert record.pop("judged") is True
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert results.load(tmp_path / "old.json") == found


def test_a_judge_that_does_not_start_is_found_before_anything_is_decoded(tmp_path, monkeypatch):
    contenders, suite = three()
    asked = []
    silent = [dataclasses.replace(each, complete=lambda prompts: asked.append(1) or []) for each in contenders]
    monkeypatch.setattr(latex, "CHILD", tmp_path / "gone.py")
    monkeypatch.setattr(answers, "_latex", latex.LatexJudge())
    with pytest.raises(UserError, match=r"math-verify did not start \(.*gone.py.*\)"):
        evaluate(silent, suite)
    assert asked == []


def test_a_judge_that_dies_for_good_leaves_the_evaluation_whole(found, tmp_path, monkeypatch):
    contenders, suite = three()
    suite = dataclasses.replace(
        suite, problems=(dataclasses.replace(suite.problems[0], answer=r"\sqrt{2}"), *suite.problems[1:])
    )
    complete, judge = contenders[0].complete, latex.LatexJudge()

    def dying(prompts):
        yield from complete(prompts)
        judge.close()
        monkeypatch.setattr(latex, "CHILD", tmp_path / "gone.py")

    monkeypatch.setattr(answers, "_latex", judge)
    again = evaluate([dataclasses.replace(contenders[0], complete=dying)], suite)
    before = found.methods[0].records
    assert [r.judged for r in again.methods[0].records] == [False] + [True] * 23
    assert [r.correct for r in again.methods[0].records] == [False] + [r.correct for r in before[1:]]
    assert "not judged: the comparison ran out of time or ended (counted as wrong): vanilla 1" in table.table(again)


def test_table_cuts_long_names_not_numbers():
    printed = table.grid(["method", "x" * 60], [["m" * 90, "1"]])
    assert all(len(line) <= table.WIDTH for line in printed.splitlines())
    assert printed.endswith(" 1") and "mmm..." in printed


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("vanilla"),
        Scheme(n_gist=2),
        Scheme(n_gist=3, see_current=True, gist_rule="bidirectional"),
        Scheme(n_gist=3, gist_rule="diagonal"),
        Scheme("anllm"),
    ],
    ids=["vanilla", "lightthinker", "bidirectional", "diagonal", "anllm"],
)
def test_regions_are_the_mask(scheme):
    row = build_row(scheme, SPECIAL, [1] * 5, [[2] * 6, [3], [4] * 9], encode)
    seen = matrix(row, scheme.gist_rule)
    drawn = np.zeros_like(seen, int)
    regions = pictures.regions(seen, row.role.tolist())
    for first, last, since, step, until in regions:
        assert len(set(row.role[first:last].tolist())) == 1
        for key in range(first, last):
            drawn[since + step * (key - first) : until, key] += 1
    np.testing.assert_array_equal(drawn, seen)
    assert len(regions) < 40


def test_stairs_are_exact():
    # Three keys seen from queries 0, 1 and 2 on until 4, one pixel a token.
    assert pictures._stairs(0, 3, 0, 1, 4, 1.0) == (
        "M0.00 0.00H1.00V1.00H2.00V2.00H3.00V4.00H0.00Z"
    )  # fmt: skip


def test_pictures_are_whole_svg(found):
    drawn = pictures.all_pictures(found)
    assert sorted(drawn) == ["accuracy_peak.svg", "lifetime_bars.svg", "lifetimes.svg", "visible_keys.svg"]
    for text in drawn.values():
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.find("{*}title").text
        assert "nan" not in text and "inf" not in text
    shown = drawn["visible_keys.svg"]
    assert "vanilla" in shown and "tokens that the newest token can still see" in shown and "at most" in shown


def test_the_sample_shown_shows_the_method(found):
    """Not the first one, an answer of three tokens in which nothing dies; nor one too long to be drawn."""
    vanilla, light, _ = found.methods
    good = light.samples[1]
    tiny = dataclasses.replace(good, **{name: getattr(good, name)[:3] for name in (
        "pieces", "role", "death", "since", "gist", "thought", "forced", "visible")})  # fmt: skip
    tiny = dataclasses.replace(tiny, problem=0, death=[9, 9, 9])
    long = dataclasses.replace(good, problem=2, **{name: getattr(good, name) * 9 for name in (
        "pieces", "role", "death", "since", "gist", "thought", "forced", "visible")})  # fmt: skip
    changed = dataclasses.replace(light, samples=[tiny, long, good])
    assert not tiny.dies and long.dies and len(long.death) > 600
    method, sample = pictures.shown(results.Results(found.suite, [vanilla, changed]))
    assert method is changed and sample is good
    assert "data-method=1 data-sample=2>" in report.page(results.Results(found.suite, [vanilla, changed]))
    assert pictures.shown(results.Results(found.suite, [vanilla]))[1] in vanilla.samples


def test_a_sample_in_which_keys_die_is_kept():
    """The first completions stay, but for the last if nothing dies in any."""
    contenders, suite = three(size=6)
    done = list(contenders[1].complete([contenders[1].encode(p) for p in suite.problems]))
    alive = [dataclasses.replace(c, death=np.full(len(c.death), NEVER)) for c in done]
    assert kept(done, 2) == done[:2]
    assert kept(alive, 2) == alive[:2] and kept(alive, 0) == []
    assert kept([*alive[:3], done[3], *alive[4:]], 2) == [alive[0], done[3]]


def test_labels_lie_over_nothing():
    points = [(100.0, 100.0), (102.0, 101.0), (104.0, 100.0), (101.0, 99.0), (590.0, 50.0)]
    words = ["vanilla", "lightthinker", "rkv", "streaming", "h2o at the edge"]
    placed = labels(points, words, 12.5, (60, 40, 620, 290))
    boxes = [(x, y - 10, x + 7.5 * len(word), y + 3) for (x, y), word in zip(placed, words, strict=True)]
    boxes += [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    bar = (330.0, 0.0, 332.0, 290.0)
    again = labels([(x + 200, y) for x, y in points[:3]], words[:3], 12.5, (60, 40, 620, 290), [bar])
    assert all(x + 7.5 * len(word) <= bar[0] or x >= bar[2] for (x, _), word in zip(again, words[:3], strict=True))
    for i, a in enumerate(boxes):
        assert 60 <= a[0] and a[2] <= 620 or i >= len(words)
        for b in boxes[i + 1 :]:
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart or (i >= len(words)), (a, b)


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.scripts, self.inside = [], {}, None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [value for name, value in attrs.items() if name in ("src", "href", "xlink:href", "action")]
        self.inside = attrs.get("id", tag) if tag == "script" else None

    def handle_data(self, data):
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data


def test_report_is_one_file(found, tmp_path):
    report.write(found, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.links == [] and "@import" not in text and "url(" not in text
    assert set(re.findall(r"https?://[^\"' )]*", text)) == {"http://www.w3.org/2000/svg"}
    data = json.loads(reader.scripts["data"])
    assert [m["name"] for m in data["methods"]] == ["vanilla", "LightThinker", "AnLLM"]
    sample = data["methods"][1]["samples"][0]
    assert "".join(sample["pieces"][: sample["prompt"]]) == found.methods[1].records[0].question
    assert sample["death"][0] is None and min(d for d in sample["death"] if d) > sample["prompt"]


def test_report_does_not_run_what_a_model_wrote(found):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    method = found.methods[1]
    sample = dataclasses.replace(method.samples[0], pieces=[evil] * len(method.samples[0].pieces))
    changed = dataclasses.replace(method, name=evil, samples=[sample])
    reader = Reader()
    reader.feed(report.page(results.Results(evil, [changed])))
    assert reader.links == []
    assert json.loads(reader.scripts["data"])["methods"][0]["samples"][0]["pieces"][0] == evil


def test_ticks_and_labels():
    assert ticks(0, 523, 5) == [0, 100, 200, 300, 400, 500]
    assert ticks(0.75, 1.0, 5) == [0.75, 0.8, 0.85, 0.9, 0.95, 1.0]
    placed = spread([10, 11, 50], 15, 0, 60)
    assert placed == [10, 25, 50] and spread([58, 59], 15, 0, 60) == [45, 60]
    assert Scale(0, 10, 100, 200)(5) == 150
