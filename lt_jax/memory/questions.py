"""What teachers are asked: problems from files, read one by one, problems of the library's, or those of a function."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable

from lt_jax.data import suites
from lt_jax.data.builder import by_content
from lt_jax.data.problem import Problem
from lt_jax.data.readers import trace_files
from lt_jax.data.tasks import FAMILIES, Problems
from lt_jax.errors import UserError
from lt_jax.user_function import user_function

TOLD_BY = 16  # problems whose texts tell a stream from others


@dataclasses.dataclass(frozen=True)
class QuestionsConfig:
    """Where the problems come from: exactly one of `paths`, `embedded` and `function`.

    Attributes:
        paths, format, system, prefix: as of `suites.from_files`.
        answers: records without an answer are refused; False lets them be, and nobody knows whether they are solved.
        embedded: how many of the library's own problems. steps, families: of these, see `data.tasks.Problems`.
        function: "module:function", called without anything, which gives an iterable of `data.problem.Problem`; the
            same ones every time.
        limit: only the first so many; 0 is all.
    """

    paths: tuple[str, ...] = ()
    format: str | None = None
    system: str = ""
    prefix: str = ""
    answers: bool = True
    embedded: int = 0
    steps: tuple[int, int] = (6, 12)
    families: tuple[str, ...] = ()
    function: str = ""
    limit: int = 0

    def __post_init__(self):
        given = [name for name in ("paths", "embedded", "function") if getattr(self, name)]
        if len(given) != 1:
            names = ", ".join(given).replace("paths", "path") or "none"
            raise UserError(f"questions: give one of path, embedded and function; given are {names}")
        if self.limit < 0 or self.embedded < 0:
            raise UserError(f"questions.limit is {self.limit} and questions.embedded {self.embedded}; both must be 0 "
                            "or more")  # fmt: skip


def open_questions(config: QuestionsConfig) -> tuple[Iterable[Problem], dict]:
    """The problems, and what tells them from others: a run that goes on must go on with the same ones.

    Raises:
        UserError: here or while they are read, see `readers.read_placed`; there is no such function.
    """
    if config.paths:
        found: Iterable[Problem] = suites.stream_files(
            config.paths, config.format, config.system, config.prefix, config.answers
        )
        files = [digest for digest, _ in by_content(trace_files(config.paths))]
        told = {"files": files, "format": config.format, "system": config.system, "prefix": config.prefix}
    elif config.embedded:
        made = Problems(config.embedded, steps=config.steps, families=config.families or tuple(FAMILIES))
        found = (Problem(each.question, each.answer, each.family) for each in made)
        found, told = _told(found)
    else:
        found, told = _told(user_function(config.function, takes="nothing", setting="questions.function")())
        told |= {"function": config.function}
    return itertools.islice(found, config.limit or None), told


def _told(problems: Iterable[Problem]) -> tuple[Iterable[Problem], dict]:
    source = iter(problems)
    first = list(itertools.islice(source, TOLD_BY))
    for each in first:
        if not isinstance(each, Problem):
            given = type(each).__name__
            raise UserError(f"questions.function gives a {given}; it must give lt_jax.data.problem.Problem")
    digest = hashlib.sha256(repr(first).encode()).hexdigest()
    return itertools.chain(first, source), {"told_by": digest}
