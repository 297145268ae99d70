"""Synthesis of trajectories: problems and a teacher in, files to learn from out.

    FOLDER/told.json            what was asked of whom; a run that goes on must be of the same
    FOLDER/journal.jsonl        trajectories as they ended, each safe on the disk before the next is counted
    FOLDER/trajectories.jsonl   all of them in the order of the problems, one `log.Log` a line
    FOLDER/pruned.jsonl         those that the pruning rules keep
    FOLDER/tfds/                these as a TFDS data set
    FOLDER/statistics.json      see `statistics`

Killed at any moment, the same command goes on: no problem that was finished is asked again, and none is left out. In
memory are the trajectories under way and a few bytes for each finished one; the problems are streamed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lt_jax
from lt_jax.data import answers
from lt_jax.data.problem import Problem
from lt_jax.decode.request import sample_seed
from lt_jax.errors import UserError
from lt_jax.memory import dataset
from lt_jax.memory.environment import Work, worked
from lt_jax.memory.journal import Journal, read_logs
from lt_jax.memory.log import Log
from lt_jax.memory.prune import PruneConfig, verdicts
from lt_jax.memory.statistics import described, statistics
from lt_jax.memory.teachers import Teacher, Unanswered, prompts
from lt_jax.memory.teachers.connect import Connection
from lt_jax.training.metrics import write_whole

IN_A_ROW = 10  # problems without an answer, after which the run is given up
EVERY = 60.0  # seconds between two lines


@dataclasses.dataclass(frozen=True)
class SynthesisConfig:
    """A run of synthesis.

    Attributes:
        folder: of the files, see the head of this one.
        work: see `environment.Work`.
        at_once: problems under way.
        seed: of sampling; problem i has one that follows from it and i.
        leave_out: finish the files though some problems got no answer from the endpoint. They are counted, and a later
            run with the same folder asks for them again. Otherwise that is an error at the end.
        prune: which rules are on.
    """

    folder: str
    work: Work = Work()
    at_once: int = 8
    seed: int = 0
    leave_out: bool = False
    prune: PruneConfig = PruneConfig()

    def __post_init__(self):
        if self.at_once < 1:
            raise UserError(f"at_once is {self.at_once}; it must be 1 or more")


def about_run(config: SynthesisConfig, about: dict) -> dict[str, Any]:
    """What each trajectory says of where it comes from, besides what is its own.

    Args:
        about: what the teacher says of itself.
    """
    limits = {name: getattr(config.work.limits, name) for name in ("turn", "turns", "tokens", "malformed", "context")}
    return {**about, "prompts": prompts.VERSION, "limits": limits, "tools": sorted(config.work.tools),
            "seed": config.seed, "version": lt_jax.__version__}  # fmt: skip


def synthesize(
    problems: Iterable[Problem], connection: Connection, config: SynthesisConfig, told: dict | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Works on all problems that are not finished, and writes the files; the statistics.

    Args:
        told: what tells the problems from others.
        say: takes lines for a terminal.

    Raises:
        UserError: the folder is of another run, the endpoint refuses or does not answer, or the disk is full. What was
            finished is kept.
    """
    answers.check()
    folder = Path(config.folder)
    own = about_run(config, connection.about)
    free = ("version", "url")  # a newer version may go on, and the model may be served elsewhere
    same = {name: value for name, value in own.items() if name not in free}
    _same_run(folder / "told.json", {"problems": told or {}, **same})
    with Journal(folder / "journal.jsonl") as journal:
        had = len(journal.done)
        if had or journal.torn:
            cut = ", and one that was torn is asked again" if journal.torn else ""
            say(f"{config.folder}: {had:,} trajectories are there{cut}")
        try:
            lacking = asyncio.run(_Run(journal, own, config, say).all(problems, connection.teacher))
        finally:
            if said := connection.describe():
                say(said)
        if lacking and not config.leave_out:
            raise UserError(f"{len(lacking):,} problems got no answer, the first of them number {lacking[0][0]}: "
                            f"{lacking[0][1]}; the same command asks for them again")  # fmt: skip
        if lacking:
            say(f"warning: {len(lacking):,} problems got no answer and are left out, the first of them number "
                f"{lacking[0][0]}: {lacking[0][1]}")  # fmt: skip
        if not journal.done:
            raise UserError("there is no trajectory: no problem was given, or none was answered")
        journal.write_sorted(folder / "trajectories.jsonl")
    return finished(folder, config.prune, say)


