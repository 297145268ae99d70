"""SepLLM (Chen et al., arXiv 2412.12094): the first keys, the newest, and the newest separators between them.

Differs from the released code: the cache is compacted when it is full, not when the window outgrows its part, and rows
of a batch keep their own number of separators. Places that separators leave free go to the newest other keys.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.cache.policies.config import Eviction
from lt_jax.cache.policies.view import View, recent


def score(view: View, how: Eviction) -> jax.Array:
    """2 + birth / (index + 1) for the newest `separator_room` separators before the window, without the 2 for others.

    Example, budget 6, sinks 1, window 2, room 2, separators at 2, 4, 6 of ten keys; the newest gets what is left over:

        birth   0 1 2 3 4 5 6 7 8 9
        kept    x . . . x . x x x x

    Returns [R, Hkv, C] float32.
    """
    age = view.birth / (view.index[:, None, None] + 1.0)
    old = view.separator & view.alive & ~recent(view, how.window)
    newer = jnp.cumsum(old[..., ::-1], -1)[..., ::-1]  # itself included
    return age.astype(jnp.float32) + 2.0 * (old & (newer <= how.separator_room))
