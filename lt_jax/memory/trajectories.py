"""Trajectories from an engine: a model that manages its memory, over many questions at once, with tools if it has any.

    question ─ row.prompt() ─ engine (from the longest prefix that is there) ─ a turn ─ syntax ─ action ─ row.turn() ─┐
                    ▲                                                        tools, in threads, while others go on ◄──┤
                    └─────────────────────────────────────────────────────────────────────────────────────────────────┘

What differs from the paper: a turn that is not possible does not end the trajectory. The environment says what was
wrong and what would be possible, the turn stays in the open step, and it is counted; only several such turns one after
the other end it. Every trajectory ends in one of `FINISHES`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from lt_jax.decode import Completion, Engine, Request, Sampling
from lt_jax.decode.request import sample_seed
from lt_jax.errors import UserError
from lt_jax.layout.scheme import SEMANTICS
from lt_jax.memory.machine import NAMES, Call, Memory
from lt_jax.memory.rows import ROWS, LifetimesRow, RebuiltRow
from lt_jax.memory.syntax import Ids, Malformed, Syntax, Turn

# context: more keys than `Limits.context`, or than the engine has room for; positions: the row has come to the model's
# last position (or the engine's horizon), dead tokens counted.
FINISHES = ("answered", "malformed", "turns", "length", "context", "positions", "nan", "refused", "cancelled")
MALFORMED, ILLEGAL = "malformed", "illegal"  # turns that were no action, and actions that were not possible
Tool = Callable[[str], str]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Where a trajectory ends, and how it is sampled.

    Attributes:
        semantics: "rebuild" or "lifetimes"; the one that the model was trained with.
        turn: the most tokens of a turn. One that comes to it without an action is told so, as if it had been malformed.
        turns: the most turns.
        tokens: the most tokens that the model writes in all.
        malformed: how many turns that were not possible may follow each other; the last of them ends the trajectory.
        context: the most keys that a turn may begin with, or None for what the engine has room for.
        row: the most tokens of the training row, up to the last one that the model wrote; None sets no limit.
        sampling: None is the engine's.
    """

    semantics: str = "lifetimes"
    turn: int = 512
    turns: int = 200
    tokens: int = 16384
    malformed: int = 3
    context: int | None = None
    row: int | None = None
    sampling: Sampling | None = None

    def __post_init__(self):
        if self.semantics not in SEMANTICS:
            raise UserError(f"memory.semantics is {self.semantics!r}; it must be one of {', '.join(SEMANTICS)}")
        for name in ("turn", "turns", "tokens", "malformed"):
            if getattr(self, name) < 1:
                raise UserError(f"memory.{name} is {getattr(self, name)}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class Written:
    """A turn as it was sampled.

    Attributes:
        turn: what was read in it.
        logp: [N] float32, of each token that was written.
        visible: [N] int32, keys that each of them saw, itself included.
        why: what was wrong with it, or "".
        observation: of a call.
        context: keys that were visible when it began.
        read: tokens that were fed before it; of them `fresh` for the first time, and `again` once more. reused: tokens
            that were there.
    """

    turn: Turn
    logp: np.ndarray
    visible: np.ndarray
    why: str
    observation: Ids
    context: int
    read: int
    fresh: int
    again: int
    reused: int


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """A question and all that was done about it.

    Attributes:
        id: of the question.
        turns: in order.
        finish: one of `FINISHES`.
        row: as it was decoded; `row.row()` is the training row, `row.memory` the memory in the end.
        why: of a "refused" one.
        seed: of its sampling.
    """

    id: object
    turns: tuple[Written, ...]
    finish: str
    row: LifetimesRow | RebuiltRow
    why: str = ""
    seed: int = 0

    @property
    def memory(self) -> Memory:
        return self.row.memory

    @property
    def answer(self) -> Ids | None:
        """The final answer, or None."""
        return self.row.memory.answer

    @property
    def tokens(self) -> int:
        """Tokens that the model wrote."""
        return sum(len(each.logp) for each in self.turns)

    @property
    def peak(self) -> int:
        """The most keys that were visible to any token that was written (the method's paper, section 5)."""
        return max((int(each.visible.max(initial=each.context)) for each in self.turns), default=0)

    @property
    def dependency(self) -> int:
        """Keys that were visible, summed over the tokens that were written. Tokens read are counted in `again`."""
        return int(sum(each.visible.sum() for each in self.turns))

    @property
    def again(self) -> int:
        """Tokens that were fed once more, after an edit of the memory or because an entity was shown in full."""
        return sum(each.again for each in self.turns)

    @property
    def counts(self) -> dict[str, int]:
        """How often each action was taken; `malformed` and `illegal` are turns that were not possible."""
        return tallied((NAMES.get(type(each.turn.action), MALFORMED), bool(each.why)) for each in self.turns)


def tallied(turns: Iterable[tuple[str, bool]]) -> dict[str, int]:
    """How often each action was taken, and how many turns were not possible, from (name, whether it was not)."""
    found = dict.fromkeys((*NAMES.values(), MALFORMED, ILLEGAL), 0)
    for name, wrong in turns:
        found[ILLEGAL if wrong and name != MALFORMED else name] += 1
    return found


@dataclasses.dataclass
class _Under:
    """A trajectory under way."""

    id: object
    row: LifetimesRow | RebuiltRow
    seed: int
    turns: list[Written] = dataclasses.field(default_factory=list)
    wrong: int = 0  # turns that were not possible, since the last that was
    handle: int = -1  # of the last request


class Trajectories:
    """Runs trajectories on an engine, which is its own until all are done.

    Args:
        engine: of a scheme with method "memory" or "vanilla". Where it has fewer rows than there are questions, a
            context that was overwritten while others were under way is read again.
        syntax: of the model.
        tools: {name: function}. The call "search: red" is tools["search"]("red"). What it raises or returns is the
            observation. Calls run in threads, so that rows that wait for them hold up nobody.
        threads: how many calls run at once.
    """

    def __init__(
        self, engine: Engine, syntax: Syntax, limits: Limits, tools: Mapping[str, Tool] | None = None, threads: int = 8
    ):
        trained = engine.scheme.memory_semantics
        if trained not in (None, limits.semantics):
            raise UserError(
                f"the model was trained with semantics {trained!r} and cannot be decoded with {limits.semantics!r}; "
                f"set memory.semantics to {trained!r}"
            )
        self.engine, self.syntax, self.limits, self.tools = engine, syntax, limits, dict(tools or {})
        self.threads = threads

    def run(self, questions: Iterable[tuple[object, Sequence[int], int]]) -> Iterable[Trajectory]:
        """Trajectories in the order in which they end.

        Args:
            questions: (id, prompt ids, seed) of each. The next one is asked for when a row is free.
        """
        with contextlib.closing(self.rounds(questions)) as rounds:
            for ended in rounds:
                yield from ended

    def rounds(self, questions: Iterable[tuple[object, Sequence[int], int]]) -> Iterator[list[Trajectory]]:
        """After each block of decoding steps the trajectories that have ended. Arguments as of `run`.

        Where nobody wants to know the rest, what is under way is given up, once the calls of tools have come back.
        """
        source, more = iter(questions), True
        under: dict[int, _Under] = {}  # by the engine's handle
        waiting: dict[concurrent.futures.Future, tuple[_Under, Turn, Completion]] = {}
        with concurrent.futures.ThreadPoolExecutor(self.threads, "tool") as pool:
            try:
                while more or under or waiting:
                    while more and len(under) + len(waiting) < self.engine.config.rows:
                        question = next(source, None)
                        more = question is not None
                        if more:
                            self._ask(under, self._begun(*question))
                    yield self._round(under, waiting, pool)
            except GeneratorExit:
                for handle in under:
                    self.engine.cancel(handle)
                while self.engine.busy:
                    self.engine.step()
                raise

    def _round(self, under: dict, waiting: dict, pool) -> list[Trajectory]:
        """A block of decoding steps, and what tools have answered by then. Returns what is ended by it."""
        ended = []
        for event in self.engine.step():
            if event.completion is not None:
                ended += self._written(under.pop(event.handle), event.completion, under, waiting, pool)
        done = [each for each in waiting if each.done()]
        if not (done or ended or self.engine.busy) and waiting:  # what has ended is handed out first
            done = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED).done
        for each in done:
            one, turn, completion = waiting.pop(each)
            ended += self._taken(one, turn, completion, under, self.syntax.ids(each.result()))
        return ended

    def complete(self, questions: Iterable[tuple[object, Sequence[int], int]]) -> list[Trajectory]:
        """All trajectories, in the order of the questions."""
        questions = list(questions)
        numbered = [(number, prompt, seed) for number, (_, prompt, seed) in enumerate(questions)]
        found = sorted(self.run(numbered), key=lambda each: each.id)
        return [dataclasses.replace(each, id=question[0]) for each, question in zip(found, questions, strict=True)]

    def _begun(self, id: object, prompt: Sequence[int], seed: int) -> _Under:
        if self.limits.row is not None and len(prompt) >= self.limits.row:
            raise UserError(f"question {id}: a prompt of {len(prompt)} tokens leaves no room in a row of "
                            f"{self.limits.row} (memory.row)")  # fmt: skip
        return _Under(id, ROWS[self.limits.semantics](self.syntax, prompt), seed)

    def _ask(self, under: dict, one: _Under) -> None:
        """Submits the next turn."""
        left = self.limits.tokens - sum(len(each.logp) for each in one.turns)
        prompt = one.row.prompt()
        if self.limits.row is not None:
            left = min(left, self.limits.row - one.row.length)
        request = Request(
            prompt, min(self.limits.turn, left), sample_seed(one.seed, len(one.turns)),
            sampling=self.limits.sampling, stop=self.syntax.stops, never=self.syntax.reply,
        )  # fmt: skip
        one.handle = self.engine.submit(request)
        under[one.handle] = one

    def _written(self, one, completion, under, waiting, pool) -> list[Trajectory]:
        """A turn has been written: a tool is asked, or it is taken in at once. Returns what is ended by it."""
        if completion.finish in ("refused", "nan", "cancelled"):
            return [self._ended(one, completion.finish, completion.why)]
        ids = completion.tokens.tolist()
        ids = ids[:-1] if completion.finish == "eos" else ids
        turn = self.syntax.read(ids, ended=completion.finish in ("eos", "stop"))
        if isinstance(turn.action, Call):
            asked = called(self.tools, self.syntax.text(turn.action.call))
            if not isinstance(asked, Malformed):
                waiting[pool.submit(asked)] = one, turn, completion
                return []
            turn = Turn(turn.text + turn.marked, asked)
        return self._taken(one, turn, completion, under)

    def _taken(self, one: _Under, turn: Turn, completion: Completion, under: dict, observation: Ids = ()):
        """Takes a turn in and goes on, or ends the trajectory."""
        fresh = min(one.row.fresh, completion.read)
        why = one.row.turn(turn, observation) or ""
        size = len(turn.text) + len(turn.marked)
        one.turns.append(Written(
            turn, completion.logp[:size], completion.visible[:size], why, observation,
            context=int(completion.visible[0]) - 1 if len(completion.visible) else 0, read=completion.read,
            fresh=fresh, again=completion.read - fresh, reused=completion.reused,
        ))  # fmt: skip
        one.wrong = one.wrong + 1 if why else 0
        limits = self.limits
        if one.row.memory.answer is not None:
            return [self._ended(one, "answered")]
        if completion.finish in ("capacity", "positions"):
            return [self._ended(one, "context" if completion.finish == "capacity" else "positions")]
        if one.wrong >= limits.malformed:
            return [self._ended(one, "malformed")]
        if len(one.turns) >= limits.turns:
            return [self._ended(one, "turns")]
        if sum(len(each.logp) for each in one.turns) >= limits.tokens:
            return [self._ended(one, "length")]
        if limits.row is not None and one.row.length >= limits.row:
            return [self._ended(one, "length")]
        if limits.context is not None and one.row.visible > limits.context:
            return [self._ended(one, "context")]
        self._ask(under, one)
        return []

    def _ended(self, one: _Under, finish: str, why: str = "") -> Trajectory:
        if finish == "refused" and one.turns:  # it has outgrown the engine
            finish = "context" if len(one.row.prompt()) < self.engine.rules.row_limit else "positions"
        self.engine.ended(one.handle)
        return Trajectory(one.id, tuple(one.turns), finish, one.row, why, one.seed)


def called(tools: Mapping[str, Tool], call: str) -> Callable[[], str] | Malformed:
    """What asks the tool that a call names, as in "search: red", and returns its answer; `Malformed` if there is none.

    What the tool raises is an answer too: the model is told, and no other trajectory is touched.
    """
    name, _, argument = call.partition(":")
    tool = tools.get(name.strip())
    if tool is None:
        return Malformed(f"there is no such tool; there are: {', '.join(sorted(tools)) or 'none'}")

    def ask() -> str:
        try:
            return str(tool(argument.strip()))
        except Exception as error:  # a tool is the user's and may raise anything
            return f"{type(error).__name__}: {error}"

    return ask
