"""Teachers: what writes the turns of a trajectory that a model shall learn from.

A teacher is one function, from what it is asked to what it replies. There are three: any OpenAI-compatible endpoint
(`endpoint`), a checkpoint folder through our engine (`local`), and a script that knows the solution (`scripted`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping

from lt_jax.data.problem import Problem

REPLIES = ("stop", "length", "context", "refused", "nan")


class Unanswered(Exception):
    """No answer came, after all attempts. The message is one line."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """One turn that is asked for.

    Attributes:
        messages: what the teacher sees, as chat messages; all that a model is given.
        problem, turn, role: which problem, how many turns were taken before, and as whom (`environment.ROLES`); for
            scripts.
        most: tokens that may be written.
        seed: of sampling.
    """

    messages: tuple[Mapping[str, str], ...]
    problem: Problem
    turn: int
    role: str
    most: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a teacher wrote.

    Attributes:
        text: with the marks spelt out.
        finish: one of `REPLIES`: "stop", by itself; "length", cut off at the most tokens; "context", the teacher has no
            room for more; "refused", with the reason in `why`; "nan", the model is broken.
        read, written: tokens of the messages and of the reply.
        cost: in the unit of the prices that were given.
        attempts: how often it was asked for.
    """

    text: str
    finish: str = "stop"
    read: int = 0
    written: int = 0
    cost: float = 0.0
    attempts: int = 1
    why: str = ""


Teacher = Callable[[Asked], Awaitable[Reply]]
