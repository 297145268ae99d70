"""Numbers about a data set as a method lays it out: tokens, thoughts, lengths, what is too long, what dies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lt_jax.errors import UserError
from lt_jax.layout.limit import LengthReport, fit
from lt_jax.layout.row import Role, Row
from lt_jax.lifetimes import NEVER


@dataclasses.dataclass(frozen=True)
class Spread:
    """A distribution of whole numbers; its histogram has counts[i] values in [edges[i], edges[i + 1])."""

    mean: float
    median: float
    p95: float
    smallest: int
    largest: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @staticmethod
    def of(values, bins: int = 20) -> Spread:
        values = np.asarray(values if len(values) else [0], np.int64)
        counts, edges = np.histogram(values, bins=bins, range=(0, max(1, int(values.max()) + 1)))
        median, p95 = np.percentile(values, [50, 95])
        return Spread(
            float(values.mean()), float(median), float(p95), int(values.min()), int(values.max()),
            tuple(map(float, edges)), tuple(map(int, counts)),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DataStats:
    """What `measure` found.

    Attributes:
        samples: measured; `of` how many there are.
        tokens, trained: sums over the samples, gists included, before anything is left out.
        row, prompt, thoughts, thought: spreads of tokens a row, tokens a prompt, thoughts a row, tokens a thought (its
            gists and output token not counted).
        lasting: share of the response's tokens whose keys never die.
        lengths: what the length limit makes of them.
    """

    samples: int
    of: int
    tokens: int
    trained: int
    row: Spread
    prompt: Spread
    thoughts: Spread
    thought: Spread
    lasting: float
    lengths: LengthReport

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """A few lines for a terminal."""
        sampled = "" if self.samples == self.of else f" (a sample of {self.of:,})"
        line = lambda name, spread: (
            f"{name:<18} mean {spread.mean:,.1f}  median {spread.median:,.0f}  95 % {spread.p95:,.0f}  "
            f"most {spread.largest:,}"
        )
        return "\n".join(
            [
                f"{self.samples:,} samples{sampled}, {self.tokens:,} tokens, {self.trained:,} of them trained",
                line("tokens a row", self.row),
                line("tokens a prompt", self.prompt),
                line("thoughts a row", self.thoughts),
                line("tokens a thought", self.thought),
                f"{self.lasting:.0%} of the response's keys last",
                str(self.lengths),
            ]
        )


def measure(
    source: Sequence, to_row: Callable[[Any], Row], length: int, policy: str = "drop", most: int | None = 2000
) -> DataStats:
    """Lays samples out and measures them.

    Args:
        source, to_row: as for `pipeline.train_batches`.
        length, policy: the limit to report on, see `layout.limit`.
        most: measure at most this many samples, evenly spread; None for all.

    Raises:
        UserError: the source is empty; what `to_row` raises.
    """
    if not len(source):
        raise UserError("the data is empty; there is nothing to measure")
    samples = len(source) if most is None else min(most, len(source))
    lengths = LengthReport(length)
    rows, prompts, counts, thoughts, trained, response, lasting = [], [], [], [], 0, 0, 0
    for number in range(samples):
        row = to_row(source[number * len(source) // samples])
        lengths.add(row, fit(row, length, policy))
        written = row.thought[(row.thought >= 0) & np.isin(row.role, (Role.THOUGHT, Role.TRIGGER))]
        per_thought = np.bincount(written)
        rows.append(len(row))
        prompts.append(row.prompt_length)
        counts.append(len(per_thought))
        thoughts.extend(per_thought.tolist())
        trained += int(row.trained.sum())
        response += len(row) - row.prompt_length
        lasting += int((row.death[row.prompt_length :] == NEVER).sum())
    return DataStats(
        samples, len(source), sum(rows), trained, Spread.of(rows), Spread.of(prompts), Spread.of(counts),
        Spread.of(thoughts), lasting / max(1, response), lengths,
    )  # fmt: skip
