"""The memory of LightThinker++ (arXiv 2604.03679, section 4) as a pure state: entities, and what is visible of them.

An entity k is a pair (R_k, Z_k): what was written or observed, and the summary that stands for it. It is `archived`
(Z_k is shown) or `active` (R_k is shown). What belongs to no entity yet is the open step. Five actions change it:

    commit(Z)        the open step becomes an entity, archived; so do the observations that it brought
    expand(k)        archived -> active
    fold(k)          active -> archived
    call(c)          asks a tool; its answer is an entity, active, whose summary is the call itself
    final_answer(a)  ends

R_k of a step has its calls where its observations were, so a commit leaves Z_k alone, however many calls the step had.
An archived observation of an earlier step is not visible at all: who needs it expands the step, reads there which
number the call had, and expands that.

What differs from the paper, where R_k holds the observations themselves: they are entities of their own (the released
data of the agents number both), so an agent can bring back one page without the others of its step, and may fold a page
before it commits. A fold needs an active entity, as there; that an observation is active from the start is the one way
to fold without an expand before it.

Contents are anything that can be joined with `+`: a text, or a tuple of token ids. The state never looks into them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Generic, TypeVar

from lt_jax.errors import UserError

Content = TypeVar("Content", str, tuple)

STEP, OBSERVATION = "step", "observation"
POSSIBLE = "; possible here: "  # in a complaint, between what was wrong and what would be allowed


class IllegalAction(UserError):
    """An action that the state does not allow. The message says which would have been allowed.

    Attributes:
        legal: the actions that the state allows, as `Memory.legal` words them.
    """

    def __init__(self, why: str, legal: tuple[str, ...]):
        super().__init__(f"{why}{POSSIBLE}{', '.join(legal) or 'nothing'}")
        self.legal = legal


class Finished(IllegalAction):
    """The answer has been given."""


class NothingOpen(IllegalAction):
    """A commit of a step in which nothing was written."""


class EmptySummary(IllegalAction):
    """A commit without a summary."""


class UnknownEntity(IllegalAction):
    """There is no entity of that number."""


class AlreadyActive(IllegalAction):
    """An expand of what is shown in full."""


class AlreadyArchived(IllegalAction):
    """A fold of what is not shown in full."""


@dataclasses.dataclass(frozen=True)
class Commit(Generic[Content]):
    """Ends the open step; `summary` is what will be seen of it."""

    summary: Content


@dataclasses.dataclass(frozen=True)
class Expand:
    """Shows an entity in full."""

    number: int


@dataclasses.dataclass(frozen=True)
class Fold:
    """Shows an entity's summary again."""

    number: int


@dataclasses.dataclass(frozen=True)
class Call(Generic[Content]):
    """Asks a tool. `observation` is its answer, and belongs to the action: a log of actions can be replayed. `call` is
    what its step keeps of it."""

    call: Content
    observation: Content


@dataclasses.dataclass(frozen=True)
class FinalAnswer(Generic[Content]):
    """Ends the trajectory."""

    answer: Content


Action = Commit | Expand | Fold | Call | FinalAnswer
NAMES = {Commit: "commit", Expand: "expand", Fold: "fold", Call: "call", FinalAnswer: "final_answer"}


@dataclasses.dataclass(frozen=True)
class Entity(Generic[Content]):
    """One entity.

    Attributes:
        number: k, counted from 1 in the order in which entities come to be.
        kind: `STEP` or `OBSERVATION`.
        raw, summary: R_k and Z_k.
        active: whether R_k is shown.
    """

    number: int
    kind: str
    raw: Content
    summary: Content
    active: bool

    @property
    def shown(self) -> Content:
        """m_k: what is visible of it."""
        return self.raw if self.active else self.summary


