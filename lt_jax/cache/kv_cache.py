"""The attention cache: slots that hold keys and values, with the birth and the death of every key.

A row's slots are in birth order (but for `Eviction.order="reference"`). The first `length` of them are in use, the
others are empty (birth -1). A key that dies is first given its `death`, so that the rule of `lifetimes.py` hides it,
and then its slot is freed: `close` cuts one run of slots out of a row (a thought: its dead keys lie together),
`compact` frees any set of slots. Both keep the birth order. Keys keep the rotation of their original position.

What k and v hold beyond `length` is left over from before and never visible. Where every head evicts for itself a head
may hold fewer keys than another of its layer; it then has empty slots before `length`, which are closed at the next
compaction.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from lt_jax import lifetimes
from lt_jax.cache import across, pallas_compact
from lt_jax.lifetimes import NEVER

SLOTS = 64  # the capacity is a multiple of this; attention walks over the cache in blocks of it
GIST, SEPARATOR = 1, 2  # marks
BLANK = {"birth": -1, "death": NEVER, "mark": 0, "received": 0.0}  # what an empty slot has, array by array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Slots of a batch of rows.

    Attributes:
        k, v: [L, B, Hkv, C, D].
        birth, death: [Lb, B, Kb, C] int32; birth -1 marks an empty slot; death is None where keys go by eviction alone,
            which frees their slots at once. Lb and Kb are 1 where all layers and all kv
            heads agree on who lives (LightThinker, AnLLM, Memento), else L and Hkv.
        length: [Lb, B] int32, slots in use, the same for every head of a layer.
        mark: [L, B, Hkv, C] int8, the class of a key, `GIST`, `SEPARATOR` or 0; None where it is not needed, as is all
            that follows.
        received: [L, B, Hkv, C] float32, attention that the key has received so far.
        queries: [L, B, H, Q, D], the last Q queries of each row, rotated, in a ring; asked: [B, Q] int32 their indices,
            -1 where there is none yet.
        record: [B, Lr, Kr, T] int32, the death that a policy gave to the key of each index of the row, NEVER for the
            others. Lr and Kr are 1 where layers or heads share their choice.
    """

    k: jax.Array
    v: jax.Array
    birth: jax.Array
    death: jax.Array | None
    length: jax.Array
    mark: jax.Array | None = None
    received: jax.Array | None = None
    queries: jax.Array | None = None
    asked: jax.Array | None = None
    record: jax.Array | None = None

    @property
    def capacity(self) -> int:
        """Slots a row has, C."""
        return self.k.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(x.nbytes for x in jax.tree.leaves(self))


