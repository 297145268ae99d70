"""A worked problem: the question, the thoughts that solve it one step at a time, and the answer."""

from __future__ import annotations

import dataclasses
import hashlib


@dataclasses.dataclass(frozen=True)
class Worked:
    """One reasoning-gym problem with its solution worked out.

    Attributes:
        family: the task's name.
        question: what the model is asked.
        thoughts: the steps, in order; the last one states the answer in `\\boxed{}`.
        answer: the answer as reasoning-gym gives it.
    """

    family: str
    question: str
    thoughts: tuple[str, ...]
    answer: str

    @property
    def held_out(self) -> bool:
        """True for the eighth of all questions that no training stream ever contains, chosen by a hash of the text."""
        return hashlib.sha256(self.question.encode()).digest()[0] % 8 == 0


def boxed(answer) -> str:
    """The last thought of every trace."""
    return f"Answer \\boxed{{{answer}}}"
