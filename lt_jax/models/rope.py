"""Rotary position embedding (Su et al. 2021), half-split as in Hugging Face checkpoints, Llama 3 or YaRN scaled."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.models.config import DecoderConfig, Llama3Scaling, YarnScaling


def frequencies(config: DecoderConfig) -> np.ndarray:
    """Radians per position of each rotated pair, [D/2] float32."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    inverse = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    kept = _kept_by_yarn(scaling, config) if isinstance(scaling, YarnScaling) else _kept_by_llama3(scaling, inverse)
    return ((1 - kept) * inverse / scaling.factor + kept * inverse).astype(np.float32)


def _kept_by_llama3(scaling: Llama3Scaling, inverse: np.ndarray) -> np.ndarray:
    """1 where a frequency is kept, 0 where it is slowed, [D/2].

    Wavelengths longer than the old context / low_freq_factor are slowed, shorter than the old context /
    high_freq_factor kept, and those between are blended linearly in old context / wavelength.
    """
    wavelength = 2 * math.pi / inverse
    turns = scaling.original_max_positions / wavelength
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return np.clip(kept, 0.0, 1.0)


def _kept_by_yarn(scaling: YarnScaling, config: DecoderConfig) -> np.ndarray:
    """1 where a frequency is kept, 0 where it is slowed, [D/2]; blended linearly in the number of the pair."""

    def pair(turns: float) -> float:
        """The pair, not a whole number, that turns so many times within the old context."""
        length = scaling.original_max_positions / (turns * 2 * math.pi)
        return config.head_dim * math.log(length) / (2 * math.log(config.rope_theta))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_dim - 1)
    width = last - first or 0.001  # as transformers avoids the division by zero
    return 1 - np.clip((np.arange(config.head_dim // 2, dtype=np.float32) - first) / width, 0.0, 1.0)


def attention_factor(config: DecoderConfig) -> float:
    """What cos and sin are multiplied by: 1 but for YaRN, whose longer context flattens the softmax otherwise."""
    scaling = config.rope_scaling
    if not isinstance(scaling, YarnScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    scale = lambda by: 0.1 * by * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    if scaling.mscale and scaling.mscale_all_dim:
        return scale(scaling.mscale) / scale(scaling.mscale_all_dim)
    return scale(1.0)


def table(config: DecoderConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of every angle: positions [B, T] int32 -> two [B, T, 1, D/2] float32. Made once for all layers."""
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies(config)
    factor = attention_factor(config)
    if factor == 1.0:
        return jnp.cos(angles), jnp.sin(angles)
    return factor * jnp.cos(angles), factor * jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (x[i], x[i + D/2]) of x [B, T, H, D]; computed in float32, returned in x's dtype."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
