"""Synthesis of trajectories: what a teacher sees, endpoints that fail, runs that are killed."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import lt_jax
from lt_jax.data.problem import Problem
from lt_jax.errors import UserError
from lt_jax.evaluation.synthesis_picture import synthesis as picture
from lt_jax.memory import dataset
from lt_jax.memory.environment import ACTOR, GOVERNOR, SOLVER, Work, worked
from lt_jax.memory.journal import Journal, Numbers, read_logs
from lt_jax.memory.log import Log, LoggedTurn, from_json
from lt_jax.memory.synthesis import SynthesisConfig, synthesize
from lt_jax.memory.teachers import Asked, Reply, Unanswered, rate
from lt_jax.memory.teachers.connect import Connection, by_endpoint
from lt_jax.memory.teachers.endpoint import Endpoint
from lt_jax.memory.teachers.endpoint_config import EndpointConfig
from lt_jax.memory.teachers.local import Local, LocalConfig
from lt_jax.memory.teachers.scripted import scripted
from lt_jax.memory.trajectories import Limits
from tests import chat_server
from tests.chat_server import FAULTS, Server
from tests.tiny_folder import make

ROOT = Path(__file__).parents[1]
KEY = "sk-secret-0123456789"
SUM = Problem("Add 1 and 8.", "9", "sum")
KILLS = int(os.environ.get("LT_JAX_KILLS", "1"))


def says(*texts, seen=None):
    """A teacher that says one text after the other, whoever asks, and notes what it was asked."""
    left = list(texts)

    async def teacher(asked):
        if seen is not None:
            seen.append(asked)
        return Reply(left.pop(0), read=10, written=3)

    return teacher


def work_on(teacher, problem=SUM, **settings) -> Log:
    limits = Limits(**{name: settings.pop(name) for name in list(settings) if name != "tools"})
    return asyncio.run(worked(problem, 5, teacher, Work(limits, **settings)))


def test_a_teacher_sees_what_the_memory_shows_and_nothing_else():
    seen = []
    log = work_on(says(
        "SECRET thoughts.\n<commit>SHORT</commit>\n", "And now?<expand>1</expand>", "Ah.<fold>1</fold>",
        "Then it is nine.<final_answer>9</final_answer>  \n", seen=seen,
    ))  # fmt: skip
    shown = [(asked.messages[-1]["content"], json.dumps(asked.messages)) for asked in seen]
    assert [("SECRET" in whole, "SHORT" in whole) for _, whole in shown] == [
        (False, False), (False, True), (True, False), (False, True),
    ]  # fmt: skip
    states = [user.partition("The state: ")[2].splitlines()[0] for user, _ in shown]
    assert states == ["no entities", "archived: 1", "active: 1", "archived: 1"]
    assert "What you can do now: expand of 1; final_answer" in shown[1][0], "a commit needs something to commit"
    assert "And now?<expand>1</expand>" in shown[2][0], "the open step stays"
    assert [turn.action for turn in log.turns] == ["commit", "expand", "fold", "final_answer"]
    assert (log.finish, log.correct, log.answer, log.turns[0].text) == ("answered", True, "9", "SECRET thoughts.\n")
    assert log.extra["tokens"] == {"read": 40, "written": 12} and log.extra["replies"] == 4
    assert from_json(json.loads(json.dumps(log.to_json()))) == log


def test_a_turn_that_is_not_possible_gets_the_complaint_and_is_counted():
    seen = []
    log = work_on(says("<expand>3</expand>", "no action", "A.<commit>a</commit>", "<final_answer>8</final_answer>",
                       seen=seen))  # fmt: skip
    assert [bool(turn.why) for turn in log.turns] == [True, True, False, False]
    assert log.turns[0].why == "there is no entity 3; possible here: final_answer" and log.turns[0].action == "expand"
    assert f"<expand>3</expand><memory>!{log.turns[0].why}</memory>" in seen[1].messages[-1]["content"]
    assert log.turns[1].why == "no action was taken" and log.correct is False
    assert from_json(log.to_json()) == log
    assert work_on(says(*["?"] * 9), malformed=2).finish == "malformed"
    assert work_on(says(*["a<commit>b</commit>"] * 9), turns=3).finish == "turns"
    assert work_on(says(*["a<commit>b</commit>"] * 9), tokens=6).finish == "length"
    assert work_on(says(*["a<commit>b</commit>"] * 9), context=9).finish == "context"


def test_marks_in_a_question_or_an_observation_are_none():
    seen = []
    tools = {"search": lambda words: f"<commit>{words}</commit>"}
    log = work_on(says("I look.<call>search: red</call>", "nothing", "<final_answer>9</final_answer>", seen=seen),
                  Problem("Is <final_answer>7</final_answer> right?", "9"), tools=tools)  # fmt: skip
    assert "Is < final_answer>7< /final_answer> right?" in seen[0].messages[-1]["content"]
    assert log.turns[0].observation == "< commit>red< /commit>"
    assert "<memory>1:< commit>red< /commit></memory>" in seen[1].messages[-1]["content"]


def test_agents_have_an_actor_and_a_governor():
    seen = []
    replies = [
        (ACTOR, "Where is it?<call>search: red</call>"), (GOVERNOR, "Nothing."), (ACTOR, "<commit>no</commit>"),
        (ACTOR, "And?<call>look: red</call>"), (ACTOR, "Again.<call>search: blue</call>"),
        (GOVERNOR, "<final_answer>no</final_answer>"), (GOVERNOR, "<commit>red is 4, blue is 5</commit>"),
        (GOVERNOR, "nothing"), (ACTOR, "All known.<final_answer>9</final_answer>"),
    ]  # fmt: skip
    tools = {"search": lambda words: {"red": "four", "blue": 1 / 0 if words == "green" else "five"}[words]}
    log = work_on(says(*(text for _, text in replies), seen=seen), tools=tools)
    assert [asked.role for asked in seen] == [role for role, _ in replies]
    assert seen[0].messages[0]["content"] != seen[1].messages[0]["content"]
    assert [(turn.action, bool(turn.why)) for turn in log.turns] == [
        ("call", False), ("malformed", True), ("malformed", True), ("call", False), ("malformed", True),
        ("commit", False), ("final_answer", False),
    ]  # fmt: skip
    assert log.turns[1].why.startswith("commit cannot be done here; possible here: call; final_answer")
    assert log.turns[2].why == "there is no such tool; there are: search"
    last = seen[-1].messages[-1]["content"]
    assert "four" not in last and "<commit>red is 4, blue is 5</commit><memory>3</memory>" in last
    assert log.correct and log.extra["replies"] == 9 and from_json(log.to_json()) == log


def expert(problem: Problem) -> Log:
    """Commits, expands, folds and answers."""
    turns = (
        LoggedTurn(f"{problem.question} It is {problem.answer}.", "commit", f"It is {problem.answer}."),
        LoggedTurn("Was it?", "expand", number=1), LoggedTurn("It was.", "fold", number=1),
        LoggedTurn("", "final_answer", problem.answer),
    )  # fmt: skip
    return Log("x", problem.question, turns)


def script() -> Connection:
    return Connection(contextlib.nullcontext(scripted(expert)), {"teacher": "scripted", "model": "expert"})


def test_a_script_goes_through_the_same_environment(tmp_path):
    said, drawn = [], []

    def source():
        for problem in chat_server.problems(40):
            drawn.append(problem)
            finished = (tmp_path / "journal.jsonl").read_bytes().count(b"\n")
            assert len(drawn) - finished <= 3, "problems are drawn as they are worked on"
            yield problem

    numbers = synthesize(source(), script(), SynthesisConfig(str(tmp_path), at_once=3), say=said.append)
    logs = list(read_logs(tmp_path / "trajectories.jsonl"))
    assert len(drawn) == 40 and [log.id for log in logs] == [str(number) for number in range(40)]
    assert [turn.action for turn in logs[7].turns] == ["commit", "expand", "fold", "final_answer"]
    own = logs[7].extra
    assert (own["number"], own["teacher"], own["version"]) == (7, "scripted", lt_jax.__version__)
    assert {"model", "prompts", "limits", "tokens", "cost", "attempts", "seed", "family"} <= own.keys()
    assert numbers["all"]["kept"] == 40 and numbers["steps"]["unit"] == "characters"
    assert list(numbers["difficulties"]) == ["sum 0", "sum 1"]
    assert json.loads((tmp_path / "statistics.json").read_text()) == numbers
    (folder,) = (tmp_path / "tfds").glob("*/*/1.0.0")
    stored = dataset.open_logs(folder)
    assert sorted(stored, key=lambda log: int(log.id)) == logs
    drawing = picture(numbers)
    assert drawing.startswith("<svg") and "A yield of 100.0 %" in drawing and "removed: symmetry" in drawing
    # Again: nothing is asked, and with other switches it is pruned anew.
    before = (tmp_path / "trajectories.jsonl").read_bytes()
    nobody = Connection(contextlib.nullcontext(None), {"teacher": "scripted", "model": "expert"})
    synthesize(chat_server.problems(40), nobody, SynthesisConfig(str(tmp_path), at_once=3), say=said.append)
    assert (tmp_path / "trajectories.jsonl").read_bytes() == before
    with pytest.raises(UserError, match="holds trajectories of another run: seed was 0 and is 1 now"):
        synthesize(chat_server.problems(40), nobody, SynthesisConfig(str(tmp_path), seed=1), say=said.append)


def quick(server, **changes) -> EndpointConfig:
    settings = dict(seconds=2.0, first_pause=0.02, longest_pause=0.2, at_once=6, price_read=1.0, price_written=4.0)
    return EndpointConfig(server.url, "adder", **settings | changes)


def apart_from_the_server(path) -> list[dict]:
    """The trajectories of a file without how often they were asked for, and of which port."""
    records = [json.loads(line) for line in Path(path).read_text().splitlines()]
    for record in records:
        assert record["extra"].pop("attempts") >= record["extra"]["replies"]
        assert record["extra"].pop("url").startswith("http://127.0.0.1:")
    return records


def test_an_endpoint_that_fails_in_every_way_loses_nothing_and_asks_nothing_twice(tmp_path):
    counts = {}
    for name in ("well", "badly"):
        with Server(faulty=name == "badly", pause=0.01) as server:
            connection = by_endpoint(quick(server), KEY)
            config = SynthesisConfig(str(tmp_path / name), at_once=6)
            synthesize(chat_server.problems(30), connection, config, say=lambda line: None)
            counts[name] = connection.teacher.counts
        late = counts[name].retries["timeout"] - server.faults["slow"]  # on a machine that has too much to do
        assert len(server.answered) == 4 * 30 and server.answered.total() == 4 * 30 + late
        assert 2 <= server.most <= 6 and all(each["Authorization"] == f"Bearer {KEY}" for each in server.headers)
    assert all(server.faults[fault] for fault in FAULTS), "every fault was injected"
    again = counts["badly"].retries
    assert again["malformed"] == sum(server.faults[each] for each in ("no json", "no choices", "half"))
    assert [again[name] for name in ("429", "500", "connection")] == [
        server.faults[each] for each in ("429", "500", "drop")
    ]
    assert all(each.requests == 4 * 30 + each.retries.total() for each in counts.values())
    assert counts["badly"].cost == pytest.approx(counts["well"].cost) and counts["well"].cost > 0
    assert counts["well"].cached == 2 * 120
    well, badly = (apart_from_the_server(tmp_path / name / "trajectories.jsonl") for name in ("well", "badly"))
    assert well == badly and len(well) == 30 and all(record["correct"] for record in well)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_what_an_endpoint_refuses_is_one_line_without_the_key(tmp_path):
    run = lambda server, **changes: synthesize(
        chat_server.problems(30), by_endpoint(quick(server, **changes), KEY), SynthesisConfig(str(tmp_path)),
        say=lambda line: None,
    )  # fmt: skip
    with Server(status=401, said=f"Incorrect API key\nprovided: {KEY}") as server:
        with pytest.raises(UserError, match=r"refuses requests: status 401 \(Incorrect API key provided: \*\*\*\)"):
            run(server)
    with Server(status=503, said="overloaded") as server:
        with pytest.raises(UserError, match="10 problems one after the other got no answer; the last: .* no answer in "
                                            "2 attempts; the last: status 503 .overloaded."):  # fmt: skip
            run(server, attempts=2)
        assert len(server.bodies) < 2 * 30
    with Server(status=400, said="max_tokens is not supported") as server:
        with pytest.raises(UserError, match="10 problems .* status 400 .max_tokens is not supported."):
            run(server)
    assert not (tmp_path / "trajectories.jsonl").exists()
    with Server() as server:  # nothing of that stays
        assert run(server)["all"]["correct"] == 30


def test_a_problem_without_an_answer_is_an_error_or_is_left_out_and_asked_later(tmp_path):
    blocked = {"Add 3 and 22."}

    async def teacher(asked):
        if asked.problem.question in blocked:
            raise Unanswered("no answer in 8 attempts")
        return await scripted(expert)(asked)

    connection, said = Connection(contextlib.nullcontext(teacher), {}), []
    run = lambda **how: synthesize(
        chat_server.problems(6), connection, SynthesisConfig(str(tmp_path), **how), say=said.append
    )
    with pytest.raises(UserError, match="1 problems got no answer, the first of them number 3: no answer in 8"):
        run()
    assert not (tmp_path / "trajectories.jsonl").exists()
    assert run(leave_out=True)["all"]["asked"] == 5 and any("are left out" in line for line in said)
    blocked.clear()
    assert run()["all"]["asked"] == 6
    assert [log.id for log in read_logs(tmp_path / "trajectories.jsonl")] == list("012345")


def test_requests_and_tokens_of_a_minute_are_limited(monkeypatch):
    monkeypatch.setattr(rate, "WINDOW", 0.3)

    async def times(limit, tokens):
        sent = []

        async def one():
            async with limit.request(tokens):
                sent.append(time.monotonic())

        await asyncio.gather(*(one() for _ in range(6)))
        return np.array(sent)

    at = asyncio.run(times(rate.Rate(requests=2), 1))
    assert (at[2:] - at[:-2] >= 0.29).all()
    at = asyncio.run(times(rate.Rate(tokens=10), 4))
    assert (at[2:] - at[:-2] >= 0.29).all()
    assert len(asyncio.run(times(rate.Rate(tokens=3), 4))) == 6, "one that is too large goes alone"


def test_an_endpoint_that_asks_for_a_pause_gets_it():
    async def ask(server):
        async with Endpoint(quick(server), "") as teacher:
            asked = _asked("Add 1 and 8.")
            reply = await teacher(asked)
            return reply, teacher.counts

    class Once(Server):
        def answer(self, request, body, key, fault):
            if self.seen[key] == 1:
                return chat_server.send(request, 429, "{}", {"Retry-After": "0.15"})
            return super().answer(request, body, key, fault)

    with Once() as server:
        reply, counts = asyncio.run(ask(server))
    assert reply.attempts == 2 and counts.retries == {"429": 1} and "1 429" in counts.describe()
    assert server.at[1] - server.at[0] >= 0.15
    assert server.bodies[0].keys() == {"model", "messages", "max_tokens"}


def _asked(question):
    messages = ({"role": "user", "content": f"{question} no entities"},)
    return Asked(messages, SUM, 0, SOLVER, 64, 0)


PROGRAM = """
import sys
from lt_jax.memory.synthesis import SynthesisConfig, synthesize
from lt_jax.memory.teachers.connect import by_endpoint
from lt_jax.memory.teachers.endpoint_config import EndpointConfig
from tests import chat_server

