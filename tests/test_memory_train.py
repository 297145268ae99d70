"""Teaching a model to manage its memory: rows, importers, one tiny run in either semantics, and what is refused."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

import lt_jax
from configs import defaults, memory_tiny
from launch.settings import lessons as chosen
from launch.settings import sft_config
from lt_jax.data.pipeline import PipelineConfig
from lt_jax.data.traces import convert
from lt_jax.decode import DecodeConfig
from lt_jax.errors import UserError
from lt_jax.evaluation import memory as evaluation
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.memory.expert import expert
from lt_jax.memory.importers import as_log
from lt_jax.memory.log import Log, LoggedTurn, row_of, turns_of
from lt_jax.memory.modes import MODES
from lt_jax.memory.rows import ROWS
from lt_jax.memory.sft import MemoryConfig, check, lessons, plain_lessons
from lt_jax.memory.syntax import syntax_of
from lt_jax.memory.tasks import Lookbacks
from lt_jax.memory.trajectories import Limits, Trajectories
from lt_jax.training.sft import SftConfig, SourceConfig, sft, special_tokens
from tests.tiny_folder import make
from tests.training_tools import config as train_config

QUIET = lambda line: None


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "base")


def settings(folder, base, semantics="lifetimes", **more):
    optim = {"learning_rate": 1e-2, "warmup": 1.0}
    source = {"paths": (), "embedded": 40, "steps": (3, 3), "turns": "all", **more.pop("source", {})}
    return SftConfig(**{
        "folder": str(folder), "model": str(base), "source": SourceConfig(**source),
        "batches": PipelineConfig(length=640, batch=1, bins=2, threads=1),
        "scheme": Scheme(method="memory", semantics=semantics), "tensorboard": False,
        "train": train_config(steps=2, log_every=1, optim=optim), **more,
    })  # fmt: skip


MEMORY = MemoryConfig(looks=(1, 1))


def made(base, semantics, how=lessons, **more):
    """The lessons of a config, and the syntax that they are written in."""
    config, tokenizer = settings("unused", base, semantics, **more), load_tokenizer(base)
    special = special_tokens(tokenizer, config).special
    return how(MEMORY)(config, tokenizer, special), syntax_of(special, tokenizer)


# Rows.


@pytest.mark.parametrize("semantics", list(ROWS))
def test_what_is_trained_is_what_decoding_would_write(base, semantics):
    """Turn by turn, as `Trajectories` goes: the prompt of the cue, what was written read back, the same row."""
    taught, syntax = made(base, semantics)
    for number in range(4):
        log = taught.samples[number]
        assert log.extra["mode"] == list(MODES)[number % 2]
        row = ROWS[semantics](syntax, taught.to_row.asked(log))
        said = syntax.text(taught.to_row.asked(log))
        assert MODES[log.extra["mode"]].cue + log.question in said
        written = []
        for turn, observation in turns_of(log, syntax):
            ids = turn.text + turn.marked
            written += ids
            assert row.turn(syntax.read(ids), observation) is None
        want, got = row.row(), taught.to_row(log)
        for field in dataclasses.fields(want):
            np.testing.assert_array_equal(getattr(got, field.name), getattr(want, field.name), err_msg=field.name)
        assert got.tokens[got.trained].tolist() == written, "all that was written, and nothing else"


def test_turns_that_were_not_possible_are_read_and_not_trained(base):
    taught, syntax = made(base, "lifetimes")
    wrong = LoggedTurn("5 <expand>7</expand>", "expand", why="there is no entity 7")
    log = Log("1", "1+1?", (wrong, LoggedTurn("2", "final_answer", "2")))
    row = taught.to_row(log)
    assert row.tokens[row.trained].tolist() == list(syntax.ids("2") + syntax.marked("final_answer", syntax.ids("2")))
    assert len(row) > row.trained.sum() + len(taught.to_row.asked(log)) + 10


def test_the_same_problems_as_plain_traces(base):
    taught = plain_lessons(MEMORY)(*plain(base, "vanilla"))
    trajectories, _ = made(base, "rebuild")
    for number in range(3):
        assert taught.samples[number].question == trajectories.samples[number].question
    thoughts = plain_lessons(MEMORY)(*plain(base, "lightthinker"))
    row = thoughts.to_row(thoughts.samples[0])
    assert row.thought.max() == 3 and (row.death < len(row)).any()


def plain(base, method):
    scheme = Scheme(method=method, n_gist=2 if method == "lightthinker" else None)
    config, tokenizer = settings("unused", base, scheme=scheme), load_tokenizer(base)
    return config, tokenizer, special_tokens(tokenizer, config).special


# Importers.

MARKS = {name: (f"<{name}>", f"</{name}>") for name in ("commit", "expand", "fold", "call", "final_answer")}
MEMENTO = (
    "<think>\nFirst.\n<|block_start|>\n2 and 2\n<|block_end|>\n<|summary_start|>\nis 4\n<|summary_end|>\n"
    "<|block_start|>\nthen 3\n<|block_end|>\n<|summary_start|>\nis 7\n<|summary_end|>\n"
    "Done.\n</think>\nIt is \\boxed{7}."
)


def parts(log):
    return [(turn.text, turn.action, turn.content or turn.number, turn.observation) for turn in log.turns]


def imported(record):
    return as_log(convert(record), MARKS, lambda texts: texts[0].split("\n\n") if len(texts) == 1 else texts)


def test_blocks_are_steps_and_their_summaries_commits():
    log = imported({"problem": "2+2+3?", "response": MEMENTO, "answer": "7"})
    assert log.question == "2+2+3?" and log.gold == log.answer == "7"
    assert parts(log) == [
        ("First.\n\n2 and 2", "commit", "is 4", ""),
        ("then 3", "commit", "is 7", ""),
        ("Done.\n\nIt is \\boxed{7}.", "final_answer", "7", ""),
    ]


@pytest.mark.parametrize(
    "record",
    [
        {"response": "We add.\nSo 2 and 2. It is 4.\n\nAnd 3 is 7\n\nThe answer is 7."},
        {"response": "<think>\nWe add.\nSo 2 and 2. It is 4.\n\nAnd 3 is 7\n</think>\n\nThe answer is 7."},
        {"response": "The answer is 7.", "reasoning": "We add.\nSo 2 and 2. It is 4.\n\nAnd 3 is 7"},
        {"thoughts": ["We add.\nSo 2 and 2. It is 4.", "And 3 is 7", "The answer is 7."]},
    ],
)
def test_segments_are_steps_and_their_last_sentences_commits(record):
    assert parts(imported({"question": "2+2+3?", **record})) == [
        ("We add.\nSo 2 and 2. It is 4.", "commit", "It is 4.", ""),
        ("And 3 is 7", "commit", "And 3 is 7", ""),
        ("The answer is 7.", "final_answer", "7", ""),
    ]


def test_turns_of_a_chat_are_steps_and_calls():
    """Our marks are read, other syntax is text, and what comes after a turn is its observation."""
    said = lambda *turns: {"messages": [{"role": role, "content": text} for role, text in turns]}
    record = said(
        ("system", "You search."), ("user", "Who?"), ("assistant", "<think>I look.</think>\n\n<tool>search red</tool>"),
        ("user", "red is a colour"), ("assistant", "Good.<commit>red: colour</commit> More.<call>visit: 1</call>"),
        ("tool", "page one"), ("assistant", "Back.<expand>1</expand>Seen.<fold>1</fold>It is <b>red</b>.\nRed"),
    )  # fmt: skip
    log = imported(record)
    assert (log.question, log.system) == ("Who?", "You search.")
    assert parts(log) == [
        ("I look.", "call", "<tool>search red</tool>", "red is a colour"),
        ("Good.", "commit", "red: colour", ""),
        ("More.", "call", "visit: 1", "page one"),
        ("Back.", "expand", 1, ""),
        ("Seen.", "fold", 1, ""),
        ("It is <b>red</b>.\nRed", "final_answer", "Red", ""),
    ]
    calls = said(("user", "2+2?"), ("assistant", ""), ("tool", "4"), ("assistant", "<final_answer>4</final_answer>"))
    calls["messages"][1]["tool_calls"] = [{"function": {"name": "add", "arguments": {"a": 2}}}]
    assert parts(imported(calls)) == [("", "call", 'add: {"a": 2}', "4"), ("", "final_answer", "4", "")]
    for more, complaint in (({"tools": [{"name": "add"}]}, "has descriptions of 'tools'"),
                            ({"conversations": [], "id": 3}, "list of turns")):  # fmt: skip
        with pytest.raises(UserError, match=complaint):
            imported({**said(("user", "Q"), ("assistant", "4")), **more})
    for turns, complaint in (
        ((("assistant", "Hi"), ("user", "Q"), ("assistant", "4")), "it begins with a turn of the assistant's"),
        ((("user", "Q"), ("assistant", "<expand>3</expand>4")), "trace of 'Q': there is no entity 3"),
        ((("user", "Q"), ("user", "R"), ("assistant", "4")), "turn 2 answers nothing"),
        ((("user", "Q"), ("assistant", "a<commit>b</commit>"), ("user", "ok"), ("assistant", "4")), "turn 3 answers"),
        ((("user", "Q"), ("assistant", "a<fold>x</fold>")), "fold needs the number of an entity, not 'x'"),
        ((("user", "Q"), ("assistant", "a<commit> </commit>4")), "commit is empty"),
    ):
        with pytest.raises(UserError, match=complaint):
            imported(said(*turns))


def test_a_long_chat_of_the_released_kind(base):
    """As long as the longest of the agents' data: every turn of the assistant's is trained once."""
    turns = [("user", "You have a hierarchical memory. Who?"), ("assistant", "I begin."), ("user", "Do.")]
    turns += [pair for n in range(44) for pair in (("assistant", f"look {n}\nsearch: {n}"), ("user", f"found {n}"))]
    record = {"id": 42, "messages": [{"role": r, "content": c} for r, c in [*turns, ("assistant", "It is 44")]]}
    assert len(record["messages"]) == 92
    taught, syntax = made(base, "lifetimes")
    row = taught.to_row(convert(record))
    text = syntax.text(row.tokens[row.trained].tolist())
    assert text.count("<call>") == 45 and not re.search("found|Do", text)
    assert text.endswith("<final_answer>It is 44</final_answer>")


def test_a_trajectory_file_is_read_as_it_was_written(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the data are prepared in the folder of the run
    logs = [expert(each, str(number)) for number, each in enumerate(Lookbacks(3, steps=(3, 3), looks=(1, 1)))]
    path = tmp_path / "trajectories.jsonl"
    path.write_text("".join(json.dumps(log.to_json()) + "\n" for log in logs))
    taught, syntax = made(base, "rebuild", source={"paths": (str(path),), "embedded": 0})
    found = sorted((taught.to_row.log(taught.samples[number]) for number in range(3)), key=lambda log: log.id)
    assert found == logs
    want = row_of(logs[0], syntax, taught.to_row.asked(logs[0]), "rebuild").row()
    np.testing.assert_array_equal(taught.to_row(found[0]).tokens, want.tokens)


def test_segments_are_cut_as_the_config_says(base):
    """By paragraphs, or as the data are cut; by sentences if asked; and joined up to a minimum."""
    counts = {}
    for name, source in (("as it is", {}), ("sentence", {"segment": "sentence"}), ("joined", {"minimum": 1000})):
        taught, _ = made(base, "lifetimes", source=source)
        plain = convert({"question": "Q", "response": "a b. c d.\n\ne f.\n\ng."})
        ready = dataclasses.replace(plain, segments=("a b. c d. e f.", "g."))
        counts[name] = [len(taught.to_row.log(trace).turns) for trace in (plain, ready)]
    assert counts == {"as it is": [3, 2], "sentence": [4, 4], "joined": [1, 1]}


# Runs.


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A run of two steps on trajectories under lifetimes, exported."""
    said = []
    final = sft(settings(tmp_path_factory.mktemp("runs") / "run", base), said.append, lessons(MEMORY))
    return lt_jax.load(str(final)), "\n".join(said)


