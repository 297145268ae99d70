"""Full attention: no key is evicted. The budget is the capacity; a row that outgrows it ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.cache.policies.config import Eviction
from lt_jax.cache.policies.view import View


def score(view: View, how: Eviction) -> jax.Array:
    """Ones: all keys are worth the same, and the oldest win ties. [R, Hkv, C] float32."""
    return jnp.ones(view.birth.shape, jnp.float32)
