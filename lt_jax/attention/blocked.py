"""Flash attention over the active key blocks of a `BlockPlan`, in plain JAX. No S x S array, forward or backward.

Differences from FlashAttention-2 (Dao, 2023): keys are visited in death-sorted blocks and only where a pair can be
visible; blocks that are full by their bounds skip the mask; one backward pass accumulates dq, dk and dv together.

Tiles hold keys first: scores are [block_k, M] with M = (heads per kv head) * block_q columns. The reductions of the
softmax then run along the slow axis, whole vectors at a time, all query heads of a group share the keys, and no matmul
contracts the fast axis of both sides, which XLA's CPU backend does several times slower.

A unit is one (row, kv head). On a CPU units and query blocks go one after the other, each with its own number of key
blocks. In lockstep (accelerators) all units are one batch and wait for the longest list.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from lt_jax.attention.blocks import BlockPlan, block_mask, sort_keys, unsort_keys

LOG2_E = math.log2(math.e)
HIDDEN = -1e30  # score of a hidden pair
LOWEST = -1e29  # where the running maximum starts: far above HIDDEN, so hidden pairs weigh exp2(HIDDEN - LOWEST) = 0


def forward(q, k, v, plan: BlockPlan, scale: float, lockstep: bool) -> tuple[jax.Array, jax.Array]:
    """See `flash.FORMS`; lse is to the base 2. `lockstep`: see above."""
    before, after = _scaling(q, scale)
    qt, ks, vs = _tile(q * before, plan, k.shape[2]), sort_keys(k, plan), sort_keys(v, plan)
    units, nq, depth, width = qt.shape

    def lane(unit, at, i, limit, carry):
        out, lses = carry
        step = functools.partial(_forward_step, _block(qt, unit, i), after)
        start = (jnp.zeros((depth, width)), jnp.full((width,), LOWEST), jnp.zeros((width,)))
        acc, top, total = _visit(step, start, ks, vs, plan, unit, i, limit, width)
        tile = (acc / jnp.where(total > 0, total, 1)).astype(q.dtype)
        lse = jnp.where(total > 0, top + jnp.log2(total), -HIDDEN)
        lses = jax.lax.dynamic_update_slice(lses, lse[None, None], (at, i, 0))
        return jax.lax.dynamic_update_slice(out, tile[None, None], (at, i, 0, 0)), lses

    start = lambda per: (jnp.zeros((per, nq, depth, width), q.dtype), jnp.zeros((per, nq, width)))
    out, lse = _for_each_query_block(lane, start, plan, units, lockstep)
    lse = lse.reshape(plan.rows, -1, nq, width // plan.block_q, plan.block_q).swapaxes(2, 3)
    return _untile(out, plan, q.shape[2]), lse.reshape(plan.rows, q.shape[2], -1)[..., : plan.length]


def _forward_step(qt, after, kb, vb, mask, j, carry):
    acc, top, total = carry
    scores = _scores(kb, qt, after, mask)
    new = jnp.maximum(top, jnp.max(scores, 0))
    weights = jnp.exp2(scores - new)
    shrink = jnp.exp2(top - new)
    total = total * shrink + jnp.sum(weights, 0)
    return acc * shrink + _dot(vb, weights.astype(vb.dtype), 0, 0), new, total


def backward(q, k, v, plan: BlockPlan, out, lse, dout, scale: float, lockstep: bool):
    """See `flash.FORMS`."""
    before, after = _scaling(q, scale)
    qt, dot = _tile(q * before, plan, k.shape[2]), _tile(dout, plan, k.shape[2])
    delta = jnp.sum(out.astype(jnp.float32) * dout, -1).swapaxes(1, 2)
    qn, don = qt.swapaxes(2, 3), dot.swapaxes(2, 3)
    ks, vs = sort_keys(k, plan), sort_keys(v, plan)
    units, nq, depth, width = qt.shape
    lse, delta = (_columns(x, plan, units) for x in (lse, delta))

    def lane(unit, at, i, limit, carry):
        dq, dk, dv = carry
        tiles = (_block(qt, unit, i), _block(qn, unit, i), _block(dot, unit, i), _block(don, unit, i))
        step = functools.partial(_backward_step, tiles, lse[unit, i], delta[unit, i], after, at)
        tile, dk, dv = _visit(step, (jnp.zeros((depth, width)), dk, dv), ks, vs, plan, unit, i, limit, width)
        tile = (tile * scale).astype(dq.dtype)
        return jax.lax.dynamic_update_slice(dq, tile[None, None], (at, i, 0, 0)), dk, dv

    start = lambda per: (
        jnp.zeros((per, nq, depth, width), q.dtype), jnp.zeros((per, *ks.shape[1:])), jnp.zeros((per, *vs.shape[1:]))
    )
    dq, dk, dv = _for_each_query_block(lane, start, plan, units, lockstep)
    return _untile(dq, plan, q.shape[2]), unsort_keys(dk * (scale / before), plan, k), unsort_keys(dv, plan, v)


def _backward_step(tiles, lse, delta, after, at, kb, vb, mask, j, carry):
    qt, qn, dot, don = tiles
    dq, dk, dv = carry
    # Apart from the mask: XLA's CPU backend takes the two in one loop for heavy, and splits it over threads at a loss.
    scores = jax.lax.optimization_barrier(_scores(kb, qt, after, mask))
    weights = jnp.exp2(scores - lse)
    dscores = (weights * (_dot(vb, dot, 1, 0) - delta)).astype(kb.dtype)
    add = lambda whole, part: jax.lax.dynamic_update_slice(
        whole, (_block(whole, at, j) + part)[None, None], (at, j, 0, 0)
    )
    dv = add(dv, _dot(weights.astype(vb.dtype), don, 1, 0))
    dk = add(dk, _dot(dscores, qn, 1, 0))
    return dq + _dot(kb, dscores, 0, 0), dk, dv


def _scaling(q, scale):
    """Factors of q before and of the scores after the matmul, which make exp(scale q k) exp2 of the scores."""
    factor = scale * LOG2_E
    return (factor, None) if q.dtype == jnp.float32 else (1, factor)  # bfloat16 would lose digits of q


def _scores(kb, qt, after, mask):
    scores = _dot(kb, qt, 1, 0)
    if after is not None:
        scores = scores * after
    if mask is not None:
        scores = jnp.where(mask, scores, HIDDEN)
    return scores


def _dot(a, b, i, j):
    """Matmul that contracts axis i of a with axis j of b, to float32."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, (((i,), (j,)), ((), ())), precision=exact, preferred_element_type=jnp.float32)


