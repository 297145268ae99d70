r"""Embedded problems in which an early detail is needed late, so that a memory matters: sums with look-backs.

    Mix 417 3 5            start at 417; 3 plain steps, then others up to the 5th

    135:0417+111 710=08 110=02 410=05 000=00 0528    step 1, of 3 and 5. A step adds twice: first 111 times its number
    D1 528                                           (the step's detail: the last three digits of that)
    0528+285 850=13 281=11 521=08 000=00 0813        and then the detail's digits in turn, 528 -> 285
    ...
    435:5>3                                          looks back: the total ends in 5, so at step 1 + 5 mod 3 = 3
    D3 718                                           whose detail
    0905+718 580=13 011=02 970=16 001=01 1623        is added in place of 444
    ...

The last step has a point in place of the colon. Only the last three digits of a total are carried on; those of the
last are the answer. The columns are those of `data.tasks.columns`, so that a small model that can add has only the
memory to learn. Which step is looked back at is known only when the look-back is due, so a summary, which is the total,
cannot hand on the one detail that will be needed. To work the detail out anew would mean to add again from the summary
before it.

The difficulty of a problem is the number of its look-backs.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from lt_jax.data.problem import Problem
from lt_jax.data.tasks.columns import SMALL, add, slim, wide
from lt_jax.data.tasks.worked import Worked, boxed
from lt_jax.data.traces import Trace
from lt_jax.errors import UserError

FAMILY = "lookback"
MOST_STEPS = 9  # their numbers are one digit each


@dataclasses.dataclass(frozen=True)
class Step:
    """A step as text.

    Attributes:
        number: counted from 1.
        head: how it begins; where it looks back, up to the step that it looks back at.
        back: the number of that step; 0 if it does not look back.
        recall: the detail that it then needs; "" if it does not look back.
        sums: the rest.
        total: its last three digits, which is all that the next step needs to know of it.
    """

    number: int
    head: str
    back: int
    recall: str
    sums: str
    total: str

    @property
    def text(self) -> str:
        """The whole step."""
        return f"{self.head}\n{self.recall}\n{self.sums}" if self.back else self.head + self.sums


@dataclasses.dataclass(frozen=True)
class Lookback:
    """One problem with its steps worked out.

    Attributes:
        question: what the model is asked.
        steps: in order.
        looks: how many of them look back; its difficulty.
    """

    question: str
    steps: tuple[Step, ...]
    looks: int

    @property
    def answer(self) -> str:
        return self.steps[-1].total

    @property
    def problem(self) -> Problem:
        """As a problem of a suite; its family says how often it looks back."""
        return Problem(self.question, self.answer, f"{FAMILY} {self.looks}", metadata={"looks": self.looks})

    @property
    def trace(self) -> Trace:
        """As a plain trace, whose thoughts are the steps: what vanilla and LightThinker are taught."""
        thoughts = (*(step.text for step in self.steps), boxed(self.answer))
        return Trace(self.question, "\n\n".join(thoughts), segments=thoughts, answer=self.answer, source=FAMILY)


def solved(start: int, steps: int, looks: int) -> Lookback:
    """The problem of these numbers with its solution."""
    total, details, found = start, [], []
    for number in range(1, steps + 1):
        head = f"{number}{steps - looks}{steps}{'.' if number == steps else ':'}"
        back, recall, second = 0, "", 111 * number
        if number > steps - looks:
            back = 1 + total % 10 % (number - 1)
            second = details[back - 1]
            head, recall = f"{head}{total % 10}>{back}", f"D{back} {slim(second)}"
        first = _line(total, second)
        detail = (total + second) % SMALL
        turned = detail % 100 * 10 + detail // 100
        sums = f"{first}\nD{number} {slim(detail)}\n{_line(detail, turned)}"
        total = (detail + turned) % SMALL
        details.append(detail)
        found.append(Step(number, head, back, recall, sums, slim(total)))
    return Lookback(f"Mix {slim(start)} {steps - looks} {steps}", tuple(found), looks)


def _line(a: int, b: int) -> str:
    return f"{wide(a)}+{slim(b)} {add(a, b)} {wide(a + b)}"


class Lookbacks(Sequence):
    """Random access to `size` problems; item i is a pure function of (seed, i).

    Args:
        size: how many.
        seed: another seed, other problems.
        steps: least and most steps of a problem.
        looks: least and most look-backs; a problem has at most two fewer than steps.
        held_out: True for problems that no training stream contains, False for the training stream.

    Raises:
        UserError: numbers that no problem can have.
    """

    def __init__(self, size: int, seed: int = 0, steps: tuple[int, int] = (4, 8), looks: tuple[int, int] = (1, 4),
                 held_out: bool = False):  # fmt: skip
        if not 3 <= steps[0] <= steps[1] <= MOST_STEPS:
            raise UserError(f"steps are {steps[0]} to {steps[1]}; they must lie between 3 and {MOST_STEPS}")
        if not 0 <= looks[0] <= looks[1] or looks[0] > steps[0] - 2:
            raise UserError(f"looks are {looks[0]} to {looks[1]}; the least must be from 0 to {steps[0] - 2}, "
                            "two fewer than the fewest steps")  # fmt: skip
        self.size, self.seed, self.steps, self.looks, self.held_out = size, seed, steps, looks, held_out

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Lookback:
        if not 0 <= index < self.size:
            raise IndexError(index)
        draw = random.Random(f"{FAMILY}/{self.seed}/{index}")
        while True:
            steps = draw.randint(*self.steps)
            looks = draw.randint(self.looks[0], min(self.looks[1], steps - 2))
            found = solved(draw.randrange(1, SMALL), steps, looks)
            totals = [step.total for step in found.steps]
            differ = len(set(totals)) == len(totals)  # or a summary would say nothing new
            if differ and Worked(FAMILY, found.question, (), "").held_out == self.held_out:
                return found
