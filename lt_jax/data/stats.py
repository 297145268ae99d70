"""Numbers about a data set as a method lays it out, for one line at the start of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme

MEASURED = 200
FEW = 1.5  # thoughts of a sample, on average, below which compressing has no point


@dataclasses.dataclass(frozen=True)
class DataStats:
    """What `measure` found.

    Attributes:
        samples: of the data set; `measured` of them were laid out.
        tokens: mean tokens of a sample, prompt and gists included; `longest` the most.
        thoughts: mean thoughts of a sample, 0 for a method without thoughts.
        over: share of the samples that are longer than `length` tokens.
    """

    samples: int
    measured: int
    tokens: float
    longest: int
    thoughts: float
    over: float
    length: int

    def warning(self, scheme: Scheme) -> str:
        """A line for a compressing method that finds next to nothing to compress in the data; empty if it does not."""
        if scheme.method == "vanilla" or self.thoughts >= FEW:
            return ""
        how = (
            "the responses have no finished blocks with summaries"
            if scheme.method == "memento"
            else "scheme.step is longer than most responses"
            if scheme.level == "token"
            else "responses have few empty lines; data.segment='sentence' or 'chunk' (with data.maximum) cuts finer"
        )
        return (
            f"warning: {scheme.method} finds {self.thoughts:.1f} thoughts in a sample, so there is next to nothing to "
            f"compress: {how}"
        )

    def describe(self) -> str:
        """One line for a terminal."""
        looked = "" if self.measured == self.samples else f" ({self.measured:,} looked at)"
        parts = [f"{self.samples:,} samples{looked} of {self.tokens:,.0f} tokens on average, {self.longest:,} at most"]
        if self.thoughts:
            parts.append(f"{self.thoughts:.1f} thoughts each")
        if self.over:
            parts.append(f"{100 * self.over:.1f} % longer than {self.length:,} tokens")
        return ", ".join(parts)


def measure(source: Sequence, to_row: Callable[[Any], Any], length: int, most: int = MEASURED) -> DataStats:
    """Lays samples out and measures them.

    Args:
        source, to_row: as for `pipeline.train_batches`.
        length: the limit of a row.
        most: at most this many samples are laid out, evenly spread.

    Raises:
        UserError: the source is empty; what `to_row` raises.
    """
    if not len(source):
        raise UserError("the data is empty; there is nothing to measure")
    measured = min(most, len(source))
    rows = [to_row(source[number * len(source) // measured]) for number in range(measured)]
    tokens = np.array([len(row) for row in rows])
    thoughts = [len(np.unique(row.thought[row.thought >= 0])) for row in rows]
    return DataStats(
        len(source), measured, float(tokens.mean()), int(tokens.max()), float(np.mean(thoughts)),
        float((tokens > length).mean()), length,
    )  # fmt: skip
