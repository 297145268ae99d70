"""What became of the samples: how many were used, split, left out, and how full the rows are."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class DataCounts:
    """Sums over samples; add two with `+`.

    Attributes:
        samples: read from the source.
        documents: laid out and used: whole samples and pieces of split ones.
        split: samples that became several pieces.
        dropped: samples left out because they are too long.
        tokens: of the documents; a split sample's later pieces repeat some.
        trained: of these, targets that are trained.
        places: tokens and padding of the rows they were put into.
    """

    samples: int = 0
    documents: int = 0
    split: int = 0
    dropped: int = 0
    tokens: int = 0
    trained: int = 0
    places: int = 0

    def __add__(self, other: DataCounts) -> DataCounts:
        return DataCounts(*(int(a) + int(b) for a, b in zip(*map(dataclasses.astuple, (self, other)), strict=True)))

    def packed(self) -> np.ndarray:
        """int32 [fields], to travel through a packer."""
        return np.asarray(dataclasses.astuple(self), np.int32)

    @staticmethod
    def of_packed(rows: np.ndarray, places: int) -> DataCounts:
        """The sum of `packed` counts [..., fields] of rows that have `places` tokens and padding in all."""
        total = rows.reshape(-1, rows.shape[-1]).sum(axis=0, dtype=np.int64)
        return dataclasses.replace(DataCounts(*map(int, total)), places=places)

    @property
    def fill(self) -> float:
        """Share of the places that hold a token."""
        return self.tokens / self.places if self.places else 0.0

    def describe(self) -> str:
        """One line for a log."""
        parts = [f"{self.samples:,} samples", f"{self.documents:,} documents of {self.tokens:,} tokens"]
        if self.split:
            parts.append(f"{self.split:,} split")
        if self.dropped:
            parts.append(f"{self.dropped:,} left out as too long")
        if self.places:
            parts.append(f"rows {self.fill:.1%} full")
        return ", ".join(parts)
