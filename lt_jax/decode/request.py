"""What an engine is asked to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lt_jax.decode.sample import Sampling
from lt_jax.layout.row import Row


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt that the engine continues. Requests may differ in all of this; one compiled program serves them all.

    Attributes:
        prompt: token ids, or a `Row` of `layout.build_prompt` where the prompt itself is compressed.
        max_new: the most tokens that are generated. Gist, instruction and output tokens do not count.
        seed: of sampling. None takes one that follows from the request's number, so that equal requests differ.
        id: returned with the completion; None is the request's number.
        n: how many samples are wanted. Each is a completion of its own (`Completion.sample`); the prompt is read once.
        sampling: see `Sampling`; None is the engine's.
        stop: ids that end the row, besides the engine's.
        stop_text: texts that end the row. They are looked for between blocks, and the row is cut after the token that
            completes the first of them.
        never: ids that must not be sampled, besides those that only the engine may feed.
    """

    prompt: Sequence[int] | Row
    max_new: int = 1024
    seed: int | None = None
    id: object = None
    n: int = 1
    sampling: Sampling | None = None
    stop: tuple[int, ...] = ()
    stop_text: tuple[str, ...] = ()
    never: tuple[int, ...] = ()


def sample_seed(seed: int, sample: int) -> int:
    """The seed of one of the samples of a request; the first has the request's own. (splitmix64, to 32 bits.)"""
    if not sample:
        return seed & 0xFFFFFFFF
    mixed = (seed + sample * 0x9E3779B97F4A7C15) & (2**64 - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & (2**64 - 1)
    return (mixed ^ (mixed >> 31)) & 0xFFFFFFFF
