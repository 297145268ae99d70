"""KeyDiff (Park et al., arXiv 2504.15364): keys unlike the average direction stay."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.cache.policies.config import Eviction
from lt_jax.cache.policies.view import View


def score(view: View, how: Eviction) -> jax.Array:
    """-cos(k, mean of the unit keys), [R, Hkv, C] float32.

    Example: keys (1, 0), (1, 0), (0, 1) have mean (2/3, 1/3) and score -0.894, -0.894, -0.447.
    """
    unit = directions(view.k, view.alive)
    mean = jnp.sum(unit, 2, keepdims=True) / jnp.maximum(jnp.sum(view.alive, 2)[..., None, None], 1)
    return -jnp.sum(unit * mean, -1) / jnp.maximum(jnp.linalg.norm(mean, axis=-1), 1e-8)


def directions(k: jax.Array, alive: jax.Array) -> jax.Array:
    """k / (|k| + 1e-8), zeros in dead slots: [R, Hkv, C, D] float32."""
    k = jnp.where(alive[..., None], k.astype(jnp.float32), 0)
    return k / (jnp.linalg.norm(k, axis=-1, keepdims=True) + 1e-8)
