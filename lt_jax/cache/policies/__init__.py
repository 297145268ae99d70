"""Who is evicted when a cache is over its budget: one file for each policy, `score(view, how) -> [R, Hkv, C]`.

Everything else is written once, in `select.py`: what is protected, how ties fall, who shares a choice, where keys go.
"""

from __future__ import annotations

from lt_jax.cache.policies import full, h2o, keydiff, knorm, random, rkv, sepllm, snapkv, streaming, tova
from lt_jax.cache.policies.config import Eviction, published, pyramid
from lt_jax.cache.policies.select import protected, ranked, seats, shared, stays
from lt_jax.cache.policies.view import View

__all__ = ["POLICIES", "Eviction", "View", "protected", "published", "pyramid", "ranked", "seats", "shared", "stays"]

POLICIES = {  # in the order of `config.POLICIES`
    "full": full.score,
    "streaming": streaming.score,
    "h2o": h2o.score,
    "tova": tova.score,
    "knorm": knorm.score,
    "keydiff": keydiff.score,
    "snapkv": snapkv.score,
    "rkv": rkv.score,
    "sepllm": sepllm.score,
    "random": random.score,
}