def test_a_run_leaves_a_model_that_is_decoded_as_it_was_trained(trained):
    model, said = trained
    assert "data: 40 samples" in said and "warning" not in said
    assert model.scheme == Scheme(method="memory", semantics="lifetimes") and len(model.special.memory) == 12
    problems = [each.problem for each in Lookbacks(3, steps=(3, 3), looks=(1, 1), held_out=True)]
    found = evaluation.solve(model, problems, MODES["throughput"], rows=2, capacity=256, block_steps=8, turn=8, turns=4)
    summary = evaluation.summarise(found)
    assert summary.problems == 3 == sum(summary.finishes.values()) and summary.peak.value > 0
    assert 0 <= summary.parsed.value <= 1 and list(evaluation.by_family(found)) == ["lookback 1"]
    syntax = syntax_of(model.special, model.tokenizer)
    with pytest.raises(UserError, match="trained with semantics 'lifetimes' and cannot be decoded with 'rebuild'"):
        Trajectories(model.engine(DecodeConfig(rows=1, capacity=64)), syntax, Limits("rebuild"))
    with pytest.raises(UserError, match="budget is 5, which is for mode 'budget'"):
        evaluation.solve(model, problems, budget=5)


def test_a_summary_counts_what_was_done():
    said = lambda action, why="": LoggedTurn("", action, "z", why=why, written=7, again=1)
    one = lambda correct, *turns: Log("1", "q", (*turns, said("final_answer")), correct=correct,
                                      extra={"peak": 10, "dependency": 100})  # fmt: skip
    commits, edits = [said("commit")] * 3, [said("expand"), said("fold")]
    wrong = [said("malformed", "no action"), said("malformed", "no action"), said("fold", "not possible")]
    found = evaluation.summarise([one(True, *commits, *edits), one(None, *wrong)])
    assert (found.accuracy.value, found.problems, found.unjudged, found.again.value) == (0.5, 2, 1, 5)
    assert (found.peak.value, found.dependency.value, found.written.value, found.rounds.value) == (10, 100, 35, 1)
    assert found.parsed.value == 8 / 10 and found.legal.value == 7 / 8 and found.edits.value == 2 / 7
    assert found.actions["commit"] == 1.5 and found.finishes == {"answered": 2}


