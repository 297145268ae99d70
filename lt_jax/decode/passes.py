"""One pass of new tokens through the model and into the cache: prefill, closing a thought, the ordinary step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lt_jax import cache as slots
from lt_jax.cache import KVCache
from lt_jax.decode.weights import attend, by_triton, embed, finish, logits, queries
from lt_jax.models import rope
from lt_jax.models.config import DecoderConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Feed:
    """Tokens to feed, [R, T] int32; row r feeds its first `count[r]`, the rest is padding.

    Attributes:
        tokens: [R, T].
        first: [R] index of each row's first token.
        count: [R], 0 for a row that must not change.
        rows: [R] cache rows, or None for all in order.
        death: [R, T] of the new keys, or None (NEVER).
        since: [R, T], or None (0).
        gist: [R, T] gist-block ids, or None; needed unless the gist rule is "causal".
        mark: [R, T] int8 of the new keys, where the cache keeps marks, see `KVCache`.
    """

    tokens: jax.Array
    first: jax.Array
    count: jax.Array
    rows: jax.Array | None = None
    death: jax.Array | None = None
    since: jax.Array | None = None
    gist: jax.Array | None = None
    mark: jax.Array | None = None


def run(
    weights: dict,
    config: DecoderConfig,
    cache: KVCache,
    feed: Feed,
    *,
    gist_rule="causal",
    ending=None,
    form: str | None = None,
    axis: str | None = None,
):
    """Feeds the tokens: their keys join the cache, and every token sees what the rule lets it see.

    Args:
        form: of attention, see `cache.attend`; "pallas" stands for "blocks" where there are several tokens.
        axis: of the mesh, see `cache.across`.
        ending: (first, end, death), [R] each: keys with births first..end-1 die at `death`, already in this pass.

    Returns:
        logits [R, V] float32 of each row's last token, cache, visible [R, T] int32 (keys each token saw, itself
        included), held [R] int32 (keys in the cache in this pass); both summed over the layers and heads of the books.
        With an axis logits are of this device's part of the vocabulary, the sums over its own heads.
    """
    rows, tokens = feed.rows, feed.tokens
    offset = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    # Nothing is packed here: the RoPE position of a token is its index in the row, and stays so when others die.
    index = feed.first[:, None] + offset
    form = "blocks" if form == "pallas" and tokens.shape[1] > 1 else form
    cache, start = slots.append(cache, rows, feed.first, feed.count, feed.death, feed.mark)
    # The padding of a row that does not change goes behind its keys. A finished row may have no room, nor need any.
    start = jnp.where(feed.count > 0, start, jnp.minimum(start, cache.capacity - tokens.shape[1]))
    if ending is not None:
        cache = slots.drop(cache, rows, *ending)
    query = jnp.where(offset < feed.count[:, None], index, -1)
    gists = (None, None) if gist_rule == "causal" else (_slot_gists(cache, start, feed), feed.gist)
    mask = slots.visible(cache, rows, query, feed.since, *gists, gist_rule)
    bound = jnp.where(feed.count > 0, slots.kv_cache.pick(cache.length, rows), 0)
    angles = rope.table(config, index)
    x = embed(weights, config, tokens, axis)
    if tokens.size == 1 and by_triton(form, config, cache.k):
        # Of one row XLA's GPU compiler makes no product where it is small, but writes the weights times the row into
        # memory, to add that up; of two rows it does.
        x = jnp.pad(x, ((0, 1), (0, 0), (0, 0)))
    keys, values, asked, received = cache.k, cache.v, [], []
    for number, layer in enumerate(weights["layers"]):
        own = min(number, mask.shape[0] - 1)
        where = (number, rows, start[own], mask[own], bound[own])
        sums = cache.received is not None
        attended, keys, values, fresh, new = attend(layer, config, x, angles, keys, values, where, form, sums)
        asked += [queries(layer, config, fresh, angles)] if cache.asked is not None else []
        received += [new] if sums else []
        x = finish(layer, config, x, attended, axis)
    last = jnp.maximum(feed.count - 1, 0)
    x = x[: len(tokens)]
    x = x[:, 0] if tokens.shape[1] == 1 else jnp.take_along_axis(x, last[:, None, None], 1)[:, 0]
    seen = jnp.sum(mask, (0, 2, 4), dtype=jnp.int32)
    held = jnp.sum(slots.kv_cache.pick(cache.birth, rows) >= 0, (0, 2, 3), dtype=jnp.int32)
    out = logits(weights, config, x, axis)
    cache = _observed(dataclasses.replace(cache, k=keys, v=values), rows, query, asked, received)
    return out, cache, seen, held


def _observed(cache: KVCache, rows, index, asked: list, received: list) -> KVCache:
    """What the policy will want to know: the queries into the ring, the attention that the keys received.

    Args:
        index: [R, T] of the queries, -1 for padding.
        asked: per layer the queries [R, T, H, D]; received: per layer [R, Hkv, C]. Empty where not wanted.
    """
    if received:
        before = slots.kv_cache.pick(cache.received, rows)
        cache = slots.kv_cache.replaced(cache, rows, received=before + jnp.stack(received))
    if not asked:
        return cache
    size = cache.asked.shape[1]
    rows = jnp.arange(cache.asked.shape[0]) if rows is None else rows
    newest = (index >= 0) & (index > jnp.max(index, 1, keepdims=True) - size)
    place = jnp.where(newest, index % size, size)
    layers, batch, heads, _, depth = cache.queries.shape
    layer, head = jnp.arange(layers)[:, None, None, None], jnp.arange(heads)
    at = ((layer * batch + rows[:, None, None]) * heads + head) * size + place[:, :, None]
    at = jnp.where(newest[:, :, None], at, layers * batch * heads * size)
    ring = cache.queries.reshape(-1, depth).at[at.reshape(-1)].set(  # as `cache.attend.write`
        jnp.stack(asked).astype(cache.queries.dtype).reshape(-1, depth), mode="drop"
    )
    asked = cache.asked.at[rows[:, None], place].set(index, mode="drop")
    return dataclasses.replace(cache, queries=ring.reshape(cache.queries.shape), asked=asked)


def _slot_gists(cache: KVCache, start, feed: Feed):
    """[Lb, R, 1, C]: the gist-block ids of this pass's keys in their slots. A block never spans two passes."""
    offset = jnp.arange(cache.capacity, dtype=jnp.int32) - start[:, :, None]
    own = jnp.take_along_axis(
        jnp.broadcast_to(feed.gist, (start.shape[0], *feed.gist.shape)), jnp.clip(offset, 0, feed.gist.shape[1] - 1), -1
    )
    return jnp.where((offset >= 0) & (offset < feed.count[:, None]), own, -1)[:, :, None]
