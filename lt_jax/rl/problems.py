"""Problems to learn from, in an order that a number says all about."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from lt_jax.data import suites
from lt_jax.data.builder import by_content
from lt_jax.data.problem import Problem
from lt_jax.data.readers import trace_files
from lt_jax.data.sources import Mapped, hold_out
from lt_jax.data.tasks import FAMILIES, Problems
from lt_jax.errors import UserError
from lt_jax.rl.config import ProblemsConfig

TOLD_BY = 16  # embedded problems whose texts tell them from those of another version
MIXED = 0  # seed of the order in which the problems of files are held out


def open_problems(
    config: ProblemsConfig, answers: bool = True
) -> tuple[Sequence[Problem], Sequence[Problem], dict]:
    """Problems to learn from, those held out, and what tells the first from all others, see `checkpoint.describe`.

    Args:
        answers: whether something needs the right answers; where a function of the user's alone judges, records may
            have none.

    Raises:
        UserError: with file and line for a broken record or one without an answer; too few problems.
    """
    if config.embedded:
        families = tuple(config.families) or tuple(FAMILIES)
        made = Problems(config.embedded, steps=tuple(config.steps), families=families)
        problems = Mapped(made, lambda worked: Problem(worked.question, worked.answer, worked.family))
        held_out = ()
        if config.held_out:
            held_out = suites.embedded(config.held_out, steps=tuple(config.steps), families=families).problems
        return problems, held_out, {"told_by": told_by(problems)}
    found = suites.from_files(config.paths, name="problems", format=config.format, answers=answers).problems
    mixed = [found[place] for place in np.random.default_rng(MIXED).permutation(len(found))]
    training, held_out = hold_out(mixed, config.held_out)
    files = [[digest, str(file)] for digest, file in by_content(trace_files(config.paths))]
    return training, held_out, {"files": files}


def told_by(problems: Sequence[Problem]) -> str:
    """What tells embedded problems from those of another version."""
    first = repr([problems[number] for number in range(min(TOLD_BY, len(problems)))])
    return hashlib.sha256(first.encode()).hexdigest()


class Order:
    """Problem number 0, 1, 2 ... of a run without end: pass after pass, each in an order of its own."""

    def __init__(self, problems: Sequence[Problem], seed: int):
        if not len(problems):
            raise UserError("there is no problem to learn from")
        self.problems, self.seed = problems, seed
        self._known: tuple[int, np.ndarray] | None = None

    def __getitem__(self, number: int) -> Problem:
        turn, place = divmod(number, len(self.problems))
        if self._known is None or self._known[0] != turn:
            self._known = turn, np.random.default_rng([self.seed, turn]).permutation(len(self.problems))
        return self.problems[int(self._known[1][place])]
