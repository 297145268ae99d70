"""A trajectory as a row: what each of the two semantics makes of the actions, for training and decoding alike.

Both grow turn by turn: `turn` takes what the model wrote and what the environment replied, `prompt` is what the next
turn goes on from, and `row` is all of it as one training row. So what is trained is what was decoded, by construction.

- `LifetimesRow`: nothing is ever rebuilt. A commit ends the lifetimes of its step's keys. An expand feeds the entity's
  tokens again, behind all else, and the fold ends those. What the summaries' keys saw when they were written stays in
  them.
- `RebuiltRow`: after an action the context is written anew as text. Tokens from the first change on are fed again, at
  the positions that they then have, and the keys they replace end. As a training row this is every step's own example,
  (context, what was written), with the prefixes that contexts share read once.

What differs from the paper: it trains every step as a row of its own. The numbers are the same (tests/test_memory.py
compares logits with those of separate rows); only the shared prefixes are not read again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lt_jax.layout.row import Role, Row, RowWriter
from lt_jax.layout.scheme import SEMANTICS
from lt_jax.memory import machine
from lt_jax.memory.machine import Call, Commit, Expand, FinalAnswer, Fold, IllegalAction, Memory
from lt_jax.memory.syntax import Ids, Malformed, Syntax, Turn


class LifetimesRow:
    """A trajectory under lifetimes.

    Two steps of two tokens s; their commits (c: mark, summary, mark) and numbers (o: what the environment says), of one
    token each here; then an expand of the first (s), its two tokens fed again (i), a thought, and the fold:

        x s s c o s s c o s i i s s s
        1 . . . . . . . . . . . . . .
        1 1 . . . . . . . . . . . . .
        1 1 1 . . . . . . . . . . . .
        1 1 1 1 . . . . . . . . . . .
        1 . . 1 1 . . . . . . . . . .
        1 . . 1 1 1 . . . . . . . . .
        1 . . 1 1 1 1 . . . . . . . .
        1 . . 1 1 1 1 1 . . . . . . .
        1 . . 1 1 . . 1 1 . . . . . .
        1 . . 1 1 . . 1 1 1 . . . . .
        1 . . 1 1 . . 1 1 1 1 . . . .
        1 . . 1 1 . . 1 1 1 1 1 . . .
        1 . . 1 1 . . 1 1 1 1 1 1 . .
        1 . . 1 1 . . 1 1 1 1 1 1 1 .
        1 . . 1 1 . . 1 1 1 . . 1 1 1

    Attributes:
        memory: the state after all turns.
        fresh: tokens of the environment that the next prompt has for the first time.
    """

    def __init__(self, syntax: Syntax, prompt: Sequence[int]):
        self.syntax, self.memory = syntax, Memory()
        self.writer = RowWriter()
        self.writer.write(prompt, Role.PROMPT)
        self.fresh = len(prompt)
        self.open: list[tuple[int, int]] = []  # where the open step's tokens are, but for observations in full
        self.payload: dict[int, tuple[int, int]] = {}  # where an active entity's own tokens are

    def turn(self, turn: Turn, observation: Ids = (), trained: bool = True) -> str | None:
        """Takes a turn in.

        Args:
            observation: what the tool answered, if the action is a call.
            trained: whether what the model wrote is a training target.

        Returns:
            why the turn was not possible, as the environment tells the model; None if it was.
        """
        self.fresh = 0
        taken = taken_in(self.syntax, self.memory, turn, observation)
        self._open(turn.text, Role.THOUGHT, trained)
        if isinstance(taken, Memory) and isinstance(turn.action, Commit):
            number = len(taken.entities)
            self.writer.write(turn.marked, Role.GIST, trained=trained, thought=number)
        else:
            self._open(turn.marked, Role.THOUGHT, trained)
        if not isinstance(taken, Memory):
            complaint = self.syntax.complaint(taken)
            self._open(complaint, Role.INSTRUCTION, False)
            self.fresh = len(complaint)
            self.memory = written_in(self.memory, turn, complaint)
            return taken
        before, self.memory = self.memory, taken
        _AFTER[type(turn.action)](self, before, turn.action)
        return None

    def prompt(self) -> Row:
        """What the next turn goes on from."""
        return self.writer.row()

    @property
    def visible(self) -> int:
        """Tokens that the next one will see."""
        return sum(death > len(self.writer) for death in self.writer.columns["death"])

    @property
    def length(self) -> int:
        """Tokens of the row, with what the next turn goes on from."""
        return len(self.writer)

    def row(self) -> Row:
        """The trajectory as a training row."""
        return self.writer.row()

    def _open(self, ids: Ids, role: Role, trained: bool) -> None:
        if ids:
            start = self.writer.write(ids, role, trained=trained, thought=len(self.memory.entities) + 1)
            self.open.append((start, len(self.writer)))

    def _end(self, span: tuple[int, int]) -> None:
        self.writer.forget(*span)

    def _committed(self, before: Memory, action: Commit) -> None:
        for span in self.open:
            self._end(span)
        self.open = []
        for entity in before.entities:
            if entity.active and not self.memory.entities[entity.number - 1].active:
                self._end(self.payload.pop(entity.number))
        number = len(self.memory.entities)
        label = self.syntax.label(number)
        self.writer.write(label, Role.OUTPUT, thought=number)
        self.fresh = len(label)

    def _expanded(self, before: Memory, action: Expand) -> None:
        shown = self.syntax.full(action.number, self.memory.entity(action.number).raw)
        start = self.writer.write(shown, Role.INSTRUCTION, thought=action.number)
        self.payload[action.number] = (start, len(self.writer))

    def _folded(self, before: Memory, action: Fold) -> None:
        self._end(self.payload.pop(action.number))

    def _called(self, before: Memory, action: Call) -> None:
        entity = self.memory.entities[-1]
        label, shown = self.syntax.label(entity.number), self.syntax.full(entity.number, entity.raw)
        head, (last,) = label[:-1], label[-1:]
        self._open(head, Role.OUTPUT, False)
        start = self.writer.write(shown[len(head) : -1], Role.INSTRUCTION, thought=entity.number)
        self.payload[entity.number] = (start, len(self.writer))
        self._open((last,), Role.OUTPUT, False)
        self.fresh = len(shown)

    def _answered(self, before: Memory, action: FinalAnswer) -> None:
        pass  # nothing is seen any more


_AFTER: dict[type, Callable] = {
    Commit: LifetimesRow._committed,
    Expand: LifetimesRow._expanded,
    Fold: LifetimesRow._folded,
    Call: LifetimesRow._called,
    FinalAnswer: LifetimesRow._answered,
}


class RebuiltRow:
    """A trajectory whose context is rebuilt as text after every action.

    A step of two tokens s with its commit c; the context is then prompt, summary and number (i i), fed anew, and the
    model goes on (s). Under the marks their positions:

        x s s c i i s
        1 . . . . . .
        1 1 . . . . .
        1 1 1 . . . .
        1 1 1 1 . . .
        1 . . . 1 . .
        1 . . . 1 1 .
        1 . . . 1 1 1

        0 1 2 3 1 2 3

    Attributes as of `LifetimesRow`.
    """

    def __init__(self, syntax: Syntax, prompt: Sequence[int]):
        self.syntax, self.memory, self.head = syntax, Memory(), tuple(int(each) for each in prompt)
        self.writer = RowWriter()
        self.writer.write(self.head, Role.PROMPT)
        self.fresh = len(self.head)
        self.path = list(range(len(self.head)))  # indices of the row that are the sequence as it is now
        self.stale = False  # whether the memory has changed since the sequence was written

    def turn(self, turn: Turn, observation: Ids = (), trained: bool = True) -> str | None:
        """As `LifetimesRow.turn`."""
        self.prompt()
        for ids, role in ((turn.text, Role.THOUGHT), (turn.marked, Role.GIST)):
            self._append(ids, role, trained)
        taken = taken_in(self.syntax, self.memory, turn, observation)
        self.stale = True
        if isinstance(taken, Memory):
            self.memory = taken
            self.fresh = self._said(turn)
            return None
        complaint = self.syntax.complaint(taken)
        self.memory = written_in(self.memory, turn, complaint)
        self.fresh = len(complaint)
        return taken

    def prompt(self) -> Ids:
        """What the next turn goes on from: the ids of the context."""
        if self.stale and self.memory.answer is None:
            context = self.head + self.syntax.context(self.memory)
            same = 0  # at least one token is read, for what comes after it to be predicted from
            while same < min(len(self.path), len(context) - 1) and self._token(same) == context[same]:
                same += 1
            for index in self.path[same:]:
                self.writer.end(index, index + 1, len(self.writer))
            del self.path[same:]
            self._append(context[same:], Role.INSTRUCTION, False)
            self.stale = False
        return tuple(self._token(place) for place in range(len(self.path)))

    @property
    def visible(self) -> int:
        """Tokens that the next one will see."""
        return len(self.prompt())

    @property
    def length(self) -> int:
        """Tokens of the row, with what the next turn goes on from."""
        self.prompt()
        return len(self.writer)

    def row(self) -> Row:
        """The trajectory as a training row."""
        return self.writer.row()

    def _token(self, place: int) -> int:
        return self.writer.columns["tokens"][self.path[place]]

    def _append(self, ids: Ids, role: Role, trained: bool) -> None:
        number = len(self.memory.entities) + 1
        start = self.writer.write(ids, role, trained=trained, thought=number, position=len(self.path))
        self.path += range(start, len(self.writer))

    def _said(self, turn: Turn) -> int:
        """Tokens that the environment says for the first time, in reply to a turn that was possible."""
        entity = self.memory.entities[-1] if self.memory.entities else None
        if isinstance(turn.action, Commit):
            return len(self.syntax.label(entity.number))
        return len(self.syntax.full(entity.number, entity.raw)) if isinstance(turn.action, Call) else 0


ROWS = dict(zip(SEMANTICS, (RebuiltRow, LifetimesRow), strict=True))


def taken_in(syntax: Syntax, memory: Memory, turn: Turn, observation: Ids = ()) -> Memory | str:
    """The memory after a turn, or why the turn was not possible."""
    action = turn.action
    if isinstance(action, Malformed):
        return action.why
    if isinstance(action, Call):  # its step keeps the number as well
        action = Call(turn.marked + syntax.label(len(memory.entities) + 1), observation)
    # What shows or hides an entity is part of the step that it is written in; a summary is not.
    marked = turn.marked if isinstance(action, Expand | Fold) else ()
    try:
        after = machine.apply(machine.write(memory, turn.text), action)
    except IllegalAction as error:
        return str(error)
    return machine.write(after, marked)


def written_in(memory: Memory, turn: Turn, complaint: Ids) -> Memory:
    """The memory after a turn that was not possible: it stands in the open step as it was written, with the reply."""
    return machine.write(machine.write(machine.write(memory, turn.text), turn.marked), complaint)
