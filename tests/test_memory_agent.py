"""Agents: the embedded world and its expert, contexts over 150 rounds, runs on an engine, questions from files."""

import base64
import collections
import csv
import dataclasses
import hashlib
import itertools
import json
import re
import threading

import jax
import numpy as np
import pytest

from lt_jax.data import answers
from lt_jax.decode import DecodeConfig, Engine, control
from lt_jax.demo import BASE
from lt_jax.errors import UserError
from lt_jax.evaluation import agent_run, agents
from lt_jax.evaluation.metrics import plain
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import default_table
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.memory import agent
from lt_jax.memory.agent_files import read_questions
from lt_jax.memory.counted import counted
from lt_jax.memory.log import from_json, row_of, turns_of
from lt_jax.memory.machine import Call, Expand, Fold
from lt_jax.memory.multihop import EASY, HARD, TOOLS, TrailConfig, worlds
from lt_jax.memory.multihop_expert import solved
from lt_jax.memory.rows import ROWS
from lt_jax.memory.syntax import syntax_of
from lt_jax.memory.tools import search, tools, visit
from lt_jax.memory.trajectories import Limits, Trajectories
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig
from tests.memory_scripts import Script
from tests.tiny_folder import make

SHORT = TrailConfig(hops=(9, 12), recalls=(1, 2), searches=0.3)


def tools_of(place):
    return {"search": search(place.corpus, TOOLS), "visit": visit(place.corpus, TOOLS)}


@pytest.fixture(scope="module")
def small():
    """(world, special tokens, syntax): two short questions, and the tokenizer of the base model that comes along."""
    place = next(worlds(SHORT, 2, seed=1))
    tokenizer = load_tokenizer(BASE)
    special = default_table(tokenizer, Scheme("memory"), eos="<|end|>", pad="<|pad|>").special
    return place, special, syntax_of(special, tokenizer)


LONG = TrailConfig(hops=(60, 150), distractors=2, searches=0.5)
LETTERS = TrailConfig(hops=(12, 22), recalls=(1, 3), distractors=0, letters=True)


@pytest.mark.parametrize("config", [SHORT, TrailConfig(), LONG, LETTERS])
def test_the_expert_solves_every_question_through_the_tools(config):
    problems = 0
    for place in itertools.chain(*(worlds(config, 6, seed) for seed in range(4))):
        for problem in place.problems:
            problems += 1
            for memory in (True, False):
                log = solved(problem, tools_of(place), memory, every=2 if config is SHORT else 4)
                assert log.correct and answers.right(problem, log.answer)
                assert from_json(json.loads(json.dumps(log.to_json()))) == log
                counts = collections.Counter(turn.action for turn in log.turns)
                assert counts["call"] >= problem.metadata["hops"], "every stop is visited"
                if not memory:
                    assert set(counts) == {"call", "final_answer"}
                    continue
                # The whole suite of actions, by the rules for trajectories that are taught (B4).
                assert 1 <= counts["expand"] == counts["fold"] <= problem.metadata["recalls"] + 1
                assert counts["expand"] <= counts["commit"]
    assert problems == 24


def test_what_is_asked_late_was_read_early_and_the_hard_half_is_harder():
    place = next(worlds(TrailConfig(), 6, seed=3))
    by_kind = collections.defaultdict(list)
    for problem in place.problems:
        log = solved(problem, tools_of(place))
        early = problem.metadata["hops"] // 3 * 1.5 + 4  # stops, and the searches and commits between them
        expanded = [turn.number for turn in log.turns if turn.action == "expand"]
        assert expanded and max(expanded) <= early
        by_kind[problem.family].append((problem.metadata["hops"], len(expanded)))
        assert problem.metadata["difficulty"] == problem.family
    assert len(by_kind[EASY]) == len(by_kind[HARD]) == 3
    assert max(hops for hops, _ in by_kind[EASY]) <= 40 <= min(hops for hops, _ in by_kind[HARD])
    assert max(recalls for _, recalls in by_kind[EASY]) == 1 < min(recalls for _, recalls in by_kind[HARD])


