"""KNorm (Devoto et al., arXiv 2406.11430): keys of small norm receive much attention; they stay."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.cache.policies.config import Eviction
from lt_jax.cache.policies.view import View, keys


def score(view: View, how: Eviction) -> jax.Array:
    """-|k|, [R, Hkv, C] float32.

    Example: keys (3, 4), (0, 1), (1, 0) score -5, -1, -1; with one place to give the older of the two ones gets it.
    """
    return -jnp.sqrt(jnp.sum(jnp.square(keys(view)), -1))