def test_what_trajectories_cannot_have_is_refused(base):
    good = settings("unused", base)
    check(good)
    for change, said in (
        ({"batches": PipelineConfig(length=64, batch=1, over_length="split")}, "over_length is 'split'; a trajectory"),
        ({"source": SourceConfig((), embedded=4)}, "data.turns is 'last'; method 'memory' trains all"),
        ({"source": SourceConfig((), embedded=4, turns="all", segment="chunk", maximum=9)}, "data.segment is 'chunk'"),
        ({"source": SourceConfig((), embedded=4, turns="all", families=("gcd",))}, "data.families is"),
        ({"scheme": Scheme("vanilla")}, "scheme.method is 'vanilla'; trajectories are for method 'memory'"),
    ):
        with pytest.raises(UserError, match=said):
            check(dataclasses.replace(good, **change))
    with pytest.raises(UserError, match="scheme.method 'memory' is taught from trajectories"):
        sft(good, QUIET)
    for change, said in (({"modes": ("fast",)}, "mode is 'fast'"), ({"modes": ()}, "modes is empty"),
                         ({"budget": 0}, "memory.budget is 0")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            MemoryConfig(**change)


def test_the_config_chooses_the_lessons():
    config = memory_tiny.get_config()
    assert set(chosen(config)) == {"lessons"} and sft_config(config).scheme.memory_semantics == "lifetimes"
    config.scheme.semantics = "rebuild"
    assert sft_config(config).scheme.memory_semantics == "rebuild"
    config.scheme.update(method="vanilla", semantics="")
    with pytest.raises(UserError, match="settings of a memory, which scheme.method 'vanilla' has no use for"):
        chosen(config)
    assert chosen(defaults.get_config()) == {}
    assert Path(config.model.path, "tokenizer.json").is_file()
