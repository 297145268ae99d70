"""SnapKV in its decoding form (Li et al., arXiv 2404.14469, as in the R-KV release): whom the last queries see stays.

Differs from the paper: logits of the query heads of a group are joined by their maximum before the softmax, the
window's keys are not in the softmax, and pooling takes the maximum over 7, as R-KV's code does. The paper pools
averages over 5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from lt_jax.cache.policies.config import Eviction
from lt_jax.cache.policies.view import LOWEST, View, logits, recent, softmax


def score(view: View, how: Eviction) -> jax.Array:
    """Pooled mean attention of the last `window` queries to the keys before the window: [R, Hkv, C] float32.

        a = max over the group of q k / sqrt(D)
        I = max_pool(mean over queries of softmax over keys before the window of a)

    Example: mean weights 0.1, 0.6, 0.1, 0.1, 0.1 pooled by 3 score 0.6, 0.6, 0.6, 0.1, 0.1.
    """
    candidate = view.alive & ~recent(view, how.window)
    asking = (view.asked >= 0) & (view.asked >= view.index[:, None] - how.window)
    weights = softmax(jnp.max(logits(view), 2), candidate[:, :, None])
    count = jnp.maximum(jnp.sum(asking, -1), 1)
    mean = jnp.sum(jnp.where(asking[:, None, :, None], weights, 0), 2) / count[:, None, None]
    return pool(jnp.where(candidate, mean, LOWEST), how.kernel)


def pool(x: jax.Array, kernel: int) -> jax.Array:
    """Maximum over `kernel` neighbouring slots, the slot in the middle: [..., C] -> [..., C]."""
    ones = (1,) * (x.ndim - 1)
    return lax.reduce_window(x, LOWEST, lax.max, (*ones, kernel), (*ones, 1), "SAME")
