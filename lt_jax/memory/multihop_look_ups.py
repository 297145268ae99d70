"""Look-ups and nothing else: what a small model has to be able to do before trails can teach it anything.

    7c 12k 9m        what summaries say: which entity is whose page, in no order
    m9 c7 m9 k12     names that are asked for; the number of each is to be found above, and nothing else is trained

To find what stands beside a name takes two layers that learn together (one puts into each token what stands before it,
the next finds the token that is the name; compare "induction heads", Olsson et al. 2022), and a model learns nothing
for long before it learns both at once. On trails one token in 500 depends on that, and 1,200 steps of 5,120 tokens did
not do. Here half of the tokens does, every drill has names and numbers of its own, and the drills begin with two names
and numbers of one digit and end with twenty: with two digits from the start the model was at chance after 500 steps.
Then what is listed moves away from what is asked, as it does on a trail.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from lt_jax.errors import UserError
from lt_jax.layout.row import Role, Row, RowWriter
from lt_jax.memory.multihop import NEXT
from lt_jax.memory.multihop_expert import listed, noted
from lt_jax.memory.syntax import REPLY, Syntax

FEW, MANY = 2, 20  # names of the first and of the last drills
WAIT, GROW = 0.1, 0.4  # the shares of the drills that have the fewest names, and over which these become more
LEAVE, FAR = 0.3, 1500  # the share over which they move away then, and the most positions that they do
DIGIT, MOST = 9, 40  # the largest numbers of one digit and of two
STEP = 4  # names of a summary, as the expert's
MORE = 12  # a drill asks so many times more than it has names


@dataclasses.dataclass(frozen=True)
class LookUps:
    """One drill.

    Attributes:
        entries: {name: number of its entity}, as the summaries list them.
        asked: names in the order in which they are asked for.
        gap: positions between what is listed and what is asked. On a trail there are hundreds, of tokens that have died
            meanwhile, and a model that learned to look up from near by cannot do it from there.
    """

    entries: dict[str, int]
    asked: tuple[str, ...]
    gap: int = 0

    def row(self, syntax: Syntax, framed: bool = False) -> Row:
        """The drill as a row without lifetimes; of what is asked the numbers are trained.

        Args:
            framed: whether it is written with the marks of a trail, for a model that knows plain drills already:
                summaries of a few names, and of every name that is asked for a note and an expand.
        """
        row, entries = RowWriter(), [listed(*each) for each in self.entries.items()]
        if framed:
            for first in range(0, len(entries), STEP):
                said = " ".join([*entries[first : first + STEP], NEXT, self.asked[-1]])
                row.write(syntax.marked("commit", syntax.ids(said)) + syntax.label(first + STEP), Role.PROMPT)
        else:
            row.write(syntax.ids(" ".join(entries) + "\n"), Role.PROMPT)
        at = len(row) + self.gap
        for name in self.asked:
            number = self.entries[name]
            known, whole = syntax.ids(name), syntax.ids(noted(name, number))
            answer = whole[len(known) :]
            behind = syntax.marked("expand", syntax.ids(str(number))) if framed else syntax.ids(" ")
            last = syntax.pair(REPLY)[1:] if framed else ()
            row.write(known, Role.TEXT, position=at)
            row.write((*answer, *behind), Role.TEXT, trained=True, position=at + len(known))
            row.write(last, Role.TEXT, position=at + len(known) + len(answer) + len(behind))
            at += len(known) + len(answer) + len(behind) + len(last)
        return row.row()


class Drills(Sequence):
    """So many drills, the easy ones first. Each follows from its number alone.

    Args:
        count: how many.
        names: what pages can be called, at least `MANY`.
    """

    def __init__(self, count: int, names: Sequence[str]):
        if len(names) < MANY:
            raise UserError(f"look-ups need {MANY} names or more, not {len(names)}")
        self.count, self.names = count, list(names)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LookUps:
        if not 0 <= index < self.count:
            raise IndexError(index)
        draw = random.Random(f"look-ups/{index}")
        grown = min(1.0, max(0.0, (index / self.count - WAIT) / GROW))
        most = round(FEW * (MANY / FEW) ** grown)
        size = draw.choice((most, draw.randint(FEW, most)))
        two = size > DIGIT or most > DIGIT and draw.random() < 0.5
        numbers = draw.sample(range(1, (MOST if two else DIGIT) + 1), size)
        entries = dict(zip(draw.sample(self.names, size), numbers, strict=True))
        asked = tuple(draw.choices(list(entries), k=size + MORE))
        away = min(1.0, max(0.0, (index / self.count - WAIT - GROW) / LEAVE))
        return LookUps(entries, asked, round(FAR ** (away * draw.random())) - 1)
