"""Flash attention over the active key blocks of a `BlockPlan`, in plain JAX. No S x S array, forward or backward.

Differences from FlashAttention-2 (Dao, 2023): keys are visited in death-sorted blocks and only where a pair can be
visible; blocks that are full by their bounds skip the mask; one backward pass accumulates dq, dk and dv together.

Tiles hold keys first: scores are [block_k, M] with M = (heads per kv head) * block_q columns, so that the reductions
of the softmax run along the slow axis (whole vectors at a time) and every query head of a group shares the keys. Of
the seven matmuls of a tile only then does none contract the fast axis of both sides, which XLA's CPU matmul does
three times slower. A unit is one (row, kv head). XLA's CPU backend runs elementwise code of a loop on one core but
independent loops side by side: there two units are unrolled in the loop over query blocks (`lanes`). On an
accelerator all units go in lockstep as a batch (`lanes` = 1).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from lt_jax.attention.blocks import BlockPlan, block_mask
from lt_jax.attention.dense import clear

HIDDEN = -1e30  # score of a hidden pair
LOWEST = -1e29  # where the running maximum starts: far above HIDDEN, so hidden pairs weigh exp2(HIDDEN - LOWEST) = 0


def blocked(q, k, v, plan: BlockPlan, scale: float, lockstep: bool) -> jax.Array:
    """Attention under `plan`; q [B, S, H, D], k and v [B, S, Hkv, D] -> [B, S, H, D]. `lockstep`: see above."""
    if q.shape[1] != plan.length or q.shape[0] != plan.rows:
        raise ValueError(f"the plan is for {plan.rows} rows of {plan.length} tokens, q is {q.shape}")
    k, v = clear(k, plan.unseen), clear(v, plan.unseen)
    return _attention(q, k, v, plan, scale, lockstep)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q, k, v, plan, scale, lockstep):
    return _forward(q, k, v, plan, scale, lockstep)[0]


def _forward(q, k, v, plan, scale, lockstep):
    heads, groups = q.shape[2], k.shape[2]
    qt = _tile(q, plan, groups)
    ks, vs = _sort(k, plan), _sort(v, plan)
    units, nq, depth, width = qt.shape

    def query_block(unit, i, out):
        here = jax.lax.dynamic_slice(qt, (unit, i, 0, 0), (1, 1, depth, width))[0, 0]
        start = (jnp.zeros((v.shape[-1], width)), jnp.full((width,), LOWEST), jnp.zeros((width,)))
        step = functools.partial(_forward_step, here, ks, vs, plan, unit, i, scale * math.log2(math.e))
        acc, top, total = _visit(step, start, plan, unit, i, units)
        tile = (acc / jnp.where(total > 0, total, 1)).astype(q.dtype)
        lse = jnp.where(total > 0, top + jnp.log2(total), -HIDDEN)
        return tile, lse

    def body(n, carry):
        i = n % nq
        results = []
        for lane, (out, lses) in enumerate(carry):
            unit = lane * out.shape[0] + n // nq
            tile, lse = query_block(unit, i, out)
            place = (n // nq, i)
            results.append((
                jax.lax.dynamic_update_slice(out, tile[None, None], (*place, 0, 0)),
                jax.lax.dynamic_update_slice(lses, lse[None, None], (*place, 0)),
            ))
        return tuple(results)

    lanes = _lanes(units)
    start = tuple(
        (jnp.zeros((units // lanes, nq, v.shape[-1], width), q.dtype), jnp.zeros((units // lanes, nq, width)))
        for _ in range(lanes)
    )
    done = jax.lax.fori_loop(0, units // lanes * nq, body, start)
    out_t = jnp.concatenate([out for out, _ in done])
    lse = jnp.concatenate([lses for _, lses in done])
    return _untile(out_t, plan, heads), (q, k, v, plan, out_t, lse)


def _lanes(units):
    return 2 if units % 2 == 0 else 1


def _forward_step(qt, ks, vs, plan, unit, i, scale, masked, j, carry):
    acc, top, total = carry
    kb, vb = _block(ks, unit, j), _block(vs, unit, j)
    s = _scores(kb, qt, plan, unit, i, j, scale, masked, ks.shape[0])
    new = jnp.maximum(top, jnp.max(s, 0))
    p = jnp.exp2(s - new)
    shrink = jnp.exp2(top - new)
    total = total * shrink + jnp.sum(p, 0)
    acc = acc * shrink + _dot(vb, p.astype(vb.dtype), 0, 0)
    return acc, new, total


def _scores(kb, qt, plan, unit, i, j, scale, masked, units):
    s = _dot(kb, qt, 1, 0) * scale
    if masked:
        row = unit // (units // plan.blocks.shape[0])
        mask = block_mask(plan, row, i, j)[:, None]
        s = jnp.where(mask, s.reshape(s.shape[0], -1, plan.block_q), HIDDEN).reshape(s.shape)
    return s


def _dot(a, b, i, j):
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, (((i,), (j,)), ((), ())), precision=exact, preferred_element_type=jnp.float32)


def _block(x, unit, j):
    return jax.lax.dynamic_slice(x, (unit, j, 0, 0), (1, 1, *x.shape[2:]))[0, 0]


def _visit(step, carry, plan, unit, i, units):
    row = unit // (units // plan.blocks.shape[0])
    listed = jax.lax.dynamic_slice(plan.blocks, (row, i, 0), (1, 1, plan.blocks.shape[-1]))[0, 0]
    full, active = plan.n_full[row, i], plan.n_active[row, i]
    carry = jax.lax.fori_loop(0, full, lambda t, c: step(False, listed[t], c), carry)
    return jax.lax.fori_loop(full, active, lambda t, c: step(True, listed[t], c), carry)


def _backward(scale, lockstep, saved, dout):
    q, k, v, plan, out_t, lse = saved
    heads, groups = q.shape[2], k.shape[2]
    qt, dot_t = _tile(q, plan, groups), _tile(dout, plan, groups)
    delta = jnp.sum(out_t.astype(jnp.float32) * dot_t, 2)
    qn, don = qt.swapaxes(2, 3), dot_t.swapaxes(2, 3)
    ks, vs = _sort(k, plan), _sort(v, plan)
    units, nq, depth, width = qt.shape
    lanes = _lanes(units)
    per = units // lanes

    def body(n, carry):
        i, place = n % nq, n // nq
        results = []
        for lane, (dq, dk, dv) in enumerate(carry):
            unit = lane * per + place
            tiles = (_block(qt, unit, i), _block(qn, unit, i), _block(dot_t, unit, i), _block(don, unit, i))
            stats = lse[unit, i], delta[unit, i]
            step = functools.partial(_backward_step, tiles, stats, ks, vs, plan, unit, place, i, scale)
            dqb, dk, dv = _visit(step, (jnp.zeros((depth, width)), dk, dv), plan, unit, i, units)
            dq = jax.lax.dynamic_update_slice(dq, (dqb * scale).astype(dq.dtype)[None, None], (place, i, 0, 0))
            results.append((dq, dk, dv))
        return tuple(results)

    zeros = lambda x: jnp.zeros((per, *x.shape[1:]), jnp.float32)
    start = tuple((jnp.zeros((per, nq, depth, width), q.dtype), zeros(ks), zeros(vs)) for _ in range(lanes))
    done = jax.lax.fori_loop(0, per * nq, body, start)
    dq, dk, dv = (jnp.concatenate(parts) for parts in zip(*done, strict=True))
    return _untile(dq, plan, heads), _unsort(dk * scale, plan, k), _unsort(dv, plan, v), None


def _backward_step(tiles, stats, ks, vs, plan, unit, place, i, scale, masked, j, carry):
    (qt, qn, dot_t, don), (lse, delta) = tiles, stats
    dq, dk, dv = carry
    kb, vb = _block(ks, unit, j), _block(vs, unit, j)
    p = jnp.exp2(_scores(kb, qt, plan, unit, i, j, scale * math.log2(math.e), masked, ks.shape[0]) - lse)
    ds = (p * (_dot(vb, dot_t, 1, 0) - delta)).astype(kb.dtype)
    at = (place, j, 0, 0)
    add = lambda whole, part: jax.lax.dynamic_update_slice(whole, (_block(whole, place, j) + part)[None, None], at)
    dv = add(dv, _dot(p.astype(vb.dtype), don, 1, 0))
    dk = add(dk, _dot(ds, qn, 1, 0))
    return dq + _dot(kb, ds, 0, 0), dk, dv


def _tile(x, plan, groups):
    """[B, S, H, D] -> [B * Hkv, nq, D, (H / Hkv) * block_q]."""
    B, S, H, D = x.shape
    nq = plan.blocks.shape[1]
    x = jnp.pad(x, ((0, 0), (0, nq * plan.block_q - S), (0, 0), (0, 0)))
    x = x.reshape(B, nq, plan.block_q, groups, H // groups, D).transpose(0, 3, 1, 5, 4, 2)
    return x.reshape(B * groups, nq, D, -1)


def _untile(x, plan, heads):
    """The way back from `_tile`; padding queries are cut off."""
    B, nq, D = plan.rows, x.shape[1], x.shape[2]
    x = x.reshape(B, x.shape[0] // B, nq, D, -1, plan.block_q).transpose(0, 2, 5, 1, 4, 3)
    return x.reshape(B, nq * plan.block_q, heads, D)[:, : plan.length]


def _sort(x, plan):
    """[B, S, Hkv, D] -> [B * Hkv, nk, block_k, D] in sorted order."""
    B, S, groups, D = x.shape
    if plan.order.shape[0] == B:
        x = jnp.take_along_axis(x, plan.order[:, :, None, None], 1).swapaxes(1, 2)
    else:
        order = plan.order.reshape(B, groups, -1, 1)
        x = jnp.take_along_axis(x.swapaxes(1, 2), order, 2)
    return x.reshape(B * groups, -1, plan.block_k, D)


def _unsort(x, plan, like):
    """The way back from `_sort`, to the shape and dtype of `like`."""
    B, S, groups, D = like.shape
    x = x.reshape(B, groups, -1, D)
    inverse = plan.inverse.reshape(B, -1, S)[..., None]
    return jnp.take_along_axis(x, inverse, 2).swapaxes(1, 2).astype(like.dtype)


_attention.defvjp(_forward, _backward)