def finished(folder: Path, prune: PruneConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Prunes FOLDER/trajectories.jsonl, and writes all that comes after it; the statistics."""
    path = folder / "trajectories.jsonl"
    found = verdicts(read_logs(path), prune)
    partial = folder / "pruned.jsonl.partial"
    try:
        with open(path, "rb") as lines, open(partial, "wb") as out:
            out.writelines(itertools.compress(lines, found.kept))
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, folder / "pruned.jsonl")
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{folder}/pruned.jsonl: cannot be written: {error.strerror}; nothing was left") from None
    numbers = statistics(read_logs(path), found)
    write_whole(folder / "statistics.json", json.dumps(numbers, indent=1) + "\n")
    say(described(numbers))
    pruned = folder / "pruned.jsonl"
    if found.kept.any():
        say(f"written to {pruned} and, for TFDS, {dataset.prepare(pruned, folder / 'tfds')}")
    else:
        say(f"warning: no trajectory is left after pruning; {pruned} is empty, and there is no TFDS data set")
    return numbers


class _Run:
    """Problems under way, and what became of the others."""

    def __init__(self, journal: Journal, about: dict, config: SynthesisConfig, say: Callable[[str], None]):
        self.journal, self.about, self.config, self.say = journal, about, config, say
        self.lacking: list[tuple[int, str]] = []  # a run with many of them ends early
        self.in_a_row, self.right, self.told_at = 0, 0, time.monotonic()

    async def all(self, problems: Iterable[Problem], teacher) -> list[tuple[int, str]]:
        """Problems that got no answer: (number, why)."""
        left = ((number, each) for number, each in enumerate(problems) if number not in self.journal.done)
        under: dict[asyncio.Task, int] = {}
        async with teacher as ask:
            try:
                while True:
                    for number, problem in itertools.islice(left, self.config.at_once - len(under)):
                        under[asyncio.create_task(self._one(number, problem, ask))] = number
                    if not under:
                        return sorted(self.lacking)
                    done, _ = await asyncio.wait(under, return_when=asyncio.FIRST_COMPLETED)
                    # All that is finished is kept before an error of one of them ends the run.
                    for task in sorted(done, key=lambda task: task.exception() is not None):
                        self._ended(under.pop(task), task)
            finally:
                for task in under:
                    task.cancel()
                await asyncio.gather(*under, return_exceptions=True)

    async def _one(self, number: int, problem: Problem, teacher: Teacher) -> Log:
        seed = sample_seed(self.config.seed, number)
        log = await worked(problem, number, teacher, self.config.work, seed)
        return dataclasses.replace(log, extra={**log.extra, **self.about})

    def _ended(self, number: int, task: asyncio.Task) -> None:
        error = task.exception()
        if error is None:
            log = task.result()
            self.journal.write(number, log)
            self.in_a_row, self.right = 0, self.right + (log.correct is True)
        elif isinstance(error, Unanswered):
            self.lacking.append((number, str(error)))
            self.in_a_row += 1
            if self.in_a_row >= IN_A_ROW:
                raise UserError(f"{IN_A_ROW} problems one after the other got no answer; the last: {error}; what was "
                                "finished is kept, and the same command goes on")  # fmt: skip
        else:
            raise error
        if time.monotonic() - self.told_at > EVERY:
            self.told_at = time.monotonic()
            self.say(f"{len(self.journal.done):,} trajectories; {self.right:,} right since the start of this command")


def _same_run(path: Path, told: dict) -> None:
    """Writes what a run is of, or compares it with what the folder is of."""
    told = json.loads(json.dumps(told))
    if not path.exists():
        if path.with_name("journal.jsonl").exists():
            raise UserError(f"{path}: missing beside a journal, so nobody knows what it is of; give another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(told, indent=1) + "\n")
        return
    try:
        before = json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path}: broken; give another folder") from None
    for name in [*told, *before]:
        if told.get(name) != before.get(name):
            raise UserError(f"{path.parent}: holds trajectories of another run: {name} was {before.get(name)!r} and is "
                            f"{told.get(name)!r} now; give another folder")  # fmt: skip
