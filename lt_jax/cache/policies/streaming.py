"""StreamingLLM (Xiao et al., arXiv 2309.17453): the first keys of the row, and the newest.

Differs from the paper: keys keep the rotation of their own position, where the paper's cache holds keys without
rotation and rotates them by slot number at every step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.cache.policies.config import Eviction
from lt_jax.cache.policies.view import View


def score(view: View, how: Eviction) -> jax.Array:
    """The birth, so that the newest stay; the sinks are protected by their class. [R, Hkv, C] float32.

    Example, budget 4, sinks 2, ten keys:

        birth   0 1 2 3 4 5 6 7 8 9
        kept    x x . . . . . . x x
    """
    return view.birth.astype(jnp.float32)
