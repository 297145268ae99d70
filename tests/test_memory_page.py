"""The page of trajectories: what is drawn of them, that any text is only text, what is refused, and the demo."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from lt_jax import memory_demo
from lt_jax.errors import UserError
from lt_jax.evaluation import timeline
from lt_jax.evaluation import trajectory_page as page
from lt_jax.evaluation.pictures import METHOD_COLOURS
from lt_jax.evaluation.svg import FAINT, INK, PAPER, SOFT
from lt_jax.evaluation.visible_chart import Keys, visible
from lt_jax.layout.scheme import SEMANTICS, Scheme
from lt_jax.layout.special import default_table
from lt_jax.memory.counted import counted
from lt_jax.memory.log import Log, LoggedTurn, row_of
from lt_jax.memory.syntax import syntax_of
from tests.layout_tools import with_end, word_tokenizer

ROOT = Path(__file__).parents[1]
SVG = re.compile(r"<svg[^>]*role=\"img\".*?</svg>", re.DOTALL)
HOSTILE = "</pre><script>alert(1)</script> & \"quotes\" 'too' <!-- ]]>"


def agent(rounds: int, hostile: str = "", **more) -> Log:
    """Searches, looks at a page, commits, now and then goes back; some turns are not possible."""
    turns, entities = [], 0
    for number in range(rounds):
        turns.append(LoggedTurn(f"a b {hostile}", "call", f"search: red {number}", observation=f"c d e f {hostile}"))
        if number % 5 == 4:
            turns.append(LoggedTurn("a <commit>", "malformed", why=f"commit is not closed {hostile}"))
        turns.append(LoggedTurn("d e", "commit", f"z {hostile}"))
        entities += 2
        if number % 3 == 2:
            turns += [LoggedTurn("", "expand", number=entities - 3), LoggedTurn("f f", "fold", number=entities - 3)]
    turns.append(LoggedTurn("a", "final_answer", f"7 {hostile}".strip()))
    return Log(**{"id": "q1", "question": f"x {hostile}", "turns": tuple(turns), "gold": "7", "correct": True, **more})


@pytest.fixture(scope="module")
def syntax():
    tokenizer = with_end(word_tokenizer("x a b c d e f z 1 2 3 4 5 6 7 8 9 0 : ! search: red"), "<end>", "<pad>")
    return syntax_of(default_table(tokenizer, Scheme(method="memory"), eos="<end>", pad="<pad>").special, tokenizer)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_counts_are_those_of_the_row(syntax, semantics):
    """What a turn begins with and how much is fed, against the lifetimes of the training row."""
    log, prompt = agent(6), syntax.ids("x a b")
    found = counted(log, syntax, prompt, semantics)
    row = row_of(log, syntax, prompt, semantics).row()
    index = np.arange(len(row))
    seen = ((index[None] <= index[:, None]) & (row.death[None] > index[:, None])).sum(1)
    written = sum(turn.written for turn in found.turns)
    own = {len(row) - 1 - place for place in range(found.turns[-1].written)}  # the last turn ends the row
    assert visible(found)[-len(own) :] == tuple(seen[sorted(own)])
    trained = sum(turn.written for turn in found.turns if not turn.why)
    assert row.trained.sum() == trained < written
    np.testing.assert_array_equal(np.asarray(visible(found))[_possible(found)], seen[row.trained])
    assert written + sum(turn.read for turn in found.turns) == len(row)
    again = [turn.again for turn in found.turns]
    assert sum(again) > 0 and all(0 <= turn.again <= turn.read for turn in found.turns)


def _possible(log: Log) -> np.ndarray:
    return np.concatenate([np.full(turn.written, not turn.why) for turn in log.turns])


def test_a_timeline_says_what_was_visible(syntax):
    log = counted(agent(3), syntax, syntax.ids("x"), "lifetimes")
    drawn = timeline.timeline(log, 500)
    root = ElementTree.fromstring(drawn)
    titles = [each.text for each in root.findall(".//{*}title")]
    assert "entity 1, an observation, active in turn 2: c d e f " in titles
    call = "<call>search: red 0</call><memory>1</memory>"
    assert f"entity 1, an observation, archived with its step in turns 3 to 9: {call}" in titles
    assert "entity 2, a step, archived in turns 3 to 9: z " in titles
    # The third round goes back to entity 3, the observation of the second, and folds it again.
    assert "entity 3, an observation, active in turn 8: c d e f " in titles
    assert "open step, turns 1 to 2" in titles and "open step, turns 7 to 9" in titles
    first = log.turns[0]
    assert f"turn 1: call, 1 keys at its beginning and {1 + first.written} at its end" in titles
    assert "nan" not in drawn and "inf" not in drawn
    bars = {each.find("{*}title").text: float(each.get("height")) for each in root.findall(".//{*}rect")
            if each.find("{*}title") is not None}  # fmt: skip
    thick, thin = (bars[name] for name in titles if name.startswith("entity 1, "))
    assert thick > 3 * thin


def test_without_counts_characters_are_shown():
    drawn, unit = timeline.moments(agent(2))
    assert unit == "characters"
    assert drawn[0].low == 0 and drawn[1].low == len("a b ") + len("c d e f ")
    assert "context, characters" in timeline.timeline(agent(2), 500)


@pytest.mark.parametrize("rounds", [0, 1, 60])
def test_any_length_is_drawn(rounds):
    drawn = timeline.timeline(agent(rounds), 1040)
    sizes = ElementTree.fromstring(drawn).get("viewBox").split()
    assert 200 < float(sizes[3]) < 1000
    assert "nan" not in drawn and 'height="-' not in drawn


@pytest.fixture(scope="module")
def everything(syntax):
    """Methods side by side: without actions, both semantics, without counts, and one that has another question."""
    prompt, hostile = syntax.ids("x"), agent(4, HOSTILE, id=f"q2 {HOSTILE}")
    both = {name: [counted(agent(4), syntax, prompt, name), counted(hostile, syntax, prompt, name)]
            for name in SEMANTICS}  # fmt: skip
    wrong = agent(2, correct=False, finish="turns")
    keys = Keys("q1", "x", tuple(range(3, 120)), answer="8", correct=False)
    return {f"vanilla {HOSTILE}": [keys], **both, "teacher": [wrong, agent(1, id="q3")]}


def test_the_page_is_one_file_without_scripts_and_any_text_is_text(everything):
    text, left_out = page.page(everything)
    assert left_out == 0
    assert "<script" not in text and "alert(1)" in text and not re.search(r"(src|href)=|@import|url\(", text)
    assert text.count("<section>") == 3 and text.count("Turn by turn") == 6
    for drawn in SVG.findall(text):
        ElementTree.fromstring(drawn)
    body = text[text.index("<body>") :]
    for name in ("section", "figure", "table", "details", "ol", "li", "pre", "div", "p", "svg"):
        assert len(re.findall(rf"<{name}[ >]", body)) == body.count(f"</{name}>"), name
    assert "3 questions &middot; 4 methods" in text and "Not counted: teacher." in text
    assert "commit is not closed" not in page.page({"a": [agent(1)]})[0]


def test_numbers_of_the_table_are_those_of_the_logs(everything):
    text, _ = page.page(everything)
    first = text[text.index("<section>") :]
    rows = re.findall(r"<tr><td>(.*?)</tr>", first[: first.index("</section>")])
    cells = [re.sub(r"<small>.*?</small>|<[^>]*>", "", row.replace("</td>", "|")).split("|") for row in rows]
    log = everything["lifetimes"][0]
    (own,) = [row for row in cells if row[0] == "lifetimes"]
    keys = visible(log)
    assert own[1:8] == ["7", "answered", str(len(log.turns)), "4", "1", "1", "4"]
    sums = [sum(getattr(turn, name) for turn in log.turns) for name in ("written", "read", "again")]
    assert own[8:12] == ["0", *map(str, sums)]
    assert own[12:14] == [str(max(keys)), f"{sum(keys) / len(keys):.0f}"]
    (none,) = [row for row in cells if row[0] == "teacher"]
    assert none[9:14] == ["&ndash;"] * 5
    (plain,) = [row for row in cells if row[0].startswith("vanilla")]
    assert plain[1] == "8" and plain[9] == "117" and plain[12:14] == ["119", "61"]


def test_what_is_left_out_is_said(everything):
    text, left_out = page.page(everything, most=1)
    assert left_out == 2 and "2 of the questions are not shown" in text and text.count("<section>") == 1


def test_every_colour_of_a_picture_has_one_for_the_dark():
    style = (ROOT / "lt_jax/evaluation/trajectories.css").read_text()
    dark = style[style.index("prefers-color-scheme: dark") :]
    for shade in (*METHOD_COLOURS, INK, SOFT, FAINT, PAPER):
        assert f'="{shade}"' in dark, shade
    for name in re.findall(r"var\(--([a-z]+), ", (ROOT / "lt_jax/evaluation/timeline.py").read_text()) + [
        name for name in re.findall(r'shade\("([a-z]+)"', (ROOT / "lt_jax/evaluation/timeline.py").read_text())
    ]:
        assert f"--{name}:" in dark, name


def test_files_are_read_and_refused_in_one_line(tmp_path, everything):
    path = tmp_path / "lifetimes.v2.jsonl"
    path.write_text("".join(json.dumps(each.to_json()) + "\n" for each in everything["lifetimes"]))
    keys = tmp_path / "vanilla.jsonl"
    keys.write_text(json.dumps(everything[f"vanilla {HOSTILE}"][0].to_json()) + "\n")
    found = page.read_all([path, keys])
    assert found == {"lifetimes": everything["lifetimes"], "vanilla": everything[f"vanilla {HOSTILE}"]}
    good = '{"id": "1", "question": "x", "visible": [3]}'
    for text, said in (
        ("", "no trajectory in the file"),
        (f"{good}\n{good}\n", "bad.jsonl:2: there is one with id '1' already"),
        ('{"id": "1", "visible": [3]}', "bad.jsonl:1: an answer with 'visible' needs the field 'question'"),
        ('{"id": "1", "question": "x", "visible": [0]}', "list of numbers of keys, one at least, each above 0"),
        ('{"id": "1", "question": "x", "visible": [1], "turns": []}', "unknown field 'turns' of an answer"),
        ('{"id": 1, "question": "x", "visible": [1]}', "field 'id' must be of the kind str"),
        ('{"id": "1", "question": "x", "turns": [{"action": "fold", "number": 2}]}', "there is no entity 2"),
    ):
        bad = tmp_path / "bad.jsonl"
        bad.write_text(text)
        with pytest.raises(UserError, match=re.escape(said)):
            page.read(bad)
    (tmp_path / "more").mkdir()
    with pytest.raises(UserError, match="another file is named 'vanilla' too"):
        page.read_all([keys, (tmp_path / "more" / "vanilla.txt")])


def test_the_command(tmp_path, everything):
    logs = tmp_path / "own.jsonl"
    logs.write_text(json.dumps(everything["rebuild"][0].to_json()) + "\n")
    run = lambda *flags: subprocess.run([sys.executable, ROOT / "launch/trajectory.py", *flags], capture_output=True,
                                        text=True)  # fmt: skip
    done = run(f"--logs={logs}", f"--out={tmp_path / 'page.html'}", "--title=A & B")
    assert done.returncode == 0 and "1 trajectories of 1 method" in done.stdout, done.stderr
    assert "<h1>A &amp; B</h1>" in (tmp_path / "page.html").read_text()
    done = run(f"--logs={logs}", f"--out={tmp_path / 'page.txt'}")
    assert done.returncode == 2 and done.stderr.startswith("error: --out=") and done.stderr.count("\n") == 1


def test_the_demo(tmp_path, everything):
    logs = tmp_path / "mine.jsonl"
    logs.write_text(json.dumps(everything["rebuild"][0].to_json()) + "\n")
    config = memory_demo.MemoryDemoConfig(str(tmp_path / "demo"), questions=2, steps=(4, 6), logs=(str(logs),))
    found = memory_demo.show(config, lambda line: None)
    assert list(found) == ["vanilla", "lightthinker", *SEMANTICS, "mine"]
    again = {name: sum(turn.again for log in found[name] for turn in log.turns) for name in SEMANTICS}
    assert again["rebuild"] > 3 * again["lifetimes"] > 0
    for mine, plain in zip(found["lifetimes"], found["vanilla"], strict=True):
        assert max(visible(mine)) < max(visible(plain))
    assert page.read(tmp_path / "demo" / "rebuild.jsonl") == found["rebuild"]
    assert (tmp_path / "demo" / "report.html").read_text().count("<section>") == 3
    assert len(memory_demo.table(found).splitlines()) == 6
