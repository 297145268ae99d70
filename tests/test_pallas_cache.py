"""Compaction and redundancy as Pallas TPU kernels: interpreted against their plain forms, and compiled for TPUs."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.cache import append, empty_evicting, evict, kv_cache, pallas_compact
from lt_jax.cache.policies import Eviction, pallas_redundancy, redundancy
from lt_jax.decode import DecodeConfig
from lt_jax.decode.ahead import lower
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import NEVER
from lt_jax.models.config import DecoderConfig
from tests import policy_reference as reference
from tests.test_policies import draw, keep, view
from tests.test_tpu import chip

L, B, H, D = 2, 4, 4, 16
CHIPS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
move = jax.jit(functools.partial(pallas_compact.moved, interpret=True))
charge = jax.jit(functools.partial(pallas_redundancy.charges, interpret=True), static_argnums=(2, 3))


def rubbish(rng, shape, dtype):
    """Any bits at all: NaN, infinities, zeros of both signs."""
    bits = rng.integers(0, 256, (*shape, jnp.dtype(dtype).itemsize), dtype=np.uint8)
    return jnp.asarray(bits.view(jnp.dtype(dtype))[..., 0])


def bits(x):
    """As integers; any NaN as one: XLA widens 16-bit numbers on a CPU, and their NaN comes back another."""
    x = np.array(x)
    with np.errstate(invalid="ignore"):
        x[np.isnan(x)] = np.nan
    return x.view(f"u{x.dtype.itemsize}")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("each, slots, rows, memory", [
    (True, 128, (3, 1), None), (True, 192, None, None), (True, 128, (2,), 2**19), (False, 64, (0, 3), None),
])  # fmt: skip
def test_every_bit_moves_to_its_slot_and_other_rows_stay(dtype, each, slots, rows, memory, monkeypatch):
    """Any permutation; memory for one head a step or for all."""
    rng = np.random.default_rng(slots)
    if memory:
        monkeypatch.setattr(pallas_compact, "MEMORY", memory)
        assert pallas_compact._together(jnp.zeros((1, 1, H, slots, D), dtype)) < H
    k, v = (rubbish(rng, (L, B, H, slots, D), dtype) for _ in range(2))
    own = (L, B if rows is None else len(rows), H) if each else (1, B if rows is None else len(rows), 1)
    order = jnp.asarray(rng.permuted(np.broadcast_to(np.arange(slots, dtype=np.int32), (*own, slots)), axis=-1))
    count = jnp.asarray(rng.choice([0, 1, 63, 64, 65, slots - 1, slots], own), jnp.int32).clip(0, slots)
    assert pallas_compact.takes(k)
    named = None if rows is None else jnp.asarray(rows)
    run = functools.partial(pallas_compact.moved, interpret=True) if memory else move  # the memory is compiled in
    got, want = run(k, v, order, count, named), kv_cache.gathered(k, v, order, count, named)
    who = list(range(B) if rows is None else rows)
    must = np.arange(slots) < np.broadcast_to(count, (L, len(who), H))[..., None]
    for new, plain, old in zip(got, want, (k, v), strict=True):
        assert new.dtype == old.dtype
        new, plain, old = map(bits, (new, plain, old))
        place = np.broadcast_to(order, must.shape)[..., None]
        np.testing.assert_array_equal(plain[:, who], np.take_along_axis(old[:, who], place, 3), err_msg="plain")
        np.testing.assert_array_equal(new[:, who][must], plain[:, who][must])
        others = [row for row in range(B) if row not in who]
        np.testing.assert_array_equal(new[:, others], old[:, others])
        free = new[:, who][~must]  # left over: each of them a whole key of the head
        assert ((free == plain[:, who][~must]).all(-1) | (free == old[:, who][~must]).all(-1)).all()


def test_what_the_compaction_takes():
    key = lambda dtype, slots=128, size=128: jax.ShapeDtypeStruct((2, 2, 4, slots, size), dtype)
    assert pallas_compact.takes(key(jnp.bfloat16)) and pallas_compact.takes(key(jnp.float32, 64, 80))
    assert not pallas_compact.takes(key(jnp.int8)) and not pallas_compact.takes(key(jnp.float32, 100))
    assert not pallas_compact.takes(key(jnp.bfloat16, 2**15))
    head = lambda dtype, slots=640: jax.ShapeDtypeStruct((2, 4, slots, 128), dtype)
    assert pallas_redundancy.takes(head(jnp.bfloat16)) and pallas_redundancy.takes(head(jnp.float32))
    assert not pallas_redundancy.takes(head(jnp.float16)) and not pallas_redundancy.takes(head(jnp.bfloat16, 2**15))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("threshold, forgive_first", [(0.5, False), (0.5, True), (-0.2, False)])
def test_charges_are_those_of_the_whole_matrix(dtype, threshold, forgive_first):
    """Against the plain form and against float64 numpy; NaN in dead slots, here and there and behind the end."""
    slots, alive = 320, 290
    rng = np.random.default_rng(1)
    for kind in ("random", "clustered", "duplicated"):
        k, _ = draw(kind, 2, 2, 1, alive, 32, dtype=dtype)
        place = np.sort(rng.permuted(np.broadcast_to(np.arange(slots), (2, 2, slots)), axis=-1)[..., :alive], -1)
        place[:, 0, 0] = 0  # the first slot of one head is alive, of the other it may be dead
        row, head = np.arange(2)[:, None, None], np.arange(2)[:, None]
        spread = jnp.full((2, 2, slots, 32), jnp.nan, dtype).at[row, head, place].set(k)
        there = jnp.zeros((2, 2, slots), bool).at[row, head, place].set(True)
        got = np.asarray(charge(spread, there, threshold, forgive_first))
        plain = np.asarray(redundancy.charges(spread, there, threshold, forgive_first))
        np.testing.assert_allclose(got[there], plain[there], atol=2e-6 * alive)
        for r, h in np.ndindex(2, 2):
            # The formula knows no dead slot 0, and under a threshold below 0 it takes a key for its own duplicate.
            if threshold > 0 and (there[r, h, 0] or not forgive_first):
                want = reference.redundancy(np.asarray(k[r, h], np.float64), threshold, forgive_first)
                np.testing.assert_allclose(reference.softmax(got[r, h][place[r, h]] / alive), want, atol=1e-6)


@pytest.mark.parametrize("slots", [64, 1152])
def test_charges_of_a_short_head_and_of_a_long_one(slots):
    """One tile that is not full; and more tiles than the kernel writes out."""
    k, _ = draw("clustered", 1, 1, 1, slots, 8, dtype="bfloat16")
    there = jnp.ones((1, 1, slots), bool)
    got, plain = charge(k, there, 0.5, False), redundancy.charges(k, there, 0.5)
    np.testing.assert_allclose(got, plain, atol=2e-6 * slots)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_cosine_at_the_threshold_is_no_duplicate(dtype):
    """(1, 0, 0, 0) and (1, 1, 1, 1) have cosine 1/2, and (2, 0, 0, 0) and (1, 1, 1, 1.015625) a little less."""
    keys = jnp.zeros((1, 1, 64, 8), dtype).at[0, 0, 0, 0].set(1).at[0, 0, 1, :4].set(1)
    alive = jnp.arange(64)[None, None] < 2
    assert np.asarray(charge(keys, alive, 0.5, False))[0, 0, :2].tolist() == [0.5, 0.5]
    assert np.asarray(charge(keys, alive, 0.49, False))[0, 0, :2].tolist() == [0, 0]
    more = keys.at[0, 0, 1, 0].set(1.015625)  # now above it
    assert (np.abs(np.asarray(charge(more, alive, 0.5, False))[0, 0, :2]) < 1e-6).all()


@pytest.fixture
def kernels(monkeypatch):
    """All that evicts uses the kernels, interpreted."""
    monkeypatch.setattr(kv_cache, "gathered", functools.partial(pallas_compact.moved, interpret=True))
    monkeypatch.setattr(redundancy, "charges", functools.partial(pallas_redundancy.charges, interpret=True))


@pytest.mark.parametrize("kind", ["clustered", "duplicated"])
def test_kept_sets_are_those_of_the_formulas(kind, kernels):
    how = Eviction("rkv", budget=40, window=8, sinks=2)
    for groups, length, dtype in ((1, 100, "float32"), (7, 100, "bfloat16")):
        k, q = draw(kind, 2, 2, groups, length, dtype=dtype)
        score, kept = jax.jit(lambda v: keep("rkv", v, how))(view(k, q, capacity=128))
        safe = (np.arange(length) >= length - how.window) | (np.arange(length) < how.sinks)
        for row, head in np.ndindex(2, 2):
            want = reference.scores("rkv", *(np.asarray(x[row], np.float64) for x in (k, q)), how, length)[head]
            got = np.asarray(kept[row, head])
            assert not got[length:].any()
            reference.check_kept(got[:length], want, safe, how.budget, 4e-6)


def evicted(order):
    """Three rows of a cache in another order, one of them not due, cut down; keys that closed thoughts are dead."""
    how = Eviction("rkv", budget=70, buffer=58, window=4, order=order)
    model = DecoderConfig(128, 32, 32, L, 2 * H, H, D, dtype="bfloat16")
    cache = empty_evicting(model, B, how.budget + how.buffer, how, 128, True)
    rows, count = jnp.asarray([2, 0, 3]), jnp.asarray([120, 128, 90])
    cache, _ = append(cache, rows, jnp.zeros(3, jnp.int32), count, mark=jnp.zeros((3, 128), jnp.int8))
    rng = np.random.default_rng(5)
    like = lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype)
    asked = jnp.broadcast_to(jnp.arange(4), (B, 4))
    death = jnp.where(jnp.asarray(rng.random(cache.death.shape) < 0.05), 80, cache.death)
    cache = dataclasses.replace(cache, k=like(cache.k), v=like(cache.v), queries=like(cache.queries), asked=asked,
                                death=death)  # fmt: skip
    due = jnp.asarray([True, True, False])
    return jax.jit(functools.partial(evict, how=how))(
        cache, index=count, draw=jnp.zeros(3, jnp.uint32), due=due, rows=rows
    )


@pytest.mark.parametrize("order", ["birth", "reference"])
def test_an_eviction_is_that_of_the_plain_forms(order, request):
    plain, stuck = evicted(order)
    request.getfixturevalue("kernels")
    got, stuck_too = evicted(order)
    assert not np.any(stuck) and not np.any(stuck_too)
    for name in ("birth", "death", "mark", "length", "record"):
        np.testing.assert_array_equal(getattr(got, name), getattr(plain, name), err_msg=name)
    there = np.asarray(plain.birth) >= 0
    assert there[:, 2].sum(-1).max() == 70 and there[:, 3].sum() > 4 * 70 and (np.asarray(got.record) < NEVER).any()
    for name in ("k", "v"):
        np.testing.assert_array_equal(bits(getattr(got, name))[there], bits(getattr(plain, name))[there])
        np.testing.assert_array_equal(bits(getattr(got, name))[:, 1], bits(getattr(plain, name))[:, 1])


@pytest.mark.parametrize("platform, used", [("tpu", True), ("cuda", False), ("cpu", False)])
def test_the_choice_falls_at_lowering(platform, used):
    """A decode block under R-KV, lowered by a process on a CPU."""
    model = DecoderConfig(vocab_size=64, hidden=64, intermediate=32, layers=2, heads=4, kv_heads=2, head_dim=64)
    config = DecodeConfig(rows=4, eviction=Eviction("rkv", 64, 64), implementation="plain")
    special = SpecialTokens(eos=63, pad=62)
    text = lower(model, Scheme(method="vanilla"), special, config, platforms=(platform,))[0].as_text()
    assert [name in text for name in ("lt_compact", "lt_redundancy")] == [used, used]


@pytest.mark.tpu_backend
@pytest.mark.parametrize("topology", CHIPS)
def test_kernels_compile_and_the_cache_is_not_copied(topology):
    """By the real compiler, for programs that a process on a CPU lowers: the choice falls at lowering."""
    layers, batch, rows, heads, slots, size = 4, 16, 3, 4, 640, 128
    place = chip(topology)
    shape = lambda dtype, *s: jax.ShapeDtypeStruct(s, dtype, sharding=place)
    for dtype, size in (("bfloat16", 128), ("bfloat16", 64), ("float32", 80)):
        k = shape(dtype, layers, batch, heads, slots, size)
        who = [shape("int32", *s) for s in ((layers, rows, heads, slots), (layers, rows, heads), (rows,))]
        compiled = jax.jit(kv_cache.moved, donate_argnums=(0, 1)).lower(k, k, *who).compile()
        memory = compiled.memory_analysis()
        assert "lt_compact" in compiled.as_text()
        assert memory.alias_size_in_bytes >= 2 * k.size * k.dtype.itemsize, "the cache is not updated in place"
        if size == 128:  # XLA hands smaller heads over with the slots innermost, and turns them around for every reader
            assert memory.temp_size_in_bytes < k.size * k.dtype.itemsize / 8, "the cache is copied"
        keys, alive = shape(dtype, rows, heads, slots, size), shape("bool", rows, heads, slots)
        run = lambda k, alive: redundancy.redundancy(view_of(k, alive))
        compiled = jax.jit(run).lower(keys, alive).compile()
        assert "lt_redundancy" in compiled.as_text()
        assert compiled.memory_analysis().temp_size_in_bytes < rows * heads * slots * slots, "pairs are in memory"


def view_of(k, alive):
    return dataclasses.replace(view(jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1))), k=k, alive=alive)
