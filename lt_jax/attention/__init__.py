"""Attention under lifetimes: `attention(q, k, v, lifetimes)`, with `prepare(lifetimes)` once per step."""

from __future__ import annotations

import jax

from lt_jax.attention import blocks
from lt_jax.attention import dense as _dense
from lt_jax.attention.blocked import blocked
from lt_jax.attention.blocks import BlockPlan
from lt_jax.attention.dense import DensePlan, dense
from lt_jax.lifetimes import Lifetimes

__all__ = ["IMPLEMENTATIONS", "BlockPlan", "DensePlan", "Plan", "attention", "blocked", "dense", "prepare"]

Plan = DensePlan | BlockPlan
IMPLEMENTATIONS = ("dense", "blocked")


def prepare(lifetimes: Lifetimes, implementation: str | None = None, *, block_q: int = 128, block_k: int = 128) -> Plan:
    length = lifetimes.death.shape[-1]
    name = implementation or "blocked"
    if name == "dense":
        return _dense.build(lifetimes)
    fit = lambda block: min(block, -(-length // 16) * 16)
    return blocks.build(lifetimes, fit(block_q), fit(block_k))


def attention(q, k, v, lifetimes, implementation=None, scale=None) -> jax.Array:
    plan = prepare(lifetimes, implementation) if isinstance(lifetimes, Lifetimes) else lifetimes
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if isinstance(plan, DensePlan):
        return dense(q, k, v, plan, scale)
    return blocked(q, k, v, plan, scale, False)
