"""Numbers about a data set as a method lays it out, for one line at the start of a run, or two if one is a warning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lt_jax.errors import UserError
from lt_jax.layout.row import Role, Row
from lt_jax.layout.scheme import Scheme

MEASURED = 200
FEW_THOUGHTS = 1.5  # a sample; with one each, nothing is written after what was compressed
LITTLE, SOME = 0.1, 0.25  # shares of the responses' text that are put away


@dataclasses.dataclass(frozen=True)
class DataStats:
    """What `measure` found.

    Attributes:
        samples: of the data set; `measured` of them were laid out.
        tokens: mean tokens of a sample, prompt and gists included; `longest` the most.
        thoughts: mean thoughts of a sample, 0 for a method without thoughts.
        over: share of the samples that are longer than `length` tokens.
        put_away: share of the responses' own tokens that are dead before the last of them is written: what a method
            saves while it writes. A last thought that only an EOS follows counts as kept.
    """

    samples: int
    measured: int
    tokens: float
    longest: int
    thoughts: float
    over: float
    length: int
    put_away: float = 0.0

    def describe(self) -> str:
        """One line for a terminal."""
        looked = "" if self.measured == self.samples else f" ({self.measured:,} looked at)"
        parts = [f"{self.samples:,} samples{looked} of {self.tokens:,.0f} tokens on average, {self.longest:,} at most"]
        if self.thoughts:
            parts.append(f"{self.thoughts:.1f} thoughts each")
        if self.over:
            parts.append(f"{100 * self.over:.1f} % longer than {self.length:,} tokens")
        return ", ".join(parts)

    def warning(self, scheme: Scheme) -> str:
        """One line if `scheme` is to compress and finds next to nothing to compress in these samples, else empty."""
        few = self.thoughts < FEW_THOUGHTS and self.put_away < SOME
        if scheme.method == "vanilla" or not (few or self.put_away < LITTLE):
            return ""
        if scheme.method == "memento":
            hint = "memento compresses what stands between <|block_start|> and <|block_end|> in a response"
        elif scheme.level == "token":
            hint = f"a smaller scheme.step than {scheme.step} would"
        else:
            hint = "data.segment=sentence, or data.segment=chunk with data.maximum=100, would cut responses more finely"
        return (
            f"warning: {scheme.method} finds next to nothing to compress: {self.thoughts:.1f} thoughts each, and "
            f"{100 * self.put_away:.1f} % of a response put away before its end; {hint}"
        )


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
    put_away, written = np.sum([_put_away(row) for row in rows], axis=0)
    return DataStats(
        len(source), measured, float(tokens.mean()), int(tokens.max()), float(np.mean(thoughts)),
        float((tokens > length).mean()), length, float(put_away / max(written, 1)),
    )  # fmt: skip


def _put_away(row: Row) -> tuple[int, int]:
    """(tokens of the response's text that are dead when the last of it is written, all tokens of it)."""
    text = np.flatnonzero((row.role == Role.THOUGHT) | (row.role == Role.TEXT))
    return (int((row.death[text] <= text[-1]).sum()), len(text)) if len(text) else (0, 0)