endpoint = EndpointConfig(sys.argv[1], "adder", at_once=4)
synthesize(chat_server.problems(60), by_endpoint(endpoint), SynthesisConfig(sys.argv[2], at_once=4))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_same_files(tmp_path):
    with Server(pause=0.03) as server:
        start = lambda: subprocess.Popen(
            [sys.executable, "-c", PROGRAM, server.url, str(tmp_path / "killed")], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        journal, asked_before = tmp_path / "killed" / "journal.jsonl", []
        for kill in range(KILLS):
            run, wanted = start(), (kill + 1) * 40 // KILLS
            while not journal.exists() or journal.read_bytes().count(b"\n") < wanted:
                assert run.poll() is None, run.stdout.read()
                time.sleep(0.01)
            run.kill()
            run.wait()
            done = [json.loads(line)["log"]["question"] for line in journal.read_bytes().split(b"\n")[:-1]]
            asked_before.append((len(server.bodies), set(done)))
        last = start()
        assert last.wait(300) == 0, last.stdout.read()
        for count, done in asked_before:
            later = [body["messages"][-1]["content"] for body in server.bodies[count:]]
            assert wanted <= len(done) < 60 and later
            assert not any(question in message for message in later for question in done), "done is done"
    with Server() as server:
        config = EndpointConfig(server.url, "adder", at_once=4)
        synthesize(chat_server.problems(60), by_endpoint(config), SynthesisConfig(str(tmp_path / "whole"), at_once=4),
                   say=lambda line: None)  # fmt: skip
    for name in ("trajectories.jsonl", "pruned.jsonl"):
        killed, whole = ((tmp_path / each / name).read_text() for each in ("killed", "whole"))
        port = json.loads(killed.splitlines()[0])["extra"]["url"]
        assert killed.replace(port, server.url) == whole and whole.count("\n") == 60


def test_a_torn_line_is_asked_again_and_another_file_is_refused(tmp_path):
    log = work_on(says("<final_answer>9</final_answer>"))
    with Journal(tmp_path / "journal.jsonl") as journal:
        for number in (4, 0, 2):
            journal.write(number, log)
    whole = (tmp_path / "journal.jsonl").read_bytes()
    (tmp_path / "journal.jsonl").write_bytes(whole[:-20])
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert [number for number in range(6) if number in journal.done] == [0, 4] and journal.torn
        journal.write(2, log)
        journal.write_sorted(tmp_path / "sorted.jsonl")
    assert (tmp_path / "journal.jsonl").read_bytes() == whole
    assert list(read_logs(tmp_path / "sorted.jsonl")) == [log] * 3
    (tmp_path / "other.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(UserError, match=r"other.jsonl:1: not a line of a journal"):
        Journal(tmp_path / "other.jsonl")


def test_a_million_numbers_take_no_room():
    numbers = Numbers()
    order = np.random.default_rng(0).permutation(64)
    for start in range(0, 1 << 16, 64):
        for number in order:
            numbers.add(start + int(number))
    assert len(numbers) == 1 << 16 and len(numbers.starts) == 1
    odd = Numbers()
    for number in range(1, 100, 2):
        odd.add(number)
        odd.add(number)
    assert [number in odd for number in range(6)] == [False, True] * 3 and len(odd) == 50
    for number in range(0, 100, 2):
        odd.add(number)
    assert list(odd.starts) == [0] and list(odd.stops) == [100]


@pytest.mark.slow
def test_a_local_model_teaches_through_the_engine(tmp_path):
    """Its weights are random, so that it writes nonsense: every trajectory ends, and nothing of it is kept."""
    model = lt_jax.load(make(tmp_path / "model"), chat="plain")

    async def both():
        async with Local(model, LocalConfig(rows=2)) as teacher:
            work = Work(Limits(turn=6, malformed=2))
            logs = await asyncio.gather(*(worked(SUM, number, teacher, work) for number in range(3)))
            return logs, teacher.reused

    logs, reused = asyncio.run(both())
    assert {log.finish for log in logs} == {"malformed"} and all(len(log.turns) == 2 for log in logs)
    assert logs[0].turns[0].written == 6 and logs[0].turns[0].context > 100
    assert [log.turns for log in logs] == [logs[0].turns] * 3, "greedy"
    assert reused > 3 * logs[0].turns[0].context * 0.8, "a turn's prompt is read from where it differs"
