"""What an engine is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lt_jax.decode.sample import Sampling
from lt_jax.layout.row import Row


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to go on from. What differs between requests is data of their rows; one compiled program serves all.

    Attributes:
        prompt: ids, or a `Row` of `layout.build_prompt` where the prompt itself is compressed.
        max_new: most tokens to generate; gists, instruction and output tokens are free.
        seed: of the random numbers; None is drawn from the request's number, so that equal requests differ.
        id: handed back with the completion; None is the request's number.
        n: samples wanted; each is a completion of its own (`Completion.sample`). The prompt is read once.
        sampling: see `Sampling`; None is the engine's.
        stop: ids that end a row besides the engine's.
        stop_text: texts that end a row. It is looked for between blocks, and the row is cut after the token with which
            the first of them is complete.
        never: ids that must not be sampled, besides those that the engine alone may feed.
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
