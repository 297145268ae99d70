"""Sources of samples: sequences that are read by index and hold nothing but what they must.

Prepared traces (`builder.PreparedTraces`), lists and the embedded problems (`tasks.Problems`) are sources; these put
them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lt_jax.data.traces import Trace
from lt_jax.errors import UserError


class Mapped(Sequence):
    """`function(item)` of every item, made when it is asked for."""

    def __init__(self, source: Sequence, function: Callable[[Any], Any]):
        self.source, self.function = source, function

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int):
        return self.function(self.source[range(len(self))[index]])  # IndexError behind the end, so that loops end


class Part(Sequence):
    """Items start..stop-1 of a source."""

    def __init__(self, source: Sequence, start: int, stop: int):
        if not 0 <= start <= stop <= len(source):
            raise UserError(f"items {start} to {stop} are not within a source of {len(source)}")
        self.source, self.start, self.stop = source, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int):
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.source[self.start + index]


def hold_out(source: Sequence, count: int) -> tuple[Part, Part]:
    """(training, held out): the last `count` items are held out, a random sample of prepared traces (TFDS shuffles).

    Raises:
        UserError: nothing would be left to train on.
    """
    if not 0 <= count < len(source):
        raise UserError(f"cannot hold out {count} of {len(source)} samples; at least one must be left to train on")
    edge = len(source) - count
    return Part(source, 0, edge), Part(source, edge, len(source))


def worked(item) -> Trace:
    """A worked problem of `lt_jax.data.tasks` as a trace; its thoughts are paragraphs of the response."""
    return Trace(
        item.question, "\n\n".join(item.thoughts), segments=tuple(item.thoughts), answer=item.answer, source=item.family
    )
