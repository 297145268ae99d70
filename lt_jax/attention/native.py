"""The algorithm of `blocked.py` as compiled CPU code (`native/flash.h`): no graph of small operations a tile."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.attention.blocks import BlockPlan
from lt_jax.lifetimes import GIST_RULES
from lt_jax.native.attention import fits

LANES = 16  # queries that the compiled code takes at a time


def takes(head_size: int, plan: BlockPlan) -> bool:
    """Whether there is a compiled form for these shapes: head size and query blocks in multiples of 16."""
    return fits(head_size, jnp.float32) and plan.block_q % LANES == 0


def forward(q, k, v, plan: BlockPlan, scale: float) -> tuple[jax.Array, jax.Array]:
    """See `flash.FORMS`; computed in float32. Under `vmap` one call after the other, as a scan over layers is."""
    results = _like(q), jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)
    call = jax.ffi.ffi_call("lt_flash_forward", results, vmap_method="sequential")
    out, lse = call(*map(_wide, (q, k, v)), *_operands(plan), **_attributes(plan, scale))
    return out.astype(q.dtype), lse


def backward(q, k, v, plan: BlockPlan, out, lse, dout, scale: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `flash.FORMS`."""
    call = jax.ffi.ffi_call("lt_flash_backward", tuple(map(_like, (q, k, v))), vmap_method="sequential")
    floats = map(_wide, (out, lse, dout))
    grads = call(*map(_wide, (q, k, v)), *_operands(plan), *floats, **_attributes(plan, scale))
    return tuple(grad.astype(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True))


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, jnp.float32)


def _wide(x):
    return x.astype(jnp.float32)


def _operands(plan):
    none = jnp.zeros((0,), jnp.int32)
    given = lambda x: none if x is None else x
    lists, blocks = plan.blocks.shape[:2]
    since = jnp.zeros((lists, blocks, plan.block_q), jnp.int32) if plan.since is None else plan.since
    return (plan.order, plan.birth, plan.death, given(plan.key_gist), given(plan.query_gist), since, plan.blocks,
            plan.n_full, plan.n_active)  # fmt: skip


def _attributes(plan, scale):
    return {"scale": np.float32(scale), "rule": np.int32(GIST_RULES.index(plan.gist_rule))}
