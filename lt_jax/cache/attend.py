"""Attention of new queries over a cache that first takes their own keys in: the one place where the cache is read.

`dense` is the definition; `blocks` walks over the slots in blocks and stops behind the longest row; `native` is the CPU
kernel, `pallas` the TPU kernel for one token a row and `triton` the kernels for NVIDIA GPUs, and these stop behind each
row's own last key. The cost of all but `dense` follows the keys that are there and not the capacity.

If none is named, the platform that a program is lowered for decides, and not that of the process: a process on a CPU
can lower decode blocks for TPUs.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax import lax

from lt_jax import cuda, native
from lt_jax.attention import pallas_decode, triton_decode
from lt_jax.cache.kv_cache import SLOTS, pick
from lt_jax.cache.policies import h2o
from lt_jax.errors import UserError

UNSEEN = -1e30  # a score no key can have; finite, so that a query that sees nothing gives zeros and not NaN


def attend(q, k_new, v_new, keys, values, layer: int, rows, start, mask, bound, implementation=None,
           received: bool = False):  # fmt: skip
    """Writes the new keys and values into their slots, then attends.

    Args:
        q: [R, T, H, D].
        k_new, v_new: [R, T, Hkv, D].
        keys, values: [L, B, Hkv, C, D], the whole cache; updated in place where the caller lets go of them.
        layer: which layer.
        rows: [R] int32, the cache rows of the queries, or None for all B in order.
        start: [R] int32, slot of each row's first new key; start + T must not pass C.
        mask: [R, Kb, T, C] bool, visible (query, slot) pairs, new keys included; Kb is 1 or Hkv.
        bound: [R] int32, slots at or after it are not visible to any query of the row.
        implementation: a name of `IMPLEMENTATIONS`; None is the best for platform and shapes, a name never falls back.
        received: whether to sum up what each slot receives, as `cache.policies.h2o.received`.

    Returns:
        attended [R, T, H, D], zeros where a query sees nothing; keys; values; received [R, Hkv, C] float32 or None.

    Raises:
        UserError: the implementation named is not for such shapes or this platform.
    """
    operands = (q, k_new, v_new, keys, values, rows, start, mask, bound)
    form = lambda name: functools.partial(IMPLEMENTATIONS[name], layer=layer, received=received)
    if implementation is not None:
        return form(implementation)(*operands)
    best = {"cpu": "native" if native.available() and native.takes(q.shape[-1], keys.dtype) else "blocks"}
    best["tpu"] = "pallas" if q.shape[1] == 1 and pallas_decode.takes(keys.dtype) else "blocks"
    best["cuda"] = "triton" if cuda.here() and triton_decode.takes(q.shape[-1], keys.dtype) else "blocks"
    if set(best.values()) == {"blocks"}:
        return form("blocks")(*operands)
    return lax.platform_dependent(*operands, **{name: form(how) for name, how in best.items()}, default=form("blocks"))


def _triton(q, k_new, v_new, keys, values, rows, start, mask, bound, *, layer, received):
    fresh = jnp.concatenate([q, k_new.astype(q.dtype), v_new.astype(q.dtype)], 2)
    return triton_decode.attend(fresh, keys, values, layer, rows, start, mask, bound, received=received)


def _native(q, k_new, v_new, keys, values, rows, start, mask, bound, *, layer, received):
    fresh = jnp.concatenate([q, k_new, v_new], 2)
    where = (layer, rows, start, mask, bound)
    out, *rest = native.attend(fresh, keys, values, *where, received=received, implementation="native")
    return out.astype(q.dtype), *rest, *(() if received else (None,))


def _pallas(q, k_new, v_new, keys, values, rows, start, mask, bound, *, layer, received):
    """By the kernel for one token a row: the slots below `bound` are fetched, those that the mask shows are seen."""
    if q.shape[1] != 1:
        raise UserError(f"pallas attention over the cache takes one token a row, not {q.shape[1]}; name 'blocks'")
    if not pallas_decode.takes(keys.dtype):
        raise UserError(f"pallas attention takes float32 and bfloat16 caches, not {keys.dtype}; name 'blocks'")
    keys, values = write(keys, k_new, layer, rows, start), write(values, v_new, layer, rows, start)
    found = pallas_decode.decode(
        q[:, 0], keys, values, bound[:, None], layer=layer, rows=rows, visible=mask[:, :, 0], received=received
    )
    return found.out[:, None], keys, values, found.received


def _plain(how, q, k_new, v_new, keys, values, rows, start, mask, bound, *, layer, received):
    """By `dense` or `blocks`, and what the slots received by a pass of its own."""
    keys, values = write(keys, k_new, layer, rows, start), write(values, v_new, layer, rows, start)
    out = how(q, keys, values, layer, rows, mask, bound)
    if not received:
        return out, keys, values, None
    sums = h2o.received(q, pick(keys[layer], rows, 0), mask)
    # The next layer's keys are written in place: this one's must have been read by then.
    out, sums = lax.optimization_barrier((out, sums))
    return out, keys, values, sums


def write(cached, new, layer: int, rows, start):
    """cached [L, B, Hkv, C, D] with new [R, T, Hkv, D] in slots start.. of the given rows."""
    batch, tokens, heads, size = new.shape
    _, b, _, c, _ = cached.shape
    rows = jnp.arange(batch) if rows is None else rows
    slot = start[:, None] + jnp.arange(tokens)
    # As rows of a table of [D]: on a TPU a scatter of whole (Hkv, D) windows would want the heads innermost, and the
    # cache would be copied into that layout and back at every step.
    place = ((layer * b + rows[:, None, None]) * heads + jnp.arange(heads)) * c + slot[:, :, None]
    table = cached.reshape(-1, size).at[place.reshape(-1)].set(
        new.astype(cached.dtype).reshape(-1, size), mode="promise_in_bounds", unique_indices=True
    )
    return table.reshape(cached.shape)


def grouped(q, kv_heads: int):
    """[R, T, H, D] -> [R, Hkv, G * T, D], scaled: the queries that share a kv head together."""
    r, t, h, d = q.shape
    q = (q * d**-0.5).reshape(r, t, kv_heads, h // kv_heads, d)
    return q.transpose(0, 2, 3, 1, 4).reshape(r, kv_heads, -1, d)


def ungrouped(x, tokens: int, dtype):
    """[R, Hkv, G * T, D] -> [R, T, H, D]."""
    r, kv_heads, _, d = x.shape
    return x.reshape(r, kv_heads, -1, tokens, d).transpose(0, 3, 1, 2, 4).reshape(r, tokens, -1, d).astype(dtype)


def dense(q, keys, values, layer, rows, mask, bound):
    """The definition: all slots at once."""
    k, v = (pick(x[layer], rows, 0) for x in (keys, values))
    q_ = grouped(q, k.shape[1])
    scores = jnp.einsum("bhqd,bhsd->bhqs", q_, k, preferred_element_type=jnp.float32)
    seen = _repeat(mask, scores.shape[2])
    scores = jnp.where(seen, scores, UNSEEN)
    weights = jnp.where(seen, jnp.exp(scores - scores.max(-1, keepdims=True)), 0)
    out = jnp.einsum("bhqs,bhsd->bhqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return ungrouped(out / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30), q.shape[1], q.dtype)


def blocks(q, keys, values, layer, rows, mask, bound):
    """Flash-style over blocks of `SLOTS` slots, up to the largest bound."""
    heads, size = keys.shape[2], keys.shape[4]
    q_ = grouped(q, heads)

    def step(i, carry):
        top, total, out = carry
        k, v = (_block(x, layer, rows, i, heads, size) for x in (keys, values))
        scores = jnp.einsum("bhqd,bhsd->bhqs", q_, k, preferred_element_type=jnp.float32)
        seen = _repeat(lax.dynamic_slice_in_dim(mask, i * SLOTS, SLOTS, 3), q_.shape[2])
        scores = jnp.where(seen, scores, UNSEEN)
        new = jnp.maximum(top, scores.max(-1))
        weights = jnp.where(seen, jnp.exp(scores - new[..., None]), 0)
        fade = jnp.exp(top - new)
        part = jnp.einsum("bhqs,bhsd->bhqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return new, total * fade + weights.sum(-1), out * fade[..., None] + part

    zero = jnp.zeros(q_.shape[:3], jnp.float32)
    count = jnp.max((bound + SLOTS - 1) // SLOTS)
    _, total, out = lax.fori_loop(0, count, step, (zero + UNSEEN, zero, jnp.zeros(q_.shape, jnp.float32)))
    return ungrouped(out / jnp.maximum(total, 1e-30)[..., None], q.shape[1], q.dtype)


def _block(x, layer, rows, i, heads, size):
    """Slots of block i of one layer, [R, Hkv, SLOTS, D]."""
    cut = lambda row, n: lax.dynamic_slice(x, (layer, row, 0, i * SLOTS, 0), (1, n, heads, SLOTS, size))[0]
    if rows is None:
        return cut(0, x.shape[1])
    return jnp.concatenate([cut(rows[r], 1) for r in range(rows.shape[0])])


def _repeat(mask, queries: int):
    """[R, Kb, T, S] -> [R, Kb, G * T, S], the order of `grouped`."""
    r, kb, t, s = mask.shape
    if queries == t:
        return mask
    return jnp.broadcast_to(mask[:, :, None], (r, kb, queries // t, t, s)).reshape(r, kb, queries, s)


IMPLEMENTATIONS = {
    "dense": functools.partial(_plain, dense),
    "blocks": functools.partial(_plain, blocks),
    "native": _native,
    "pallas": _pallas,
    "triton": _triton,
}
