"""Advantages of responses from their rewards, each against the others of its group (the samples of one prompt).

What differs: paper and release know `grpo` alone, over groups of equal size. A group of one and a group whose rewards
are all equal get advantages of exactly 0 here; the release gets NaN for the first, and for the second what rounding
leaves, divided by 1e-6. In the release every response counts in its group's mean, those rejected later too, and so it
does here unless `counted` says otherwise. `overlong` is DAPO's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

STD_EPS = 1e-6  # the release's


def grpo(rewards: jax.Array, group: jax.Array | None = None, counted: jax.Array | None = None) -> jax.Array:
    """(R - mean) / (std + 1e-6), with the unbiased standard deviation of the group (Shao et al., 2402.03300).

    Args:
        rewards: [G, N] for G groups of N samples, or [B] with `group`.
        group: [B] int32, which group a response is of, any numbers from 0 to B - 1 and in any order. None with [G, N].
        counted: bool like `rewards`, which responses are part of their group; None is all. The others get 0.

    Returns:
        float32 like `rewards`.
    """
    deviation, number, total = _deviations(rewards, group, counted)
    std = jnp.sqrt(total(deviation**2) / jnp.maximum(number - 1, 1))
    return _shaped(jnp.where(signal(rewards, group, counted).reshape(-1), deviation / (std + STD_EPS), 0), rewards)


def dr_grpo(rewards: jax.Array, group: jax.Array | None = None, counted: jax.Array | None = None) -> jax.Array:
    """R - mean, not divided: easy and hard prompts weigh alike (Liu et al., 2503.20783). Arguments as of `grpo`."""
    deviation, _, _ = _deviations(rewards, group, counted)
    return _shaped(jnp.where(signal(rewards, group, counted).reshape(-1), deviation, 0), rewards)


def rloo(rewards: jax.Array, group: jax.Array | None = None, counted: jax.Array | None = None) -> jax.Array:
    """R - mean of the others of the group, which is n / (n - 1) times R - mean (Ahmadian et al., 2402.14740).

    Arguments as of `grpo`; a response without others gets 0.
    """
    deviation, number, _ = _deviations(rewards, group, counted)
    deviation = deviation * number / jnp.maximum(number - 1, 1)
    return _shaped(jnp.where(signal(rewards, group, counted).reshape(-1), deviation, 0), rewards)


ADVANTAGES = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}


def signal(rewards: jax.Array, group: jax.Array | None = None, counted: jax.Array | None = None) -> jax.Array:
    """Whether the counted rewards of a response's group differ; where they do not, nothing can be learned from it.

    Arguments as of `grpo`.

    Returns:
        bool like `rewards`, the same for all responses of a group, and False for those not counted.
    """
    values, group, counted = _flat(rewards, group, counted)
    size = values.shape[0]
    highest = jax.ops.segment_max(jnp.where(counted, values, -jnp.inf), group, size)
    lowest = jax.ops.segment_min(jnp.where(counted, values, jnp.inf), group, size)
    return _shaped(counted & (highest > lowest)[group], rewards)


def overlong(lengths: jax.Array, longest: int, buffer: int) -> jax.Array:
    """DAPO's soft punishment of long responses, to be added to rewards (Yu et al., 2503.14476, equation 13).

    0 up to `longest - buffer` tokens, then falling in a straight line to -1 at `longest`, and -1 beyond.

    Args:
        lengths: int, tokens of each response. longest: the most a response may have. buffer: at least 1.

    Returns:
        float32 like `lengths`.
    """
    over = (jnp.asarray(lengths) - (longest - buffer)).astype(jnp.float32) / buffer
    return -jnp.clip(over, 0.0, 1.0)


def _flat(rewards, group, counted):
    """rewards [B] float32, group [B] int32 and counted [B] bool."""
    rewards = jnp.asarray(rewards, jnp.float32)
    if (rewards.ndim == 1) != (group is not None) or rewards.ndim > 2:
        raise ValueError(f"rewards are [groups, samples], or [rows] with the group of each; not {rewards.shape}")
    if group is None:
        group = jnp.repeat(jnp.arange(rewards.shape[0]), rewards.shape[1])
    counted = jnp.ones(rewards.shape, bool) if counted is None else jnp.asarray(counted, bool)
    return rewards.reshape(-1), jnp.asarray(group, jnp.int32), counted.reshape(-1)


def _deviations(rewards, group, counted):
    """Of each response: reward - mean of its group (0 if not counted), and how many the group counts.

    The last value sums an array [B] over each response's group.
    """
    values, group, counted = _flat(rewards, group, counted)
    total = lambda x: jax.ops.segment_sum(jnp.where(counted, x, 0), group, values.shape[0])[group]
    number = total(jnp.ones_like(values))
    mean = total(values) / jnp.maximum(number, 1)
    return jnp.where(counted, values - mean, 0), number, total


def _shaped(found: jax.Array, rewards) -> jax.Array:
    return found.reshape(jnp.shape(rewards))
