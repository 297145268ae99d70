"""What an engine tells between two blocks, and what it counts."""

from __future__ import annotations

import dataclasses

from lt_jax.decode.completion import Completion
from lt_jax.decode.record import Record


@dataclasses.dataclass(frozen=True)
class Event:
    """News of one sample of a request.

    Attributes:
        handle: of the request. sample: which of its `n`.
        record: the row so far; None if it never came into a row.
        start: where in the record the news begins.
        completion: what became of it, when it is finished.
    """

    handle: int
    sample: int
    record: Record | None
    start: int
    completion: Completion | None = None


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of prompts: fed to the model, taken over from a row that held them, and, of those that were fed, how many
    stood at the start of a row in just this way but could not be taken over (their keys were gone, or it was too little
    to be worth it)."""

    read: int = 0
    reused: int = 0
    read_again: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.read + other.read, self.reused + other.reused, self.read_again + other.read_again)
