"""H2O (Zhang et al., arXiv 2306.14048): keys that have received the most attention so far stay, beside the newest.

Differs from the released code: what a kv head's keys received is summed over its query heads (the code is for models
with one query head a kv head). The sums are taken when the cache is compacted, from the queries since the last time:
every key that they saw is still there, so they are the sums that adding up at every step would give.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.cache.policies.config import Eviction
from lt_jax.cache.policies.view import View, logits, seen, softmax


def score(view: View, how: Eviction) -> jax.Array:
    """Attention received from all queries so far, [R, Hkv, C] float32; it becomes `received` of the next view.

    Example: queries 1 and 2 with weights (0.7, 0.3, -) and (0.2, 0.2, 0.6): the keys received 0.9, 0.5, 0.6.
    """
    weights = softmax(logits(view), seen(view)[:, :, None])
    before = 0 if view.received is None else view.received
    return before + jnp.sum(weights, (2, 3))
