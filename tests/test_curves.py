"""Curves of training runs side by side: what is read, what the page says, what it refuses."""

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.errors import UserError
from lt_jax.evaluation import charts, curve_pictures, curves, html_page, runs
from lt_jax.evaluation.charts import Chart
from lt_jax.evaluation.runs import Line, Run, Series
from lt_jax.evaluation.svg import label, ticks
from lt_jax.rl import metrics as rl_metrics
from lt_jax.rl.mismatch import correct
from lt_jax.rl.mismatch_config import MismatchConfig
from lt_jax.training.metrics import Jsonl

ROOT = Path(__file__).parents[1]
SVG = re.compile(r"<svg[^>]*role=\"img\".*?</svg>", re.DOTALL)


def logged(folder, steps=40, *, seed=0, config=None, tail="", **values):
    """A run folder, written as training writes it; `values`: functions of the step, on top of a noisy reward."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    writer = Jsonl(folder / "metrics.jsonl")
    for step in range(1, steps + 1):
        writer.write(step, {"reward": 0.5 + rng.normal(0, 0.1)} | {name: each(step) for name, each in values.items()})
        if step % 10 == 0:
            writer.write(step, {"eval_dense_reward": step / 100})
    writer.close()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(tail)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def pictures_of(page):
    """{metric: its SVG}."""
    found = {}
    for drawn in SVG.findall(page):
        root = ElementTree.fromstring(drawn)
        assert "nan" not in drawn and "inf" not in drawn
        found[root.find("{*}title").text.removesuffix(" over steps")] = drawn
    return found


def cells(page, name):
    """The cells of a row of the table, without tags."""
    row = re.search(rf"<tr><td>{re.escape(name)}</td>(.*?)</tr>", page)
    return [re.sub("<small>", " | ", each) for each in re.findall(r"<td>(.*?)(?:</small>)?</td>", row[1])]


def words(picture):
    return ["".join(each.itertext()) for each in ElementTree.fromstring(picture).iter() if each.tag.endswith("text")]


def test_series_are_what_was_logged(tmp_path):
    tail = '{"step": 41, "reward": 0.'
    grows, broken = lambda step: 64.0 if step < 20 else 96.0, lambda step: math.nan
    folder = logged(tmp_path / "a", budget=grows, kl=broken, tail=tail)
    (run,) = runs.read([folder])
    assert run.name == "a" and run.last_step == 40 and run.settings is None
    assert run.series["budget"] == Series(tuple(range(1, 41)), (64.0,) * 19 + (96.0,) * 21)
    assert run.series["eval_dense_reward"] == Series((10, 20, 30, 40), (0.1, 0.2, 0.3, 0.4))
    assert len(run.series["kl"].values) == 40 and run.series["kl"].finite == []
    assert list(run.series) == ["reward", "budget", "kl", "eval_dense_reward"]


def test_a_whole_last_line_without_its_end_counts(tmp_path):
    folder = logged(tmp_path / "a", tail='{"step": 41, "reward": 2}')
    assert runs.metrics(folder)["reward"].values[-1] == 2


def test_the_page_has_the_last_values(tmp_path):
    a = logged(tmp_path / "a", entropy=lambda step: 0.25, rejected=lambda step: step / 100)
    b = logged(tmp_path / "b", 30, seed=1, entropy=lambda step: 0.75, cache_bytes=lambda step: 3.5e6,
               cache_bytes_dense=lambda step: 12e6)  # fmt: skip
    page = curves.page(runs.read([a, b]))
    assert cells(page, "last step") == ["40", "30"]
    assert cells(page, "entropy") == ["0.25", "0.75"]
    assert cells(page, "rejected, %") == ["40 | mean 38.5", "&ndash;"]
    assert cells(page, "eval_dense_reward") == ["0.4", "0.3"]
    assert cells(page, "cache_bytes, MB") == ["&ndash;", "3.5"]
    assert cells(page, "cache_bytes_dense, MB") == ["&ndash;", "12"]
    reward = runs.metrics(a)["reward"].values
    assert cells(page, "reward")[0] == f"{reward[-1]:.3g} | mean {np.mean(reward[-4:]):.3g}"
    drawn = pictures_of(page)
    assert list(drawn) == ["reward", "eval_dense_reward", "rejected", "entropy", "cache_bytes"]
    assert {"entropy", "nats per token", "step", "0.25", "0.75"} <= set(words(drawn["entropy"]))
    assert {"% of responses", "40"} <= set(words(drawn["rejected"])) and "3.5" in words(drawn["cache_bytes"])


def test_colours_are_the_same_everywhere_and_dashes_follow(tmp_path):
    a = logged(tmp_path / "a", entropy=lambda step: float(step))
    b = logged(tmp_path / "b", kl=lambda step: float(step))
    page = curves.page(runs.read([a, b]))
    first, second = curve_pictures.style(0).shade, curve_pictures.style(1).shade
    drawn = pictures_of(page)
    lines = lambda metric: set(re.findall(r'<path d="[^"]*" fill="none" stroke="([^"]*)"', drawn[metric]))
    assert lines("entropy") == {first} and lines("kl") == {second} and lines("reward") == {first, second}
    legend = re.search(r"<nav class=legend>(.*?)</nav>", page)[1]
    assert legend.index(first) < legend.index(">a<") < legend.index(second) < legend.index(">b<")
    assert len({curve_pictures.style(place) for place in range(28)}) == 28


def test_groups_are_complete_and_nothing_is_dropped():
    response = jnp.ones((2, 3), bool)
    how, logp = MismatchConfig(), jnp.zeros((2, 3))
    made = rl_metrics.mismatch(how, correct(how, logp, logp, response), logp, logp, response)
    sums = dict.fromkeys(["policy", "kl", "entropy", "dense_kl", "tokens", "clipped", "sum_ratio", "sum_old_kl",
                          "sum_reference_kl", "sum_entropy", "sum_dense_kl"], 1.0)  # fmt: skip
    known = {*made, *(set(rl_metrics.update(sums))), "reward", "without_signal", "share_rollout", "eval_sparse_reward"}
    groups = charts.grouped([*sorted(known), "mine", "reward_math", "seconds_sleep", "eval_mine"])
    assert [chart.metric for chart in groups[charts.OTHERS]] == ["mine"] and list(groups)[-1] == charts.OTHERS
    place = {chart.metric: title for title, group in groups.items() for chart in group}
    assert set(place) == known | {"mine", "reward_math", "seconds_sleep", "eval_mine"}
    assert place["reward_math"] == place["eval_mine"] == place["eval_sparse_reward"] == "Reward and validation"
    assert place["seconds_sleep"] == place["share_rollout"] == "Cost"
    assert place["xi_q01"].startswith("Mismatch") and place["rejected"] == "Correction"
    assert charts.OTHERS not in charts.grouped(known)
    every = [chart.metric for group in charts.GROUPS.values() for chart in group]
    assert len(set(every)) == len(every)
    # What is dotted beside another has a chart of its own where that one is missing.
    assert [c.metric for c in charts.grouped(["cache_bytes_dense"])[charts.OTHERS]] == ["cache_bytes_dense"]


def test_what_never_changes_is_said_in_words(tmp_path):
    a = logged(tmp_path / "a", resampled=lambda step: 0.0, truncate_fraction=lambda step: 0.5,
               mask_fraction=lambda step: 0.5, mine=lambda step: 7.0)  # fmt: skip
    b = logged(tmp_path / "b", resampled=lambda step: 0.0, truncate_fraction=lambda step: 0.5,
               mask_fraction=lambda step: 0.25, mine=lambda step: 7.0)  # fmt: skip
    page = curves.page(runs.read([a, b]))
    assert "The same at every step of all runs: resampled 0." in page
    assert "The same at every step of all runs: mine 7." in page
    assert "The same at every step of all runs: truncate_fraction 50&nbsp;%." in page
    drawn = pictures_of(page)
    assert "mask_fraction" in drawn and "resampled" not in drawn and "mine" not in drawn
    assert cells(page, "resampled") == ["0", "0"] and cells(page, "mine") == ["7", "7"]


def test_what_is_not_a_number_is_a_gap_and_a_cross(tmp_path):
    a = logged(tmp_path / "a", grad_norm=lambda step: math.nan if 20 <= step < 25 else 1.0 + step)
    b = logged(tmp_path / "b", grad_norm=lambda step: math.nan if step > 30 else 2.0 * step, kl=lambda step: math.inf)
    page = curves.page(runs.read([a, b]))
    drawn = pictures_of(page)["grad_norm"]
    assert drawn.count("l6 6m0-6l-6 6") == 5 + 10
    one, two = re.findall(r'<path d="([^"]*)" fill="none"[^>]*stroke-width="1.7"', drawn)
    assert one.count("M") == 2 and two.count("M") == 1
    assert cells(page, "grad_norm") == ["41 | mean 40", "not a number"]
    assert cells(page, "kl") == ["&ndash;", "not a number"]
    assert pictures_of(page)["kl"].count("l6 6m0-6l-6 6") == 40


def test_settings_that_differ_and_only_those(tmp_path):
    same = {"model": "base", "train": {"steps": 40}, "loss": {"clip": None}}
    a = logged(tmp_path / "a", config={"folder": "a", **same, "replay": False, "rollout": {"eviction": None}})
    kept = {"policy": "rkv", "layers": [1, 2]}
    b = logged(tmp_path / "b", config={"folder": "b", **same, "replay": True, "rollout": {"eviction": kept}})
    c = logged(tmp_path / "c")
    found = runs.read([a, b, c])
    assert runs.differing(runs.lines(found)) == {
        "replay": ["false", "true", "?"],
        "rollout.eviction.policy": ["", "rkv", "?"],
        "rollout.eviction.layers": ["", "[1, 2]", "?"],
    }
    page = curves.page(found)
    assert cells(page, "rollout.eviction.policy") == ["&ndash;", "rkv", "?"]
    assert "Without config.json, so of unknown settings: c<" in page and "train.steps" not in page
    assert "Settings in which they differ" not in curves.page([found[0]])


def test_seeds_are_one_line_with_each_run_faint(tmp_path):
    names = ("rkv-0", "rkv-1", "dense_seed0", "dense_seed1", "alone-512")
    folders = [
        logged(tmp_path / name, seed=place, config={"train": {"seed": place % 2}}, entropy=lambda n, k=place: n + k)
        for place, name in enumerate(names)
    ]
    found = runs.read(folders)
    assert [line.name for line in runs.lines(found)] == list(names)
    lines = runs.lines(found, seeds=True)
    assert [(line.name, len(line.runs)) for line in lines] == [("rkv", 2), ("dense", 2), ("alone-512", 1)]
    page = curves.page(found, seeds=True)
    assert cells(page, "entropy") == ["40.5 | 40 &ndash; 41", "42.5 | 42 &ndash; 43", "44 | mean 42.5"]
    assert cells(page, "train.seed") == ["0, 1", "0, 1", "0"]
    drawn = pictures_of(page)["entropy"]
    assert drawn.count('opacity="0.3"') == 4 and drawn.count('stroke-width="1.7"') == 3
    assert "40.5" in words(drawn) and "44" in words(drawn) and "41" not in words(drawn)
    assert page.count("<small>2 seeds</small>") == 4 and "5 runs side by side" in page


def test_the_mean_is_of_all_or_of_none():
    one, two = Series((1, 2, 3), (1.0, 2.0, 3.0)), Series((2, 3, 4), (4.0, math.nan, 5.0))
    found = runs.mean([one, two])
    assert found.steps == (2, 3) and found.values[0] == 3.0 and math.isnan(found.values[1])
    assert runs.mean([one]) is one and runs.mean([]) == Series()


def test_smoothing_is_a_mean_of_neighbours():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 100)
    values[50] = math.nan
    series = Series(tuple(range(100)), tuple(values))
    found = np.asarray(curve_pictures.smooth(series).values)
    for place in (0, 3, 30, 48, 99):
        np.testing.assert_allclose(found[place], np.nanmean(values[max(0, place - 4) : place + 5]), rtol=1e-12)
    assert math.isnan(found[50]) and curve_pictures.noisy(series)
    assert not curve_pictures.noisy(Series(tuple(range(100)), tuple(np.linspace(0, 1, 100))))
    assert not curve_pictures.noisy(Series(tuple(range(10)), tuple(values[:10])))


def test_long_runs_are_thinned_without_a_trace():
    rng = np.random.default_rng(0)
    points = list(zip(np.linspace(0, 9.99, 1000).tolist(), rng.normal(0, 1, 1000).tolist(), strict=True))
    found = curve_pictures.thinned(points)
    assert len(found) <= 40 and found == sorted(found) and set(found) <= set(points)
    for column in range(10):
        own = lambda some, column=column: [height for left, height in some if math.floor(left) == column]
        assert max(own(points)) == max(own(found)) and min(own(points)) == min(own(found))
    assert curve_pictures.thinned(points[:1] + points[500:501]) == [points[0], points[500]]


def test_an_axis_is_logarithmic_where_most_lines_would_lie_on_the_ground():
    heavy = Series((1, 2, 3, 4, 5), (1.0, 2.0, 3e4, 1.5, 0.0))
    axis = curve_pictures.upright([heavy], Chart("chi2_seq", "x", wide=True))
    assert axis.ground == 1.0 and axis.words == "x, log scale" and axis.tick(2.0) == "100"
    assert axis.of(heavy).values[2:] == (math.log10(3e4), math.log10(1.5), 0.0)
    assert curve_pictures.upright([heavy], Chart("reward", "x")).ground is None
    rounding = [Series((1, 2), (1e-9, 2e-9)), Series((1, 2), (0.02, 0.03)), Series((1, 2), (0.02, 0.05))]
    assert curve_pictures.upright(rounding, Chart("kl", "x", wide=True)).ground is None
    drawn = curve_pictures.chart(Chart("chi2_seq", "x", wide=True), [Line("a", (_run({"chi2_seq": heavy}),))], 5)
    assert "<1" in words(drawn)


def test_a_run_of_one_step_is_drawn(tmp_path):
    page = curves.page(runs.read([logged(tmp_path / "a", 1), logged(tmp_path / "b", 1, seed=1)]))
    drawn = pictures_of(page)["reward"]
    assert drawn.count("<circle") == 4 and len(cells(page, "reward")) == 2 and "1 step<" in page
    still = curve_pictures.chart(Chart("kl", "nats"), [Line("a", (_run({"kl": Series((0,), (0.0,))}),))], 0)
    assert "nan" not in still and ElementTree.fromstring(still) is not None


def _run(series):
    return Run(Path("a"), "a", series, None)


def test_lines_that_end_alike_share_their_number():
    lines = [Line(str(first), (_run({"kl": Series((1, 2), (first, 0.7))}),)) for first in (1.0, 2.0, 3.0)]
    drawn = curve_pictures.chart(Chart("kl", "nats"), lines, 2)
    assert words(drawn).count("0.7") == 1
    assert drawn.count('r="2.4"') == 3 + 2


def test_small_ticks_are_not_rounded_away():
    assert ticks(0, 4e-12, 4) == [0, 1e-12, 2e-12, 3e-12, 4e-12] and label(2e-12) == "2e-12"
    assert label(3.0) == "3" and label(0.5) == "0.5" and label(1e4) == "10,000"


def test_numbers_are_short():
    said = [curve_pictures.number(v) for v in (0.0, 1e-5, 2.34e-8, 0.00123, 0.5, 12.345, 999.9, 15432.1, -0.25)]
    assert said == ["0", "1e-5", "2.3e-8", "0.00123", "0.5", "12.3", "1,000", "15,432", "-0.25"]


def test_the_page_is_one_file_and_runs_nothing(tmp_path):
    evil = "<script>alert(1)<img src=x>"
    folder = logged(tmp_path / "a", config={"note": evil}, **{evil: lambda step: float(step)})
    other = logged(tmp_path / evil.replace("/", ""), config={"note": "b" * 90})
    curves.write([folder, other], tmp_path / "new" / "curves.html")
    page = (tmp_path / "new" / "curves.html").read_text()
    assert set(re.findall(r"https?://[^\"' )]*", page)) == {"http://www.w3.org/2000/svg"}
    assert "<script" not in page and "<img" not in page and "url(" not in page and "@import" not in page
    assert "b" * 37 + "...</span>" in page and html_page.escaped(evil) in page
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curves.html"]


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [logged(tmp_path / above / "main") for above in ("x", "y")]
    assert [run.name for run in runs.read(folders)] == ["x/main", "y/main"]


@pytest.mark.parametrize(
    "text, message",
    [
        (None, r"a/metrics.jsonl: No such file or directory; give the folder of a training run"),
        ("", r"a/metrics.jsonl: nothing has been logged yet"),
        ('{"step": 1, "lo', r"a/metrics.jsonl: nothing has been logged yet"),
        ('{"step": 1}\n', r"a/metrics.jsonl: nothing has been logged yet"),
        ('{"step": 1, "lo\n{"step": 2, "loss": 1}\n', r"a/metrics.jsonl, line 1: not \{\"step\": NUMBER"),
        ('[1]\n{"step": 2, "loss": 1}\n', r"a/metrics.jsonl, line 1: not"),
        ('{"loss": 1}\n{"step": 2, "loss": 1}\n', r"a/metrics.jsonl, line 1: not"),
        ('{"step": 1, "loss": "low"}\n', r"a/metrics.jsonl, line 1: loss is 'low', which is no number"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "a").mkdir()
    if text is not None:
        (tmp_path / "a" / "metrics.jsonl").write_text(text)
    (tmp_path / "out.html").write_text("old")
    with pytest.raises(UserError, match=message):
        curves.write([tmp_path / "a"], tmp_path / "out.html")
    assert (tmp_path / "out.html").read_text() == "old"


def test_what_cannot_be_compared_is_refused(tmp_path):
    folder = logged(tmp_path / "a", 10)
    with pytest.raises(UserError, match="no runs are given"):
        runs.read([])
    with pytest.raises(UserError, match="a/ is given twice"):
        runs.read([folder, f"{folder}/"])
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="a/config.json: cannot be read"):
        runs.read([folder])


def test_the_script(tmp_path):
    folders = [logged(tmp_path / name, 10, seed=place) for place, name in enumerate(("a-0", "a-1"))]
    given = f"--runs={','.join(map(str, folders))}"

    def launch(*arguments):
        command = [sys.executable, "launch/curves.py", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, said, _ = launch(given, "--seeds", f"--out={tmp_path}/curves.html")
    assert code == 0 and said == f"wrote {tmp_path}/curves.html: 2 runs\n"
    assert "<small>2 seeds</small>" in (tmp_path / "curves.html").read_text()
    assert launch(given)[2] == "error: --out=FILE is needed, for example --out=runs/curves.html\n"
    code, _, error = launch(given, f"--out={folders[0]}/metrics.jsonl")
    assert code == 2 and "give the HTML file to write" in error and runs.metrics(folders[0])
    code, _, error = launch(f"--out={tmp_path}/none.html")
    assert code == 2 and error.startswith("error: no runs are given") and not (tmp_path / "none.html").exists()
