"""A trajectory as text and JSON: what is written to files, taught from, and looked at.

    {"id": "q7", "question": "...", "system": "", "gold": "42",
     "turns": [{"text": "...", "action": "commit", "content": "a is 4"},
               {"text": "...", "action": "expand", "number": 1},
               {"text": "...", "action": "call", "content": "search: red", "observation": "..."},
               {"text": "...", "action": "malformed", "why": "commit is not closed"},
               {"text": "...", "action": "final_answer", "content": "42"}],
     "finish": "answered", "correct": true, "extra": {...}}

A turn that was not possible has its `why`, whatever its action was meant to be; all that was written, marks and all, is
then its text. All other texts are without marks. Numbers that are 0 and texts that are empty are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lt_jax.data import answers
from lt_jax.data.problem import Problem
from lt_jax.errors import UserError
from lt_jax.memory import machine
from lt_jax.memory.machine import NAMES, Action, Call, Commit, Expand, FinalAnswer, Fold, Memory
from lt_jax.memory.rows import ROWS, LifetimesRow, RebuiltRow
from lt_jax.memory.syntax import ACTIONS, Ids, Malformed, Syntax, Turn
from lt_jax.memory.trajectories import FINISHES, MALFORMED, Trajectory, Written, tallied

WITH_CONTENT = {"commit": Commit, "final_answer": FinalAnswer}
WITH_NUMBER = {"expand": Expand, "fold": Fold}


@dataclasses.dataclass(frozen=True)
class LoggedTurn:
    """A turn as text.

    Attributes:
        text: what was written before the action; all of it where `why` is set.
        action: one of `syntax.ACTIONS`, or `MALFORMED`.
        content: the summary, the call, or the answer. number: of the entity. observation: of a call.
        why: what was wrong, as the environment told the model.
        context, written, read, again: tokens, where a model wrote it, see `trajectories.Written`.
    """

    text: str
    action: str
    content: str = ""
    number: int = 0
    observation: str = ""
    why: str = ""
    context: int = 0
    written: int = 0
    read: int = 0
    again: int = 0

    def __post_init__(self):
        if self.action not in (*ACTIONS, MALFORMED):
            raise UserError(f"action is {self.action!r}; it must be one of {', '.join((*ACTIONS, MALFORMED))}")
        if self.action == MALFORMED and not self.why:
            raise UserError("a malformed turn needs a 'why'")

    @property
    def taken(self) -> Action | None:
        """The action as the machine takes it; None of a turn that was not possible."""
        if self.why:
            return None
        if self.action in WITH_NUMBER:
            return WITH_NUMBER[self.action](self.number)
        if self.action == "call":
            return Call(self.content, self.observation)
        return WITH_CONTENT[self.action](self.content)


@dataclasses.dataclass(frozen=True)
class Log:
    """A trajectory as text, see the head of the file.

    Attributes:
        correct: whether the answer is right; None if nobody knows.
        extra: JSON values kept as they are: provenance, difficulty, counts.
    """

    id: str
    question: str
    turns: tuple[LoggedTurn, ...]
    finish: str = "answered"
    system: str = ""
    gold: str = ""
    correct: bool | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The final answer, "" if there is none."""
        last = self.turns[-1] if self.turns else None
        return last.content if last and last.action == "final_answer" and not last.why else ""

    @property
    def counts(self) -> dict[str, int]:
        """As of `trajectories.Trajectory`."""
        return tallied((turn.action, bool(turn.why)) for turn in self.turns)

    def states(self) -> list[Memory[str]]:
        """The memory after each turn. What was written in a turn that was not possible stands in the open step, without
        the reply. The marks of expands and folds stand there too: a step that is nothing but these can be committed. Of
        a call its step keeps the marks and the number.

        Raises:
            machine.IllegalAction: a turn without a `why` that is not possible.
        """
        memory, found = Memory(), []
        for turn in self.turns:
            memory = machine.write(memory, turn.text)
            action = turn.taken
            if isinstance(action, Call):
                number = len(memory.entities) + 1
                action = Call(f"<call>{turn.content}</call><memory>{number}</memory>", turn.observation)
            memory = memory if action is None else machine.apply(memory, action)
            if isinstance(action, Expand | Fold):
                memory = machine.write(memory, f"<{turn.action}>{turn.number}</{turn.action}>")
            found.append(memory)
        return found

    def to_json(self) -> dict:
        """As JSON values."""
        values = dataclasses.asdict(self)
        values["turns"] = [{name: x for name, x in turn.items() if x or name in ("text", "action")}
                           for turn in values["turns"]]  # fmt: skip
        return values