def empty(layers, rows, kv_heads, capacity, head_dim, dtype=jnp.float32, *, each: bool = False) -> KVCache:
    """A cache without keys; the capacity is rounded up to a multiple of `SLOTS`.

    Args:
        each: every layer and kv head has its own births and deaths.
    """
    capacity = -(-capacity // SLOTS) * SLOTS
    keys = lambda: jnp.zeros((layers, rows, kv_heads, capacity, head_dim), dtype)
    own = (layers, rows, kv_heads, capacity) if each else (1, rows, 1, capacity)
    fill = lambda name: jnp.full(own, BLANK[name], jnp.int32)
    return KVCache(keys(), keys(), fill("birth"), fill("death"), jnp.zeros(own[:2], jnp.int32))


def grown(cache: KVCache, capacity: int) -> KVCache:
    """The same keys in the same slots, with empty ones behind them up to `capacity`, a multiple of `SLOTS`."""
    more = capacity - cache.capacity
    wider = lambda x, axis, blank: jnp.pad(
        x, [(0, more if i == axis else 0) for i in range(x.ndim)], constant_values=blank
    )
    new = {name: wider(x, 3, blank) for name, blank in BLANK.items() if (x := getattr(cache, name)) is not None}
    return dataclasses.replace(cache, k=wider(cache.k, 3, 0), v=wider(cache.v, 3, 0), **new)


def pick(x: jax.Array, rows, axis: int = 1) -> jax.Array:
    """The given rows of x along `axis`; None is all of them."""
    return x if rows is None else jnp.take(x, rows, axis=axis)


def slices(x: jax.Array, layer, rows) -> jax.Array:
    """x[layer, rows] of x [L, B, ...]: [R, ...]. In slices, since for a gather a TPU reads all rows of the layer."""
    cut = lambda row: lax.dynamic_slice(x, (layer, row) + (0,) * (x.ndim - 2), (1, 1, *x.shape[2:]))[0]
    return jnp.concatenate([cut(row) for row in rows])


def put(x: jax.Array, rows, new: jax.Array) -> jax.Array:
    """x [Lb, B, ...] with the given rows replaced; None is all of them."""
    return new if rows is None else x.at[:, rows].set(new)


def truncated(cache: KVCache, rows, first, axis: str | None = None) -> KVCache:
    """Forgets what those rows hold of the index `first` and later; the keys before it stay in their slots. 0 wipes.

        slot    0 1 2 3 4 5                    0 1 2 3 4 5
        birth   0 1 4 5 6 .    first 5         0 1 4 . . .

    Keys that were freed before do not come back, and what the kept ones received from the forgotten queries stays
    counted (`received`): whether a row may go on from here is for the caller to know (`decode.prefix`).

    Args:
        rows: [R] int32. first: [R] int32.
        axis: that cuts the heads, where each has its own keys: `length` is the same for all of them, see `across`.
    """
    column = first[None, :, None, None]
    birth = pick(cache.birth, rows)
    kept = (birth >= 0) & (birth < column)
    new = {name: jnp.where(kept, pick(x, rows), jnp.asarray(blank, x.dtype))
           for name, blank in BLANK.items() if (x := getattr(cache, name)) is not None}  # fmt: skip
    # Not how many there are: a head may have empty slots between its keys.
    last = jnp.where(kept, jnp.arange(1, cache.capacity + 1, dtype=jnp.int32), 0)
    new["length"] = across.largest(jnp.max(last, (2, 3)), axis)
    if cache.asked is not None:
        asked = cache.asked[rows]
        new["asked"] = cache.asked.at[rows].set(jnp.where(asked < first[:, None], asked, -1))
    if cache.record is not None:
        birth = jnp.arange(cache.record.shape[-1])
        record = jnp.where(birth < first[:, None, None, None], cache.record[rows], NEVER)
        new["record"] = cache.record.at[rows].set(record)
    whole = {name: new.pop(name) for name in ("asked", "record") if name in new}
    return dataclasses.replace(replaced(cache, rows, **new), **whole)


def copied(cache: KVCache, origin, rows, count) -> KVCache:
    """The first `count` [] of `rows` get all that the rows `origin` hold, one after the other; both [B] int32.

    In place, in blocks of `SLOTS` slots and no further than there are keys.
    """
    at = {"asked": 0, "record": 0}  # the axis of the rows, 1 for all others
    arrays = {field.name: x for field in dataclasses.fields(cache) if (x := getattr(cache, field.name)) is not None}

    def one(i, arrays):
        moved = {}
        for name, x in arrays.items():
            if name not in ("k", "v"):
                own = lax.dynamic_index_in_dim(x, origin[i], at.get(name, 1))
                moved[name] = lax.dynamic_update_index_in_dim(x, own, rows[i], at.get(name, 1))
        blocks = (jnp.max(arrays["length"][:, origin[i]]) + SLOTS - 1) // SLOTS
        keys = lax.fori_loop(0, blocks, functools.partial(block, i), (arrays["k"], arrays["v"]))
        return moved | dict(zip(("k", "v"), keys, strict=True))

    def block(i, b, keys):
        layers, _, heads, _, size = keys[0].shape
        place = lambda row: (0, row, 0, b * SLOTS, 0)
        cut = lambda x: lax.dynamic_slice(x, place(origin[i]), (layers, 1, heads, SLOTS, size))
        return tuple(lax.dynamic_update_slice(x, cut(x), place(rows[i])) for x in keys)

    return dataclasses.replace(cache, **lax.fori_loop(0, count, one, arrays))


def redated(cache: KVCache, rows, death) -> KVCache:
    """The keys of the given rows die when `death` says of their births; what is not of these rows stays as it is.

        slot    0 1 2 3                                  0 1 2 3
        birth   0 1 4 5    death [- 6 - - 6 -]   death   - 6 6 -

    For caches in which all layers and heads agree on who lives.

    Args:
        rows: [R] int32. death: [R, N] int32 by birth; keys born at N and later keep their deaths.
    """
    birth, old = cache.birth[:, rows], cache.death[:, rows]
    given = jnp.take_along_axis(jnp.broadcast_to(death[None, :, None], (*birth.shape[:3], death.shape[1])),
                                jnp.clip(birth, 0, death.shape[1] - 1), 3)  # fmt: skip
    named = (birth >= 0) & (birth < death.shape[1])
    return replaced(cache, rows, death=jnp.where(named, given, old))


def cleared(cache: KVCache, rows) -> KVCache:
    """Zeros for what the given rows [R] left in their slots: where that was NaN, no mask would hide it."""
    zero = lambda x: None if x is None else x.at[:, rows].set(0)
    return dataclasses.replace(cache, k=zero(cache.k), v=zero(cache.v), queries=zero(cache.queries))


def append(cache: KVCache, rows, first, count, death=None, mark=None) -> tuple[KVCache, jax.Array]:
    """Gives `count` new keys with births first, first + 1, ... the slots after each row's last one.

    Only the books are kept here; attention writes the keys themselves, layer by layer.

    Args:
        rows: [R] int32, or None for all.
        first, count: [R] int32.
        death: [R, T] int32 of the new keys; None is NEVER.
        mark: [R, T] int8 of the new keys, where the cache keeps marks.

    Returns:
        the cache, and the slots of the first new keys [Lb, R].
    """
    start = pick(cache.length, rows)
    offset = jnp.arange(cache.capacity, dtype=jnp.int32) - start[:, :, None, None]
    new = (offset >= 0) & (offset < count[:, None, None])
    in_slot = lambda x: _in_slots(x, offset)
    birth = jnp.where(new, first[:, None, None] + offset, pick(cache.birth, rows))
    dies = NEVER if death is None else in_slot(death)
    changed = dict(birth=birth)
    if cache.death is not None:
        changed["death"] = jnp.where(new, dies, pick(cache.death, rows))
    if cache.mark is not None:
        changed["mark"] = jnp.where(new, in_slot(mark), pick(cache.mark, rows))
    if cache.received is not None:
        changed["received"] = jnp.where(new, 0, pick(cache.received, rows))
    changed["length"] = start + count
    return replaced(cache, rows, **changed), start


def replaced(cache: KVCache, rows, **changed) -> KVCache:
    """The cache with these arrays changed in the given rows, [Lb, R, ...] each; None is all rows."""
    return dataclasses.replace(cache, **{name: put(getattr(cache, name), rows, x) for name, x in changed.items()})


def _in_slots(x: jax.Array, offset: jax.Array) -> jax.Array:
    """x [R, T] of new keys at the slots `offset` [Lb, R, 1, C] behind the first of them; elsewhere anything."""
    place = jnp.clip(offset, 0, x.shape[1] - 1)
    return jnp.take_along_axis(jnp.broadcast_to(x[None, :, None], (*place.shape[:3], x.shape[1])), place, 3)


def drop(cache: KVCache, rows, first, end, death) -> KVCache:
    """Ends the keys with births first..end-1 at index `death`; all [R] int32. An empty range drops nothing."""
    birth, old = pick(cache.birth, rows), pick(cache.death, rows)
    column = lambda x: x[:, None, None]
    dead = (birth >= column(first)) & (birth < column(end))
    new = jnp.where(dead, jnp.minimum(old, column(death)), old)
    return replaced(cache, rows, death=new)


def visible(cache: KVCache, rows, index, since=None, key_gist=None, query_gist=None, gist_rule="causal") -> jax.Array:
    """The rule over the slots: queries `index` [R, T] -> bool [Lb, R, Kb, T, C]. See `lifetimes.visible`.

    Args:
        index: [R, T] int32; -1 sees nothing.
        since: [R, T] or None.
        key_gist: [Lb, R, 1, C], query_gist: [R, T], gist-block ids, unless "causal".
    """
    head = lambda x: None if x is None else x[None, :, None]
    birth = pick(cache.birth, rows)
    return lifetimes.visible(
        birth,
        jnp.full_like(birth, NEVER) if cache.death is None else pick(cache.death, rows),
        head(index),
        head(since),
        key_gist,
        head(query_gist),
        gist_rule,
    )


def close(cache: KVCache, rows, start, end, tail: int, valid=None) -> KVCache:
    """Cuts the slots start..end-1 out of each row; the keys behind them move down and keep their order.

        slot     0 1 2 3 4 5 6 7                 0 1 2 3 4 5 6 7
        before   X X s s w c o .     close 2..4  X X c o . . . .

    For caches in which all layers and heads agree; where they do not, `drop` and `compact` do the same.

    Args:
        rows: [R] int32. start, end: [Lb, R] int32 slots.
        tail: static chunk in which keys are moved; the cost is smallest where it is the number of keys behind `end`,
            and `length + tail` must not pass the capacity.
        valid: [R] bool, rows to touch; None is all.
    """
    gap = end - start if valid is None else jnp.where(valid, end - start, 0)
    length = pick(cache.length, rows)
    slot = jnp.arange(cache.capacity, dtype=jnp.int32)
    stays = slot < start[..., None, None]
    moved = jnp.where(stays, slot, jnp.minimum(slot + gap[..., None, None], cache.capacity - 1))
    used = slot < (length - gap)[..., None, None]
    take = lambda x, blank: jnp.where(used, jnp.take_along_axis(x, jnp.broadcast_to(moved, x.shape), -1), blank)
    birth, death = take(pick(cache.birth, rows), -1), take(pick(cache.death, rows), NEVER)
    behind = length - end if valid is None else jnp.where(valid, length - end, 0)
    chunks = jnp.max((behind + tail - 1) // tail)
    move = lambda i, kv: _move(kv, rows, start + i * tail, start + gap + i * tail, tail)
    k, v = lax.fori_loop(0, chunks, move, (cache.k, cache.v))
    return dataclasses.replace(replaced(cache, rows, birth=birth, death=death, length=length - gap), k=k, v=v)


def _move(kv, rows, to, origin, n: int):
    """Copies n slots of every layer of each row from slot `origin` to slot `to`, both [Lb, R]."""
    layers, _, _, capacity, _ = kv[0].shape
    layer, row = jnp.arange(layers)[:, None, None], rows[:, None]
    run = lambda first: jnp.clip(first[..., None] + jnp.arange(n), 0, capacity - 1)
    # A gather and a scatter: XLA would fuse slices into one operation, and copy the whole cache first to be safe.
    old = [x.at[layer, row, :, run(origin)].get(mode="promise_in_bounds") for x in kv]
    put = lambda x, new: x.at[layer, row, :, run(to)].set(new, mode="promise_in_bounds")
    return tuple(map(put, kv, old))


def compact(cache: KVCache, index, rows=None, axis: str | None = None) -> KVCache:
    """Frees every slot whose key no query at or after `index` [R] sees; the others close ranks in birth order.

    Args:
        axis: as in `truncated`.
    """
    alive = living(cache, index, rows)
    slot = jnp.arange(cache.capacity, dtype=jnp.int32)
    order, books = reordered(cache, jnp.where(alive, slot, cache.capacity + slot), rows)
    return rearranged(cache, slot < jnp.sum(alive, -1, keepdims=True), order, books, rows, axis)


def living(cache: KVCache, index, rows=None) -> jax.Array:
    """Slots whose keys a query at or after `index` [R] may see, [Lb, R, Kb, C] bool."""
    there = pick(cache.birth, rows) >= 0
    return there if cache.death is None else there & (pick(cache.death, rows) > index[:, None, None])


def reordered(cache: KVCache, seat, rows=None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Where keys go, and what the books of the slots say of them there. The cache itself stays as it is.

        slot    0  1  2  3               0  1  2  3
        seat    0  5  2  7     order     0  2  1  3
        birth   4  5  6  .     birth     4  6  5  .

    The books are sorted along, not gathered: a TPU gathers one number at a time, about ten cycles each.

    Args:
        seat: [Lb, R, Kb, C] int32, all different in each head: old slots are taken in the order of their seats.

    Returns:
        order [Lb, R, Kb, C] int32, the old slot of each new one, and the arrays of `BLANK` that the cache keeps, in
        that order.
    """
    books = {name: pick(x, rows) for name in BLANK if (x := getattr(cache, name)) is not None}
    slot = jnp.broadcast_to(jnp.arange(cache.capacity, dtype=jnp.int32), seat.shape)
    _, order, *found = lax.sort((seat, slot, *books.values()), dimension=-1, is_stable=False, num_keys=1)
    return order, dict(zip(books, found, strict=True))


def rearranged(cache: KVCache, used, order, books, rows=None, axis: str | None = None) -> KVCache:
    """Moves keys as `reordered` found. New slots that are not `used` [Lb, R, Kb, C] are free; it is the caller who
    sees to it that no staying key has such a slot. `axis` as in `truncated`."""
    books = {name: jnp.where(used, x, jnp.asarray(BLANK[name], x.dtype)) for name, x in books.items()}
    count = jnp.sum(used, -1, dtype=jnp.int32)
    length = across.largest(jnp.max(count, -1), axis)
    k, v = moved(cache.k, cache.v, order, count, rows)
    return dataclasses.replace(replaced(cache, rows, length=length, **books), k=k, v=v)


def moved(k, v, order, count, rows=None) -> tuple[jax.Array, jax.Array]:
    """Keys and values in new slots: slot s of a head gets what was in its slot order[s].

    Only the first `count` slots must; the others may as well stay as they are. On TPUs by `pallas_compact`.

    Args:
        k, v: [L, B, Hkv, C, D], updated in place where the caller lets go of them.
        order: [Lb, R, Kb, C] int32; Lb and Kb are 1 where layers or heads move alike.
        count: [Lb, R, Kb] int32.
        rows: [R] int32, different rows, or None for all B in order.
    """
    if not pallas_compact.takes(k):
        return gathered(k, v, order, count, rows)
    kernel, plain = (functools.partial(f, rows=rows) for f in (pallas_compact.moved, gathered))
    return lax.platform_dependent(k, v, order, count, tpu=kernel, default=plain)


def gathered(k, v, order, count, rows=None) -> tuple[jax.Array, jax.Array]:
    """`moved` in plain JAX, the definition: all slots move. Layer by layer; the extra memory is one layer's keys.

    Every bit arrives as it was. An order names slots that are there, so nothing is filled in, and the gather must not
    offer to: that is a select, and since jax 0.12 a fused select of bfloat16 on a CPU turns some subnormal numbers
    into 0.
    """

    def one(layer, kv):
        place = order[jnp.minimum(layer, order.shape[0] - 1)]

        def gather(x):
            old = x[layer] if rows is None else slices(x, layer, rows)
            place_of = jnp.broadcast_to(place, old.shape[:3])[..., None]
            new = jnp.take_along_axis(old, place_of, 2, mode="promise_in_bounds")
            return x.at[layer].set(new) if rows is None else x.at[layer, rows].set(new)

        return tuple(gather(x) for x in kv)

    return lax.fori_loop(0, k.shape[0], one, (k, v))
