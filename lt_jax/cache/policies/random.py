"""Random eviction: the baseline that every policy must beat."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.cache.policies.config import Eviction
from lt_jax.cache.policies.view import View


def score(view: View, how: Eviction) -> jax.Array:
    """Uniform numbers, a pure function of (seed, row's draw, layer, head, birth): [R, Hkv, C] float32.

    A key has the same number at every compaction, in whatever slot and batch it is.
    """
    draw = jnp.zeros(view.birth.shape[0], jnp.uint32) if view.draw is None else view.draw
    key = jax.random.fold_in(jax.random.key(how.seed), view.layer)
    heads = (view.first_head + jnp.arange(view.birth.shape[1])).astype(jnp.uint32)

    def one(row, head, birth):
        folded = jax.random.fold_in(jax.random.fold_in(key, row), head)
        return jax.vmap(lambda b: jax.random.uniform(jax.random.fold_in(folded, b)))(birth)

    per_head = jax.vmap(one, (None, 0, 0))
    return jax.vmap(per_head, (0, None, 0))(draw, heads, jnp.maximum(view.birth, 0).astype(jnp.uint32))