@dataclasses.dataclass(frozen=True)
class Memory(Generic[Content]):
    """The state.

    Attributes:
        entities: in the order of their numbers.
        open: the open step: contents that were written, and numbers of the observations between them.
        answer: the final answer, or None.
    """

    entities: tuple[Entity[Content], ...] = ()
    open: tuple[Content | int, ...] = ()
    answer: Content | None = None

    @property
    def legal(self) -> tuple[str, ...]:
        """The actions that are possible now, in words."""
        if self.answer is not None:
            return ()
        expand = ranges(each.number for each in self.entities if not each.active)
        fold = ranges(each.number for each in self.entities if each.active)
        named = [f"{name} of {numbers}" for name, numbers in (("expand", expand), ("fold", fold)) if numbers]
        return (*(["commit"] if self.written else []), *named, "call", "final_answer")

    @property
    def written(self) -> bool:
        """Whether the open step has anything in it: text, or an observation."""
        return bool(self.open)

    def entity(self, number: int) -> Entity[Content]:
        """The entity of that number. Raises UnknownEntity."""
        if not 1 <= number <= len(self.entities):
            raise UnknownEntity(f"there is no entity {number}", self.legal)
        return self.entities[number - 1]

    def visible(self) -> tuple[Entity[Content] | Content, ...]:
        """The managed context, in order: steps, and observations of theirs that are active; then the parts of the open
        step, with all its observations. Of an entity `shown` is visible."""
        inside = {part for part in self.open if isinstance(part, int)}
        closed = (each for each in self.entities if each.number not in inside and (each.kind == STEP or each.active))
        return (*closed, *(self.entities[part - 1] if isinstance(part, int) else part for part in self.open))


def ranges(numbers: Iterable[int]) -> str:
    """Rising numbers in words, as in "1-4, 6"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def write(memory: Memory, content: Content) -> Memory:
    """Appends to the open step what was written there without any action, or was told by the environment."""
    if not len(content):
        return memory
    _check_unfinished(memory)
    return dataclasses.replace(memory, open=memory.open + (content,))


def apply(memory: Memory, action: Action) -> Memory:
    """The state after an action.

    Raises:
        IllegalAction: one of its kinds; the state is as it was.
    """
    _check_unfinished(memory)
    return _HOW[type(action)](memory, action)


def replay(log: Iterable[Action | Content], memory: Memory | None = None) -> Memory:
    """The state after a log of actions and of contents that were written between them."""
    memory = Memory() if memory is None else memory
    for entry in log:
        memory = apply(memory, entry) if isinstance(entry, Action) else write(memory, entry)
    return memory


def _check_unfinished(memory: Memory) -> None:
    if memory.answer is not None:
        raise Finished("the answer has been given", memory.legal)


def _commit(memory: Memory, action: Commit) -> Memory:
    if not memory.written:
        raise NothingOpen("nothing was written since the last commit", memory.legal)
    if not len(action.summary):
        raise EmptySummary("the summary is empty", memory.legal)
    raw = action.summary[:0]  # of its kind
    for part in memory.open:
        raw += memory.entities[part - 1].summary if isinstance(part, int) else part
    put_away = {part for part in memory.open if isinstance(part, int)}
    entities = tuple(_turned(each, False) if each.number in put_away else each for each in memory.entities)
    return Memory((*entities, Entity(len(entities) + 1, STEP, raw, action.summary, False)))


def _expand(memory: Memory, action: Expand) -> Memory:
    if memory.entity(action.number).active:
        raise AlreadyActive(f"entity {action.number} is shown in full already", memory.legal)
    return _with(memory, action.number, True)


def _fold(memory: Memory, action: Fold) -> Memory:
    if not memory.entity(action.number).active:
        raise AlreadyArchived(f"entity {action.number} is not expanded", memory.legal)
    return _with(memory, action.number, False)


def _call(memory: Memory, action: Call) -> Memory:
    number = len(memory.entities) + 1
    entity = Entity(number, OBSERVATION, action.observation, action.call, True)
    return dataclasses.replace(memory, entities=(*memory.entities, entity), open=(*memory.open, number))


def _final_answer(memory: Memory, action: FinalAnswer) -> Memory:
    return dataclasses.replace(memory, answer=action.answer)


_HOW = {Commit: _commit, Expand: _expand, Fold: _fold, Call: _call, FinalAnswer: _final_answer}


def _turned(entity: Entity, active: bool) -> Entity:
    return dataclasses.replace(entity, active=active)


def _with(memory: Memory, number: int, active: bool) -> Memory:
    entities = tuple(_turned(each, active) if each.number == number else each for each in memory.entities)
    return dataclasses.replace(memory, entities=entities)
