"""Rotary position embedding (Su et al. 2021), half-split as in Hugging Face checkpoints, with Llama 3 scaling."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.models.config import DecoderConfig


def frequencies(config: DecoderConfig) -> np.ndarray:
    """Radians per position of each rotated pair, [D/2] float32."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    inverse = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    # Llama 3.1: wavelengths longer than the old context / low_freq_factor are slowed, shorter than
    # the old context / high_freq_factor kept, and those between are blended linearly in old context / wavelength.
    wavelength = 2 * math.pi / inverse
    turns = scaling.original_max_positions / wavelength
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return ((1 - blend) * inverse / scaling.factor + blend * inverse).astype(np.float32)


def table(config: DecoderConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of every angle: positions [B, T] int32 -> two [B, T, 1, D/2] float32. Made once for all layers."""
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (x[i], x[i + D/2]) of x [B, T, H, D]; computed in float32, returned in x's dtype."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
