"""R-KV (Cai et al., arXiv 2505.24133): keys that are attended to and are not copies of later ones stay.

Differs from the released code: a key without a duplicate forgives none, where the code forgives slot 0 (only with
order="reference" here, for parity); every row of a batch has its own redundancy; dead slots take no part.
"""

from __future__ import annotations

import jax

from lt_jax.cache.policies import snapkv
from lt_jax.cache.policies.config import Eviction
from lt_jax.cache.policies.redundancy import redundancy
from lt_jax.cache.policies.view import View


def score(view: View, how: Eviction) -> jax.Array:
    """mix * importance - (1 - mix) * redundancy, [R, Hkv, C] float32. Importance is SnapKV's, so mix 1 is SnapKV.

    Example: importance 0.5, 0.4, 0.1, redundancy 0.6, 0.2, 0.2 and mix 0.5 give -0.05, 0.1, -0.05.
    """
    importance = snapkv.score(view, how)
    if how.mix == 1:
        return importance
    return how.mix * importance - (1 - how.mix) * redundancy(view, how.threshold, how.order == "reference")
