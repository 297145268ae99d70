"""The algorithm of `blocked.py` as compiled CPU code (`native/flash.h`): no graph of small operations a tile."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.attention.blocks import BlockPlan
from lt_jax.attention.dense import clear
from lt_jax.lifetimes import GIST_RULES
from lt_jax.native.attention import fits

LANES = 16  # queries that the compiled code takes at a time


def takes(head_size: int, plan: BlockPlan) -> bool:
    """Whether there is a compiled form for these shapes: head size and query blocks in multiples of 16."""
    return fits(head_size, jnp.float32) and plan.block_q % LANES == 0


def native(q, k, v, plan: BlockPlan, scale: float) -> jax.Array:
    """softmax(scale q k^T over the visible keys) v under `plan`, computed in float32; shapes as `blocked.blocked`."""
    k, v = clear(k, plan.unseen), clear(v, plan.unseen)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    return _attention(*wide, plan, scale).astype(q.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, plan, scale):
    return _forward(q, k, v, plan, scale)[0]


def _forward(q, k, v, plan, scale):
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    results = like(*q.shape), like(q.shape[0], q.shape[2], q.shape[1])
    out, lse = jax.ffi.ffi_call("lt_flash_forward", results)(q, k, v, *_operands(plan), **_attributes(plan, scale))
    return out, (q, k, v, plan, out, lse)


def _backward(scale, saved, dout):
    q, k, v, plan, out, lse = saved
    results = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (q, k, v)]
    call = jax.ffi.ffi_call("lt_flash_backward", results)
    return *call(q, k, v, *_operands(plan), out, lse, dout, **_attributes(plan, scale)), None


_attention.defvjp(_forward, _backward)


def _operands(plan):
    none = jnp.zeros((0,), jnp.int32)
    given = lambda x: none if x is None else x
    lists, blocks = plan.blocks.shape[:2]
    since = jnp.zeros((lists, blocks, plan.block_q), jnp.int32) if plan.since is None else plan.since
    return (plan.order, plan.birth, plan.death, given(plan.key_gist), given(plan.query_gist), since, plan.blocks,
            plan.n_full, plan.n_active)  # fmt: skip


def _attributes(plan, scale):
    return {"scale": np.float32(scale), "rule": np.int32(GIST_RULES.index(plan.gist_rule))}
