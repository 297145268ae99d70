"""Look-ups and nothing else: what a small model has to be able to do before trails can teach it anything.

    7c 12k 9m        what summaries say: which entity is whose page, in no order
    m9 c7 k12        names that are asked for; the number of each is to be found above, and little else is trained

To find what stands beside a name takes two layers that learn together (one puts into each token what stands before it,
the next finds the token that is the name; compare "induction heads", Olsson et al. 2022), and a model learns nothing
for long before it learns both at once. On trails one token in 500 depends on that, and 1,200 steps of 5,120 tokens did
not do. Here a quarter to a third of the tokens do, and every drill has names and numbers of its own. They get
harder by stages:

1. From two names with numbers of one digit to twenty with two. With two digits from the start a model of four layers
   was at chance after 500 steps.
2. What is listed moves away from what is asked. On a trail hundreds of tokens lie between, dead ones too, and a model
   that has learned to look up near by fails at a distance of 100 positions.
3. Among the marks of a trail, where names stand that no number belongs to.

No name is asked for twice: its first answer would be what the second is copied from. All of it depends on rotary
frequencies that hardly turn within a trail; a base of 100,000 has twice as many of them as one of 10,000 does.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from lt_jax.errors import UserError
from lt_jax.layout.row import Role, Row, RowWriter
from lt_jax.memory.multihop import END, FOOD, FRIEND, NEXT
from lt_jax.memory.multihop_expert import listed, noted
from lt_jax.memory.syntax import REPLY, Ids, Syntax

DIGIT = 9  # the largest number of one digit
STEP = 4  # names of a summary, as the expert's
FRAMED = 8  # the most names that a framed drill asks for; a trail asks for few


@dataclasses.dataclass(frozen=True)
class Stage:
    """Drills that get harder evenly, from first to last.

    Attributes:
        count: how many.
        names: the most names of the first and of the last drill; half of the drills have that many, the others
            any number up to it.
        gap: the most positions between what is listed and what is asked, of the first and of the last drill.
        framed: the share of drills with the marks of a trail.
        most: the largest number.
    """

    count: int
    names: tuple[int, int]
    gap: tuple[int, int] = (1, 1)
    framed: float = 0.0
    most: int = 40


FAR, FARTHER = 1500, 4500  # positions of a trail of 22 stops, and of one of 48
GROWING = (
    Stage(20_000, (2, 4)), Stage(10_000, (5, DIGIT)), Stage(12_000, (12, 12)), Stage(14_000, (12, 20)),
    Stage(10_000, (20, 20), (4, FAR)), Stage(20_000, (20, 20), (FAR, FAR), 0.6),
)  # fmt: skip
FURTHER = (  # after these, for trails of up to 48 stops
    Stage(6_000, (20, 48), (FAR, FARTHER), 0.4, 99), Stage(6_000, (48, 48), (FARTHER, FARTHER), 0.6, 99),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LookUps:
    """One drill.

    Attributes:
        entries: {name: number of its entity}, as the summaries list them.
        asked: names in the order in which they are asked for.
        gap: positions between what is listed and what is asked.
        framed: whether it is written as what is left of a trail: summaries of a few names, as far from each other as
            from what is asked, and for every name that is asked what makes an agent ask, a note and an expand.
    """

    entries: dict[str, int]
    asked: tuple[str, ...]
    gap: int = 0
    framed: bool = False

    def row(self, syntax: Syntax) -> Row:
        """The drill as a row without lifetimes. Of what is asked the numbers are trained, and in a framed one the
        expands, and the names that a page says."""
        row = RowWriter()
        at = self._summaries(row, syntax) if self.framed else self._list(row, syntax)
        for place, name in enumerate(self.asked):
            number = self.entries[name]
            known, whole = syntax.ids(name), syntax.ids(noted(name, number))
            answer = whole[len(known) :]
            before, said = self._reason(place, syntax) if self.framed else ((), False)
            behind = syntax.marked("expand", syntax.ids(str(number))) if self.framed else syntax.ids(" ")
            row.write(before, Role.TEXT, position=at)
            row.write(known, Role.TEXT, trained=said, position=at + len(before))
            at += len(before) + len(known)
            row.write((*answer, *behind), Role.TEXT, trained=True, position=at)
            at += len(answer) + len(behind)
        return row.row()

    def _list(self, row: RowWriter, syntax: Syntax) -> int:
        """Writes what is listed in one line. Returns the position of what is asked, like `_summaries`."""
        row.write(syntax.ids(" ".join(listed(*each) for each in self.entries.items()) + "\n"), Role.PROMPT)
        return len(row) + self.gap

    def _summaries(self, row: RowWriter, syntax: Syntax) -> int:
        """Writes what is listed as an agent's summaries, each with the name of a page to go on with."""
        names, at = list(self.entries), 0
        firsts = range(0, len(names), STEP)
        for first in firsts:
            entries = [listed(name, self.entries[name]) for name in names[first : first + STEP]]
            said = " ".join([*entries, NEXT, names[(first + STEP) % len(names)]])
            summary = syntax.marked("commit", syntax.ids(said)) + syntax.label(first + STEP)
            row.write(summary, Role.PROMPT, position=at)
            at += len(summary) + self.gap // len(firsts)
        return at

    def _reason(self, place: int, syntax: Syntax) -> tuple[Ids, bool]:
        """What an agent has before it as it notes a name, and whether that says the name: a page that asks for it
        does, the fold of another page does not."""
        name = self.asked[place]
        if place % 3 == 2:
            return syntax.marked("fold", syntax.ids(str(self.entries[self.asked[place - 1]]))), False
        page = f"{END} {FOOD}{name}" if place % 3 else f"{NEXT} {FRIEND}{name}"
        return (*syntax.ids(page), *syntax.pair(REPLY)[1:]), True


class Drills(Sequence):
    """Drills, stage by stage. Each follows from its number alone.

    Args:
        names: what pages can be called, as many as a drill has at most.
        stages: how many there are, and how hard.
    """

    def __init__(self, names: Sequence[str], stages: Sequence[Stage] = GROWING):
        most = max(max(stage.names) for stage in stages)
        if len(names) < most:
            raise UserError(f"look-ups need {most} names or more, not {len(names)}")
        self.names, self.stages = list(names), tuple(stages)

    def __len__(self) -> int:
        return sum(stage.count for stage in self.stages)

    def __getitem__(self, index: int) -> LookUps:
        if not 0 <= index < len(self):
            raise IndexError(index)
        draw, place = random.Random(f"look-ups/{index}"), index
        for stage in self.stages:
            if place < stage.count:
                return self._drawn(stage, place / stage.count, draw)
            place -= stage.count

    def _drawn(self, stage: Stage, grown: float, draw: random.Random) -> LookUps:
        few, many = stage.names
        most, least = round(few + grown * (many - few)), 2
        size = draw.choice((most, draw.randint(least, most)))
        two = size > DIGIT or most > DIGIT and draw.random() < 0.5
        numbers = draw.sample(range(1, (stage.most if two else DIGIT) + 1), size)
        names = draw.sample(self.names, size)
        near, far = stage.gap
        away = near * (far / near) ** grown
        gap = draw.choice((int(away * draw.random()), int(away ** draw.random()) - 1))
        framed = draw.random() < stage.framed
        asked = draw.sample(names, min(size, FRAMED) if framed else size)
        return LookUps(dict(zip(names, numbers, strict=True)), tuple(asked), gap, framed)
