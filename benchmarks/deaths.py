"""Deaths for the benchmarks, and what a BlockPlan makes of them, in NumPy alone: for processes that have no JAX."""

from __future__ import annotations

import numpy as np

NEVER = 2**30  # as `lt_jax.lifetimes.NEVER`
PROMPT, GISTS = 128, 9


def thoughts(rows: int, length: int, mean: int = 40) -> np.ndarray:
    """[rows, length] int32: thoughts whose lengths vary by 30 %, each followed by 9 gists and an output token, behind a
    prompt of 128 tokens."""
    death = np.full((rows, length), NEVER, np.int32)
    for row, random in zip(death, np.random.default_rng(0).spawn(rows), strict=True):
        at = PROMPT
        while at < length:
            thought = max(4, round(random.normal(mean, 0.3 * mean)))
            row[at : at + thought] = at + thought + GISTS
            at += thought + GISTS + 1
    return death


def order(death: np.ndarray, block_k: int) -> np.ndarray:
    """[R, S] -> the order of keys of `lt_jax.attention.blocks.build` without its padding, [R, S] indices."""
    blocks = -(-death.shape[-1] // block_k)
    step = block_k * max(1, round(0.7 * blocks**0.5))
    rank = np.where(death >= NEVER, -1, np.maximum(death, 0) // step)
    return np.argsort(rank, axis=-1, kind="stable")


def visited(death: np.ndarray, block_q: int, block_k: int) -> tuple[float, float]:
    """Means over the rows [R, S]: pairs of blocks visited in our order, and (query, key) pairs that are visible.

    S must be a multiple of both sides.
    """
    keys, length = order(death, block_k), death.shape[-1]
    dies = np.take_along_axis(death, keys, -1)
    sides = lambda x: x.reshape(len(x), -1, 1, block_k)
    first = np.arange(0, length, block_q)[None, None, :]
    active = (sides(dies).max(-1) > first) & (sides(keys).min(-1) <= first + block_q - 1)
    visible = np.sum(np.minimum(death, length) - np.arange(length), -1, dtype=np.int64)
    return float(active.sum((1, 2)).mean()), float(visible.mean())