def _block(x, unit, j):
    return jax.lax.dynamic_slice(x, (unit, j, 0, 0), (1, 1, *x.shape[2:]))[0, 0]


def _visit(step, carry, ks, vs, plan, unit, i, limit, width):
    """Run `step` over the key blocks that query block `i` of `unit` may see, on tiles of `width` columns.

    `limit` None: full blocks first, without a mask, then partial ones. Otherwise all lanes make `limit` masked steps
    and those past the end of a lane's list see nothing.
    """
    row = unit // (ks.shape[0] // plan.blocks.shape[0])
    listed = jax.lax.dynamic_slice(plan.blocks, (row, i, 0), (1, 1, plan.blocks.shape[-1]))[0, 0]
    active = plan.n_active[row, i]

    def visit(masked, t, carry):
        j = listed[t]
        mask = block_mask(plan, row, i, j, width) if masked else None
        if limit is not None:
            mask = mask & (t < active)
        return step(_block(ks, unit, j), _block(vs, unit, j), mask, j, carry)

    if limit is not None:
        return jax.lax.fori_loop(0, limit, functools.partial(visit, True), carry)
    full = plan.n_full[row, i]
    carry = jax.lax.fori_loop(0, full, functools.partial(visit, False), carry)
    return jax.lax.fori_loop(full, active, functools.partial(visit, True), carry)


def _for_each_query_block(lane, start, plan, units, lockstep):
    """Run `lane(unit, at, i, limit, carry)` for every unit and query block i; `at` is the unit's place in its carry.

    `start(n)` makes the carry of a lane of n units, with leading axis n. Returns carries with leading axis `units`.
    """
    nq = plan.blocks.shape[1]
    if not lockstep:
        body = lambda n, carry: lane(n // nq, n // nq, n % nq, None, carry)
        return jax.lax.fori_loop(0, units * nq, body, start(units))
    lanes = jax.vmap(lane, in_axes=(0, None, None, None, 0))
    body = lambda i, carry: lanes(jnp.arange(units), 0, i, jnp.max(plan.n_active[:, i]), carry)
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (units, *x.shape)), start(1))
    return jax.tree.map(lambda x: x[:, 0], jax.lax.fori_loop(0, nq, body, carry))


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


def _columns(x, plan, units):
    """[B, H, S] -> [B * Hkv, nq, (H / Hkv) * block_q], the columns of `_tile`; zeros for padding queries."""
    nq = plan.blocks.shape[1]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, nq * plan.block_q - plan.length)))
    return x.reshape(units, -1, nq, plan.block_q).swapaxes(1, 2).reshape(units, nq, -1)
