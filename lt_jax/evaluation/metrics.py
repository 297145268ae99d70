"""Accuracy, peak and dependency of many completions, with their 95 % intervals; counted by `decode.counts`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

FINISHED = ("eos", "stop")
Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def keep_all(prompt: int, generated: int) -> int:
    """The dependency of a model that keeps every key: the paper's closed form, with each sampled token counted too."""
    return prompt * generated + generated * (generated + 1) // 2


def wilson(right: int, total: int) -> Interval:
    """The share right / total with Wilson's 95 % interval, which stays inside [0, 1] and is sound near its ends."""
    if total == 0:
        return Interval(math.nan, 0.0, 1.0)
    share, z2 = right / total, Z95 * Z95
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(share, 0.0 if right == 0 else low, 1.0 if right == total else high)


def mean(values: Sequence[float]) -> Interval:
    """The mean with its normal 95 % interval, which is infinitely wide for a single value."""
    values = np.asarray(values, np.float64)
    if len(values) == 0:
        return Interval(math.nan, math.nan, math.nan)
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    middle = float(values.mean())
    return Interval(middle, middle - half, middle + half)


def plain(value):
    """A result as JSON values: intervals and other dataclasses by the names of their fields, what is not known as
    null."""
    value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two methods on the same problems.

    Attributes:
        difference: accuracy of the first minus accuracy of the second.
        only_first, only_second: how many problems only the first, or only the second, solved.
        peak, dependency, generated: the mean of the first over the mean of the second.
        total: how many problems were compared.
    """

    difference: Interval
    only_first: int
    only_second: int
    peak: Interval
    dependency: Interval
    generated: Interval
    total: int


def paired(first: Sequence, second: Sequence) -> Paired:
    """Compares two lists of `results.Outcome`, which must be about the same problems in the same order."""
    if [r.problem for r in first] != [r.problem for r in second]:
        raise ValueError("paired: the two lists are not about the same problems in the same order")
    a, b = (np.array([r.correct for r in records], bool) for records in (first, second))
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    ratios = {name: ratio([getattr(r.counts, name) for r in first], [getattr(r.counts, name) for r in second])
              for name in ("peak", "dependency", "generated")}  # fmt: skip
    return Paired(difference(only_first, only_second, len(a)), only_first, only_second, total=len(a), **ratios)


def difference(only_first: int, only_second: int, total: int) -> Interval:
    """The difference of two shares measured on the same `total` problems, from the problems that only one solved.

    The interval is that of Agresti and Min (2005): half a problem is added to each of the four cells of the table, so
    that the interval is also right when the two disagree on few problems or none.
    """
    one, two, n = only_first + 0.5, only_second + 0.5, total + 2
    middle = (one - two) / n
    half = Z95 * math.sqrt(max(one + two - (one - two) ** 2 / n, 0.0)) / n
    value = (only_first - only_second) / total if total else math.nan
    return Interval(value, max(-1.0, middle - half), min(1.0, middle + half))


def ratio(first: Sequence[float], second: Sequence[float]) -> Interval:
    """mean(first) / mean(second) of paired values, with the 95 % interval of the delta method."""
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if len(x) == 0 or y.sum() == 0:
        return Interval(math.nan, math.nan, math.nan)
    value = float(x.sum() / y.sum())
    if len(x) == 1:
        return Interval(value, -math.inf, math.inf)
    spread = float((x - value * y).std(ddof=1)) / math.sqrt(len(x)) / float(y.mean())
    return Interval(value, value - Z95 * spread, value + Z95 * spread)


@dataclasses.dataclass(frozen=True)
class Summary:
    """One method on a suite or on one family of it: its accuracy, and means over the problems.

    Attributes:
        problems: how many there are.
        accuracy, peak, dependency, generated: with their 95 % intervals.
        compressions: thoughts that were compressed.
        saving: the dependency that answers of the same lengths would have with every key kept, over the measured one;
            1 for vanilla.
        seconds: wall time of the whole run; None for a part of one.
        tokens_per_second: sampled tokens over that time.
        unfinished: the share of answers that did not end by themselves, because they reached the most tokens, the
            capacity or the model's last position, or because the model's logits were not numbers.
    """

    problems: int
    accuracy: Interval
    peak: Interval
    dependency: Interval
    generated: Interval
    compressions: float
    saving: float
    seconds: float | None
    tokens_per_second: float | None
    unfinished: float


def summarise(records: Sequence, seconds: float | None = None) -> Summary:
    """The `Summary` of a list of `results.Outcome`.

    Args:
        seconds: wall time of the whole run; None if the records are only part of it.
    """
    counts = [record.counts for record in records]
    whole = sum(keep_all(c.prompt, c.generated) for c in counts)
    spent = sum(c.dependency for c in counts)
    tokens = sum(c.generated for c in counts)
    return Summary(
        problems=len(records),
        accuracy=wilson(sum(record.correct for record in records), len(records)),
        peak=mean([c.peak for c in counts]),
        dependency=mean([c.dependency for c in counts]),
        generated=mean([c.generated for c in counts]),
        compressions=float(np.mean([c.compressions for c in counts])) if counts else math.nan,
        saving=whole / spent if spent else math.nan,
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else None,
        unfinished=sum(record.finish not in FINISHED for record in records) / max(len(records), 1),
    )
