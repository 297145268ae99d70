"""TOVA (Oren et al., arXiv 2401.06104): who the last query attends to stays; all heads keep the same keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.cache.policies.config import Eviction
from lt_jax.cache.policies.view import View, logits, seen, softmax


def score(view: View, how: Eviction) -> jax.Array:
    """Softmax of the last query, mean over all query heads, the same for every kv head: [R, Hkv, C] float32.

    Where heads have come to hold different keys (they do not, from this score) the mean is over slots.

    Example: two heads with weights (0.5, 0.3, 0.2) and (0.1, 0.3, 0.6) score 0.3, 0.3, 0.4.
    """
    last = (view.asked == jnp.max(view.asked, -1, keepdims=True)) & (view.asked >= 0)
    weights = softmax(logits(view), seen(view)[:, :, None])
    mine = jnp.sum(jnp.where(last[:, None, None, :, None], weights, 0), 3)
    return jnp.broadcast_to(jnp.mean(mine, (1, 2))[:, None], view.birth.shape)