def test_worlds_follow_from_their_seeds_and_fit_their_names():
    pages = lambda seed: [place.corpus.pages for place in worlds(TrailConfig(), 4, seed)]
    assert pages(1) == pages(1) != pages(2)
    long = list(worlds(TrailConfig(hops=(100, 150)), 5))
    assert [len(place.problems) for place in long] == [3, 2]
    ids = [problem.metadata["id"] for place in long for problem in place.problems]
    assert len(set(ids)) == 5
    for settings, said in (({"hops": (4, 9)}, "trails.hops"), ({"hops": (9, 12)}, "trails.recalls is"),
                           ({"hops": (20, 900), "distractors": 2}, "more pages than there are names, 1,000"),
                           ({"searches": 1.5}, "searches must be a share")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            TrailConfig(**settings)


@pytest.mark.parametrize("semantics", list(ROWS))
def test_150_rounds_stay_small(small, semantics):
    """What is left of a round is what a summary says of it, however long its page: the context grows by that alone."""
    _, _, syntax = small
    found = {}
    for filler in (6, 20):
        place = next(worlds(TrailConfig(hops=(150, 150), filler=filler, searches=0.0), 2, seed=5))
        problem = place.problems[1]
        prompt = syntax.ids(problem.text)
        for memory in (True, False):
            log = counted(solved(problem, tools_of(place), memory), syntax, prompt, semantics)
            sizes = {each.round: each.mean for each in agents.summarise([log]).sizes}
            assert max(sizes) >= 150 and log.turns[0].context == len(prompt)
            found[filler, memory] = sizes
            if memory and semantics == "lifetimes":
                assert row_of(log, syntax, prompt, semantics).row().death.max() > 0
    mean = lambda sizes, last: np.mean([sizes[number] for number in range(last - 19, last + 1)])
    slope = lambda sizes: (mean(sizes, 150) - mean(sizes, 90)) / 60
    for filler in (6, 20):
        mine, whole = found[filler, True], found[filler, False]
        assert slope(mine) < 13, "tokens a round: numbers and names"
        assert mine[60] < 0.25 * whole[60] and mine[150] < 0.2 * whole[150]
    assert slope(found[20, True]) < slope(found[6, True]) + 1, "longer pages leave no more"
    assert slope(found[20, False]) > slope(found[6, False]) + 40
    assert found[20, True][150] < 0.12 * found[20, False][150]


MODEL = DecoderConfig(vocab_size=320, hidden=32, intermediate=48, layers=2, heads=4, kv_heads=2, head_dim=16,
                      max_positions=4096)  # fmt: skip


@pytest.fixture(scope="module")
def played(small):
    """The expert's turns on an engine whose sampler is scripted: with memory, and without under a limited context."""
    place, special, syntax = small
    script, named = Script(), tools_of(place)
    log = {memory: solved(place.problems[1], named, memory) for memory in (True, False)}
    for seed in range(3):  # the last without memory
        script.turns(seed, [turn.text + turn.marked for turn, _ in turns_of(log[seed < 2], syntax)])
    params = parameters.init(jax.random.key(0), MODEL)
    engine = Engine(params, MODEL, Scheme("memory"), special, DecodeConfig(rows=2, block_steps=8))
    prompt = lambda problem: syntax.ids(problem.text)
    ended = threading.Event()
    calls = []

    def slow_visit(text):
        """Answers its first call only when the other trajectory has ended."""
        calls.append(text)
        if len(calls) == 1 and not ended.wait(500):
            return "the other one was stalled"
        return named["visit"](text)

    problem = place.problems[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "sample", script.sample)
        runner = Trajectories(engine, syntax, Limits(), named | {"visit": slow_visit})
        mine = []
        for _, each in agent.play(runner, {0: problem, 1: problem}, prompt):
            mine.append(each)
            ended.set()
        limited = Trajectories(engine, syntax, Limits(context=350), named)
        ((_, whole),) = agent.play(limited, {2: problem}, prompt)
        patch.setattr(engine, "rules", dataclasses.replace(engine.rules, row_limit=500))
        ((_, far),) = agent.play(Trajectories(engine, syntax, Limits(), named), {2: problem}, prompt)
    return problem, log, mine, (whole, far), syntax


def test_a_slow_tool_stalls_nobody(played):
    _, _, mine, *_ = played
    assert [each.finish for each in mine] == ["answered"] * 2
    assert [each.extra["seed"] for each in mine] in ([0, 1], [1, 0])
    assert not any("stalled" in turn.observation for each in mine for turn in each.turns)


def test_an_agent_is_judged_and_counted(played):
    problem, expert, mine, (limited, far), syntax = played
    for each in mine:
        assert each.correct and each.id == problem.metadata["id"] and each.extra["difficulty"] == HARD
        assert [turn.content for turn in each.turns] == [turn.content for turn in expert[True].turns]
        assert [turn.observation for turn in each.turns] == [turn.observation for turn in expert[True].turns]
    own = counted(expert[True], syntax, syntax.ids(problem.text), "lifetimes")
    assert [turn.context for turn in mine[0].turns] == [turn.context for turn in own.turns], "as counted from the row"
    assert limited.finish == "context" and limited.correct is False
    assert far.finish == "positions" and 0 < 500 - far.turns[-1].context < 200, "the model was made for no more"
    assert 1 < len(limited.turns) < len(expert[False].turns)
    contents = [turn.content for turn in expert[False].turns]
    assert [turn.content for turn in limited.turns] == contents[: len(limited.turns)]
    result = agents.summarise([*mine, limited])
    assert result.groups[agents.ALL].accuracy.value == 2 / 3 and result.groups[HARD].problems == 3
    assert result.groups[HARD].finishes == {"answered": 2, "context": 1} and result.groups[HARD].unjudged == 0
    assert result.groups[HARD].actions["expand"] == result.groups[HARD].actions["fold"] > 0
    first = result.sizes[0]
    assert (first.round, first.trajectories, first.mean) == (1, 3, len(syntax.ids(problem.text)))
    assert result.sizes[-1].trajectories == 2
    assert result.tokens["reused"] > result.tokens["read"] > result.tokens["again"] > 0 and result.saved > 0.5
    shown = agents.table(result)
    assert "all: 66.7% of 3 right; 2 answered, 1 context; a question has " in shown
    assert re.search(r"^ +1 +3 +\d+ +\d+$", shown, re.M)


def test_rounds_are_calls_with_what_was_done_between(played):
    problem, expert, *_ = played
    each = agent.rounds(expert[True])
    assert sum(map(len, each)) == len(expert[True].turns)
    assert all(turns[-1].action == "call" for turns in each[:-1]) and each[-1][-1].action == "final_answer"
    kinds = {type(turn.taken) for turns in each for turn in turns[:-1]}
    assert {Expand, Fold} <= kinds and Call not in kinds


def hidden(text, key):
    return base64.b64encode(bytes(a ^ b for a, b in zip(text.encode(), itertools.cycle(key), strict=False))).decode()


def test_questions_of_browsecomp_and_xbench(tmp_path):
    canary = "a canary GUID 26b5"
    sha = hashlib.sha256(canary.encode()).digest()
    question, answer = "Wer, oder was,\nist «das»? " * 9, "Ein Tier 東"

    def write(name, head, *rows):
        with open(tmp_path / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *rows])
        return tmp_path / name

    for path in (
        write("browse.csv", ["problem", "answer", "problem_topic", "canary"],
              [hidden(question, sha), hidden(answer, sha), "Art", canary]),
        write("zh.csv", ["Topic", "Question", "Answer", "canary"],
              [ "Art", hidden(question, sha), hidden(answer, sha), canary]),
    ):  # fmt: skip
        (found,) = read_questions(path)
        assert (found.question, found.answer, found.family) == (question.strip(), answer, "Art")
        assert found.metadata == {"id": "1", "canary": canary}
    row = {"id": "7", "prompt": hidden(question, canary.encode()), "answer": hidden(answer, canary.encode()),
           "canary": canary}  # fmt: skip
    table = write("xbench.csv", list(row), list(row.values()))
    (tmp_path / "xbench.jsonl").write_text(json.dumps(row) + "\n")
    for path in (table, tmp_path / "xbench.jsonl"):
        (found,) = read_questions(path)
        assert (found.question, found.answer, found.metadata["id"]) == (question.strip(), answer, "7")
    plain = write("plain.csv", ["question", "answer"], ["1 + 1?", "2"], ["a, b", "c"])
    assert [each.question for each in read_questions(plain)] == ["1 + 1?", "a, b"]
    assert len(read_questions(plain, 1)) == 1
    (tmp_path / "plain.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    assert read_questions(tmp_path / "plain.jsonl")[0].answer == "2"
    for path, said in (
        (write("a.csv", ["prompt", "answer", "canary"], [*list(row.values())[1:3], "another"]), "a.csv:2: cannot be"),
        (write("b.csv", ["problem", "answer", "canary"], ["no base64!", "x", "c"]), "b.csv:2: cannot be decrypted"),
        (write("c.csv", ["problem", "answer", "canary"], ["eA==", "eA==", ""]), "c.csv:2: has no canary"),
        (write("d.csv", ["problem", "answer"], ["x"]), "d.csv:2: has another number of columns"),
        (write("e.csv", ["problem", "answer"]), "there is no question in it"),
        (write("f.csv", ["problem", "reply"], ["x", "y"]), "f.csv:2: a question needs a text in problem"),
        (tmp_path / "none.csv", "no such file"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            read_questions(path)


def test_a_run_goes_on_where_it_was_stopped(tmp_path):
    """With random weights: every question ends somehow, and the second half of a run is as if it had never stopped."""
    folder = make(tmp_path / "model", Scheme("memory"))
    limits = Limits(turn=12, turns=3, malformed=2)
    config = agent_run.AgentConfig(model=str(folder), out=str(tmp_path / "run"), embedded=3, trails=SHORT, told=False,
                                   limits=limits, rows=2)  # fmt: skip
    said = []
    result = agent_run.run(config, said.append)
    assert result.groups[agents.ALL].problems == 3 and result.groups[agents.ALL].accuracy.value == 0
    assert set(result.groups) == {agents.ALL, EASY, HARD} and said[0] == agents.table(result)
    lines, journal = tmp_path / "run" / "trajectories.jsonl", tmp_path / "run" / "journal.jsonl"
    whole = lines.read_text()
    assert whole.count("\n") == 3
    journal.write_text(journal.read_text()[:-40])
    again = agent_run.run(config, said.append)
    assert lines.read_text() == whole
    assert plain(again) == plain(result)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["groups"][agents.ALL]["problems"] == 3
    with pytest.raises(UserError, match="holds a run with other settings"):
        agent_run.run(dataclasses.replace(config, seed=1), said.append)
    with pytest.raises(UserError, match="no marks of a memory"):
        agent_run.run(dataclasses.replace(config, model=str(make(tmp_path / "plain")), out=str(tmp_path / "x")))
    assert not (tmp_path / "x").exists()
    for settings, words in (({"questions": "x.csv"}, "either questions"), ({"corpus": ("x",)}, "pages of its own"),
                            ({"embedded": 0, "questions": "x.csv"}, "there are no tools")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            dataclasses.replace(config, **settings)


def test_an_agent_is_told_its_actions_and_tools(small):
    place, _, _ = small
    with tools(TOOLS, place.corpus) as named:
        said = agent.instructions(named)
        assert "<commit>" in said and "search: finds pages by words" in said and "python" not in said
        assert "<commit>" not in agent.instructions(named, memory=False)
