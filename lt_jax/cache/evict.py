"""Bringing rows back to their budget: score, choose, move the keys that stay, write the deaths of the others down."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from lt_jax.cache import across, kv_cache
from lt_jax.cache.kv_cache import GIST, NEVER, SEPARATOR, KVCache, pick
from lt_jax.cache.policies import POLICIES, Eviction, View, protected, seats, shared, stays


def empty_evicting(model, rows: int, capacity: int, how: Eviction, horizon: int, closes: bool) -> KVCache:
    """A cache without keys for `how`, with what it needs to know of them and no more.

    Args:
        model: sizes, a `DecoderConfig`.
        horizon: indices whose deaths are recorded; 0 records none.
        closes: keys also die by themselves, when thoughts are closed, and gists are kept.
    """
    cache = kv_cache.empty(model.layers, rows, model.kv_heads, capacity, model.head_dim, model.dtype, each=True)
    new = {} if closes else {"death": None}
    if closes or how.policy == "sepllm":
        new["mark"] = jnp.zeros(cache.birth.shape, jnp.int8)
    if how.policy == "h2o":
        new["received"] = jnp.zeros(cache.birth.shape, jnp.float32)
    if how.asks:
        new["queries"] = jnp.zeros((model.layers, rows, model.heads, how.asks, model.head_dim), model.dtype)
        new["asked"] = jnp.full((rows, how.asks), -1, jnp.int32)
    if horizon:
        layers = 1 if how.share == "layers" else model.layers
        new["record"] = jnp.full((rows, layers, 1 if how.share else model.kv_heads, horizon), NEVER, jnp.int32)
    return dataclasses.replace(cache, **new)


def evict(
    cache: KVCache, how: Eviction, index, draw, due, rows, axis: str | None = None
) -> tuple[KVCache, jax.Array]:
    """Cuts the rows that are due down to the budget of each layer; the evicted die at `index`.

        slot     0 1 2 3 4 5 6 7                    0 1 2 3 4 5 6 7
        birth    0 1 5 6 7 8 9 .   budget 4         0 6 8 9 . . . .      index 10: the record of births 1, 5, 7 is 10
        stays    x . . x . x x .

    Args:
        index: [R] int32, the next token's index.
        draw: [R] uint32, see `View`.
        due: [R] bool; other rows stay as they are.
        rows: [R] int32, different rows of the cache.
        axis: that cuts the heads, see `across`; how many slots are in use, who is stuck and what heads that share
            their choice think of a key is common to all of them.

    Returns:
        the cache, and which due rows are stuck, [R] bool: more of their keys are protected than a budget has room for.
        They are left as they are.
    """
    birth = pick(cache.birth, rows)
    alive = kv_cache.living(cache, index, rows)
    own = lambda x, layer: None if x is None else kv_cache.slices(x, layer, rows)
    asked = None if cache.asked is None else cache.asked[rows]

    def scores(layer):
        mark = own(cache.mark, layer)
        has = lambda kind: None if mark is None else mark == kind
        view = View(
            own(cache.k, layer), birth[layer], alive[layer], index, own(cache.queries, layer), asked,
            own(cache.received, layer), has(SEPARATOR), layer, draw, across.number(axis) * cache.k.shape[2],
        )  # fmt: skip
        return POLICIES[how.policy](view, how), protected(view, how, has(GIST))

    score, kept = lax.map(scores, jnp.arange(cache.k.shape[0]))
    score = shared(score, how.share, axis)
    budget = jnp.asarray(how.budgets(cache.k.shape[0]), jnp.int32)[:, None, None]
    most = across.largest(jnp.max(jnp.sum(kept, -1) - budget, (0, 2)), axis)
    stuck = due & (most > 0)
    goes = (due & ~stuck)[:, None, None]
    stay = jnp.where(goes, stays(score, alive, kept, budget), birth >= 0)
    slot = jnp.arange(cache.capacity, dtype=jnp.int32)
    order, books = kv_cache.reordered(cache, jnp.where(goes, seats(stay, score, kept, how.order), slot), rows)
    # In new slots. Rows that are not due keep theirs, and may have empty ones between others.
    used = jnp.where(goes, slot < jnp.sum(stay, -1, keepdims=True), books["birth"] >= 0)
    if cache.record is not None:
        cache = _recorded(cache, rows, books, ~used, how, index)
    return kv_cache.rearranged(cache, used, order, books, rows, axis), stuck


def _recorded(cache: KVCache, rows, books, freed, how: Eviction, index) -> KVCache:
    """Writes the deaths of the evicted keys down: those of the `books` that were alive in slots that are now `freed`.

    Both are [L, R, Hkv, C] in the new order, so the evicted are behind the smallest budget, wherever there are any.
    """
    _, layers, heads, horizon = cache.record.shape
    own = lambda x: x[:layers, :, :heads, how.least :]
    evicted = freed & (books["birth"] >= 0)
    if cache.death is not None:
        evicted &= books["death"] > index[:, None, None]
    place = jnp.where(own(evicted), own(books["birth"]), horizon).transpose(1, 0, 2, 3)
    row, layer, head, _ = jnp.ogrid[: len(rows), :layers, :heads, :1]
    dies = jnp.broadcast_to(index[:, None, None, None], place.shape)
    record = cache.record[rows].at[row, layer, head, place].set(dies, mode="drop")
    return dataclasses.replace(cache, record=cache.record.at[rows].set(record))
