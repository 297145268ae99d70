"""New keys into the cache and attention over it in one call, in place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

UNSEEN = -1e30  # a score no key can have; finite, so that a query that sees nothing gives zeros and not NaN
LANES, MOST = 16, 256  # the native form takes head sizes that are multiples of LANES, up to MOST


def plain(fresh, keys, values, layer, rows, start, mask, bound, angles, norms, eps, received):
    """The definition; see `lt_jax.native.attend`."""
    tokens, size = fresh.shape[1], fresh.shape[3]
    kv_heads, slots = keys.shape[2:4]
    q, k, v = jnp.split(fresh.astype(jnp.float32), [fresh.shape[2] - 2 * kv_heads, fresh.shape[2] - kv_heads], axis=2)
    if norms is not None:
        q, k = (_norm(x, weights, eps) for x, weights in zip((q, k), norms, strict=True))
    if angles is not None:
        q, k = _rotate(q, *angles), _rotate(k, *angles)
    where = rows[:, None], slice(None), start[:, None] + jnp.arange(tokens)
    keys = keys.at[(layer, *where)].set(k.astype(keys.dtype))
    values = values.at[(layer, *where)].set(v.astype(values.dtype))
    own_keys, own_values = (x[layer][rows].astype(jnp.float32) for x in (keys, values))
    seen = (mask & (jnp.arange(slots) < bound[:, None, None, None]))[:, :, None]  # [R, Kb, 1, T, C]
    grouped = q.reshape(*q.shape[:2], kv_heads, q.shape[2] // kv_heads, size)
    scores = jnp.einsum("rthgd,rhsd->rhgts", grouped, own_keys, precision="highest") * size**-0.5
    scores = jnp.where(seen, scores, UNSEEN)
    weights = jnp.where(seen, jnp.exp(scores - scores.max(-1, keepdims=True)), 0)
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
    out = jnp.einsum("rhgts,rhsd->rthgd", weights, own_values, precision="highest")
    return out.reshape(q.shape), keys, values, weights.sum((2, 3)) if received else None


def _norm(x, weights, eps):
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + eps) * weights


def _rotate(x, cos, sin):
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def native(fresh, keys, values, layer, rows, start, mask, bound, angles, norms, eps, received):
    """As `plain`, by the compiled library."""
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    floats, ints = (lambda x: x.astype(jnp.float32)), (lambda x: jnp.asarray(x, jnp.int32))
    pair = lambda x: [jnp.zeros(0, jnp.float32)] * 2 if x is None else [floats(part) for part in x]
    heads = fresh.shape[2] - 2 * keys.shape[2]
    out = jax.ShapeDtypeStruct((*fresh.shape[:2], heads, fresh.shape[3]), jnp.float32)
    sums = jax.ShapeDtypeStruct((fresh.shape[0], *keys.shape[2:4]) if received else (0,), jnp.float32)
    call = jax.ffi.ffi_call("lt_attend", (out, like(keys), like(values), sums), input_output_aliases={1: 1, 2: 2})
    where = ints(layer), ints(rows), ints(start), ints(bound), mask
    around = (*pair(angles), *pair(norms))
    out, keys, values, sums = call(floats(fresh), keys, values, *where, *around, eps=np.float32(eps))
    return out, keys, values, sums if received else None


def fits(size: int, dtype) -> bool:
    """Whether the native form takes this head size and dtype of the cache."""
    return size % LANES == 0 and size <= MOST and dtype in (jnp.float32, jnp.bfloat16)