def from_json(record: Mapping, where: str = "record") -> Log:
    """A log from JSON values.

    Raises:
        UserError: a field is missing, unknown or of the wrong kind; a turn is not possible where it stands.
    """
    known = {field.name: field for field in dataclasses.fields(Log)}
    if unknown := sorted(set(record) - known.keys()):
        raise UserError(f"{where}: unknown field {unknown[0]!r} of a trajectory; known are {', '.join(known)}")
    for name in ("id", "question", "turns"):
        if name not in record:
            raise UserError(f"{where}: a trajectory needs the field {name!r}")
    for name in ("id", "question", "system", "gold", "finish"):
        if not isinstance(record.get(name, ""), str):
            raise UserError(f"{where}: field {name!r} must be a text")
    if record.get("finish", FINISHES[0]) not in FINISHES:
        raise UserError(f"{where}: finish is {record['finish']!r}; it must be one of {', '.join(FINISHES)}")
    if not isinstance(record["turns"], Sequence) or isinstance(record["turns"], str):
        raise UserError(f"{where}: field 'turns' must be a list")
    turns = tuple(_turn(turn, f"{where}, turn {number}") for number, turn in enumerate(record["turns"], 1))
    log = Log(**{**record, "turns": turns})
    try:
        log.states()
    except machine.IllegalAction as error:
        raise UserError(f"{where}: {error}") from None
    return log


def _turn(value, where: str) -> LoggedTurn:
    kinds = {field.name: int if field.type == "int" else str for field in dataclasses.fields(LoggedTurn)}
    if not isinstance(value, Mapping) or "action" not in value:
        raise UserError(f"{where}: a turn is an object with 'text' and 'action'")
    for name, found in value.items():
        if name not in kinds:
            raise UserError(f"{where}: unknown field {name!r}; known are {', '.join(kinds)}")
        if not isinstance(found, kinds[name]) or isinstance(found, bool):
            raise UserError(f"{where}: field {name!r} must be {'a whole number' if kinds[name] is int else 'a text'}")
    try:
        return LoggedTurn(**{"text": "", **value})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def turns_of(log: Log, syntax: Syntax) -> list[tuple[Turn, Ids]]:
    """The turns as token ids, and what the tools answered. Texts, contents and numbers are tokenised each by itself."""
    return [(_as_ids(turn, syntax), syntax.ids(turn.observation)) for turn in log.turns]


def _as_ids(turn: LoggedTurn, syntax: Syntax) -> Turn:
    if turn.why:  # its text has the marks that were written
        return Turn(tuple(syntax.tokenize(turn.text)), Malformed(turn.why))
    text = syntax.ids(turn.text)
    said = str(turn.number) if turn.action in WITH_NUMBER else turn.content
    content = syntax.ids(said)
    if turn.action in WITH_NUMBER:
        action = WITH_NUMBER[turn.action](turn.number)
    else:
        action = Call(content, ()) if turn.action == "call" else WITH_CONTENT[turn.action](content)
    return Turn(text, action, syntax.marked(turn.action, content))


def row_of(log: Log, syntax: Syntax, prompt: Sequence[int], semantics: str) -> LifetimesRow | RebuiltRow:
    """A log as a row in one of the two semantics; turns that were not possible are context and not trained.

    Args:
        prompt: ids of the question.

    Raises:
        UserError: a turn without a `why` is not possible.
    """
    row = ROWS[semantics](syntax, prompt)
    for number, ((turn, observation), logged) in enumerate(zip(turns_of(log, syntax), log.turns, strict=True), 1):
        why = row.turn(turn, observation, trained=not logged.why)
        if why and not logged.why:
            raise UserError(f"trajectory {log.id}, turn {number}: {why}")
    return row


def log_of(trajectory: Trajectory, syntax: Syntax, problem: Problem, **extra) -> Log:
    """A trajectory of a model's as text, and whether its answer is right. Its `id` is the problem's, if that has one in
    its metadata; these are in `extra`, with the problem's family and what the trajectory cost."""
    turns = tuple(_logged(written, syntax) for written in trajectory.turns)
    metadata = dict(problem.metadata or {})
    id, reused = str(metadata.pop("id", trajectory.id)), sum(each.reused for each in trajectory.turns)
    cost = {"peak": trajectory.peak, "dependency": trajectory.dependency, "reused": reused, "seed": trajectory.seed}
    why = {"why": trajectory.why} if trajectory.why else {}
    log = Log(id, problem.text, turns, trajectory.finish, problem.system, problem.answer,
              extra={"family": problem.family, **metadata, **extra, **cost, **why})  # fmt: skip
    return dataclasses.replace(log, correct=answers.right(problem, log.answer))


def _logged(written: Written, syntax: Syntax) -> LoggedTurn:
    turn, action = written.turn, written.turn.action
    counts = dict(context=written.context, written=len(written.logp), read=written.read, again=written.again)
    if written.why:
        name = MALFORMED if isinstance(action, Malformed) else NAMES[type(action)]
        return LoggedTurn(syntax.text(turn.text + turn.marked), name, why=written.why, **counts)
    content = "" if isinstance(action, Expand | Fold) else syntax.text(turn.marked[1:-1])
    number = action.number if isinstance(action, Expand | Fold) else 0
    said = syntax.text(written.observation)
    return LoggedTurn(syntax.text(turn.text), NAMES[type(action)], content, number, said, **counts)
