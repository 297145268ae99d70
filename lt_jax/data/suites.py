"""Suites of problems: from files, from TensorFlow Datasets, or made by the library itself ("embedded")."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from lt_jax.data import answers
from lt_jax.data.problem import Problem
from lt_jax.data.readers import read_placed
from lt_jax.data.tasks import FAMILIES, Problems
from lt_jax.data.tasks.worked import Worked
from lt_jax.data.traces import Trace, convert
from lt_jax.errors import UserError

ENDLESS = 2**40  # a problem is made from its number, so there is no last one


@dataclasses.dataclass(frozen=True)
class Suite:
    """Named problems in a fixed order."""

    name: str
    problems: tuple[Problem, ...]

    def __len__(self) -> int:
        return len(self.problems)


def from_files(paths, *, name: str, format: str | None = None, limit: int = 0, seed: int = 0, system: str = "",
               prefix: str = "", answers: bool = True) -> Suite:  # fmt: skip
    """A suite from JSONL or Parquet files, in the formats of training (`data.traces`); outputs may be missing.

    The right answer is the field `answer` (what follows "####", if that occurs in it), or else what the reference
    output has in `\\boxed{}`. Plain records may be multiple choice (`data.choices`). The family of a problem is the
    field `family` or `domain`, the `source_dataset` of reasoning-gym's `metadata`, or else its source.

    Args:
        paths: files or folders.
        name: of the suite in tables.
        format: a key of `data.traces.FORMATS`; None recognises it by the fields of the records.
        limit: how many problems are used, drawn at random; 0 uses all.
        seed: of that draw.
        system: the system message of records that have none.
        prefix: text before every question, such as "Return your final response within \\boxed{}. ".
        answers: a record without an answer is refused; False lets it have none, where something else judges.

    Raises:
        UserError: with file and line for a broken record or one without an answer.
    """
    return Suite(name, limited(list(stream_files(paths, format, system, prefix, answers)), limit, seed))


def stream_files(paths, format: str | None = None, system: str = "", prefix: str = "",
                 answers: bool = True) -> Iterator[Problem]:  # fmt: skip
    """The problems of files one by one, for more of them than memory holds; arguments and errors as `from_files`."""
    for where, trace in read_placed(paths, format, evaluation=True):
        yield _problem(trace, where, system, prefix, answers)


def from_tfds(dataset: str, *, split: str = "test", data_dir: str | None = None, name: str = "", limit: int = 0,
              seed: int = 0, system: str = "", prefix: str = "") -> Suite:  # fmt: skip
    """A suite from a TensorFlow data set such as "gsm8k", read with `tfds.data_source`; fields as in `from_files`.

    Raises:
        UserError: the data set or the split does not exist or is not prepared in `data_dir`.
    """
    import tensorflow_datasets as tfds

    try:
        source = tfds.data_source(dataset, split=split, data_dir=data_dir, download=False)
    except Exception as error:  # TFDS raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"TFDS {dataset}, split {split}: cannot be read from {data_dir or 'the default folder'}: "
                        f"{reason}; prepare it there as array_record first") from None  # fmt: skip
    problems = []
    for number, record in enumerate(source, 1):
        where = f"{dataset}:{split}, example {number}"
        try:
            record = _text(record)
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: byte {error.start} of a text is not UTF-8") from None
        problems.append(_problem(convert(record, None, where, evaluation=True), where, system, prefix))
    if not problems:
        raise UserError(f"TFDS {dataset}, split {split}: empty")
    return Suite(name or f"{dataset}:{split}", limited(problems, limit, seed))


def embedded(size: int, *, seed: int = 0, steps: tuple[int, int] = (6, 12), families: Sequence[str] = tuple(FAMILIES),
             name: str = "") -> Suite:  # fmt: skip
    """Reasoning-gym problems that no training stream contains. The families take turns.

    Args:
        size: how many problems.
        steps: the fewest and the most steps of a problem, which may be more than were trained on.
        families: names from `data.tasks.FAMILIES`.
    """
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not families or size < 1:
        wrong = f"unknown family {unknown[0]!r}" if unknown else f"{size} problems of {len(families)} families"
        raise UserError(f"embedded suite: {wrong}; families are {', '.join(FAMILIES)}, and at least one problem")
    found = distinct(size, seed, tuple(steps), tuple(families))
    problems = tuple(Problem(worked.question, worked.answer, worked.family) for worked in found)
    return Suite(name or f"embedded, {steps[0]} to {steps[1]} steps", problems)


def distinct(size: int, seed: int, steps: tuple[int, int], families: tuple[str, ...]) -> list[Worked]:
    """Makes `size` problems that are never trained on. The families take turns, and no question comes twice.

    Raises:
        UserError: a family has too few different questions of that many steps.
    """
    traces = Problems(ENDLESS, seed=seed, steps=steps, held_out=True, families=families)
    found: dict[str, Worked] = {}
    counts = collections.Counter()
    places = [iter(range(turn, ENDLESS, len(families))) for turn in range(len(families))]
    for number in range(size):
        turn = number % len(families)
        had = counts[families[turn]]
        for _ in range(12 * (had + 20)):  # were one question left, this would miss it once in 100,000 times
            worked = traces[next(places[turn])]
            if worked.question not in found:
                break
        else:
            raise UserError(
                f"embedded suite: no more than {had} different problems of {families[turn]} with {steps[0]} to "
                f"{steps[1]} steps were found, too few for {size} problems of the families in turn; ask for fewer"
            )
        found[worked.question] = worked
        counts[families[turn]] += 1
    return list(found.values())


def _problem(trace: Trace, where: str, system: str, prefix: str, needed: bool = True) -> Problem:
    if trace.history or trace.between or trace.tools:
        raise UserError(f"{where}: a conversation of several exchanges, or with tools; a problem is one question")
    answer = trace.answer.strip()
    if not answer or "####" in answer:
        answer = answers.extract(answer or trace.response) or ""
    if not answer and needed:
        raise UserError(f"{where}: no answer to judge by; it needs a field 'answer', or a \\boxed{{}} in its output")
    choices = trace.extra.get("choices")
    if choices is not None:
        choices = tuple(choices)
        if answer and answers.choice(answer, choices) is None:
            raise UserError(f"{where}: the answer {answer!r} is none of the {len(choices)} choices")
    metadata = trace.extra.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else None
    named = metadata.get("source_dataset") if metadata else None  # as reasoning-gym names it
    family = trace.extra.get("family") or trace.extra.get("domain") or named or trace.source or "all"
    return Problem(prefix + trace.question, answer, str(family), choices, trace.system or system, metadata)


def limited(problems: list[Problem], limit: int, seed: int) -> tuple[Problem, ...]:
    if not limit or limit >= len(problems):
        return tuple(problems)
    return tuple(problems[i] for i in sorted(random.Random(seed).sample(range(len(problems)), limit)))


def _text(value):
    """TFDS values as JSON-like ones: bytes to text, arrays to lists."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray | np.generic):
        return _text(value.tolist())
    if isinstance(value, Mapping):
        return {key: _text(part) for key, part in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_text(part) for part in value]
    return value
