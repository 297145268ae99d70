"""New keys into the cache and attention over it in one call, in place."""

from __future__ import annotations

import jax
import jax.numpy as jnp

NONE = -1e30  # a score no key can have; finite, so that a query that sees nothing gives zeros and not NaN
LANES, MOST = 16, 256  # the native form takes head sizes that are multiples of LANES, up to MOST


def plain(q, k, v, keys, values, layer, rows, start, mask, bound):
    """The definition; see `lt_jax.native.attend`."""
    tokens, heads, size = q.shape[1:]
    where = rows[:, None], slice(None), start[:, None] + jnp.arange(tokens)
    keys = keys.at[(layer, *where)].set(k.astype(keys.dtype))
    values = values.at[(layer, *where)].set(v.astype(values.dtype))
    own_keys, own_values = (x[layer][rows].astype(jnp.float32) for x in (keys, values))
    kv_heads, slots = own_keys.shape[1:3]
    seen = (mask & (jnp.arange(slots) < bound[:, None, None, None]))[:, :, None]  # [R, Kb, 1, T, C]
    grouped = q.astype(jnp.float32).reshape(*q.shape[:2], kv_heads, heads // kv_heads, size)
    scores = jnp.einsum("rthgd,rhsd->rhgts", grouped, own_keys, precision="highest") * size**-0.5
    scores = jnp.where(seen, scores, NONE)
    weights = jnp.where(seen, jnp.exp(scores - scores.max(-1, keepdims=True)), 0)
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
    out = jnp.einsum("rhgts,rhsd->rthgd", weights, own_values, precision="highest")
    return out.reshape(q.shape), keys, values


def native(q, k, v, keys, values, layer, rows, start, mask, bound):
    """As `plain`, by the compiled library."""
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    floats, ints = (lambda x: x.astype(jnp.float32)), (lambda x: jnp.asarray(x, jnp.int32))
    q = floats(q)
    call = jax.ffi.ffi_call("lt_attend", (like(q), like(keys), like(values)), input_output_aliases={3: 1, 4: 2})
    return call(q, floats(k), floats(v), keys, values, ints(layer), ints(rows), ints(start), ints(bound), mask)


def fits(q, keys) -> bool:
    """Whether the native form takes these shapes and dtypes."""
    size = q.shape[-1]
    return size % LANES == 0 and size <= MOST and keys.dtype in (jnp.float32, jnp.bfloat16)
