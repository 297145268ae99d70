"""H2O (Zhang et al., arXiv 2306.14048): keys that have received the most attention so far stay, beside the newest.

Differs from the released code: what a kv head's keys received is summed over its query heads (the code is for models
with one query head a kv head).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.cache.policies.config import Eviction
from lt_jax.cache.policies.view import View, softmax


def score(view: View, how: Eviction) -> jax.Array:
    """Attention received from all queries so far, [R, Hkv, C] float32; the engine adds up `received` as it goes."""
    return view.received


def received(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention that each key receives from new queries, summed over them and over the heads of a group.

    Args:
        q: [R, T, H, D] rotated queries. k: [R, Hkv, C, D]. mask: [R, Kb, T, C] bool, Kb is 1 or Hkv.

    Returns:
        [R, Hkv, C] float32.

    Example: queries 1 and 2 with weights (0.7, 0.3, -) and (0.2, 0.2, 0.6): the keys received 0.9, 0.5, 0.6.
    """
    rows, tokens, heads, size = q.shape
    grouped = q.astype(jnp.float32).reshape(rows, tokens, k.shape[1], heads // k.shape[1], size)
    seen = jnp.broadcast_to(mask, (rows, k.shape[1], *mask.shape[2:]))
    clean = jnp.where(jnp.any(seen, 2)[..., None], k.astype(jnp.float32), 0)
    scores = jnp.einsum("rthgd,rhcd->rhgtc", grouped, clean, precision="highest") * size**-0.5
    return jnp.sum(softmax(scores, seen[:, :, None]), (2, 3))
