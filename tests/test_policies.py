"""Every policy against float64 numpy, the worked examples of the docstrings, and what must not matter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.cache import append, empty_evicting, evict
from lt_jax.cache.attend import write
from lt_jax.cache.kv_cache import SEPARATOR
from lt_jax.cache.policies import POLICIES, Eviction, View, h2o, protected, pyramid, ranked, seats, shared, stays
from lt_jax.cache.policies.redundancy import redundancy
from lt_jax.cache.policies.snapkv import pool
from lt_jax.errors import UserError
from lt_jax.lifetimes import NEVER
from lt_jax.models.config import DecoderConfig
from tests import policy_reference as reference

SCORED = ("streaming", "h2o", "tova", "knorm", "keydiff", "snapkv", "rkv")


def draw(kind, rows, heads, groups, length, depth=16, queries=8, seed=0, dtype=np.float32):
    """Keys [R, Hkv, S, D] of a kind, and queries [R, H, Q, D]."""
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((rows, heads, length, depth))
    if kind == "clustered":
        k = rng.standard_normal((rows, heads, 5, depth))[:, :, rng.integers(0, 5, length)] + 0.1 * k
    if kind == "duplicated":
        k = k[:, :, rng.integers(0, max(length // 3, 1), length)]
    q = rng.standard_normal((rows, heads * groups, queries, depth))
    return jnp.asarray(k, dtype), jnp.asarray(q, dtype)


def view(k, q, capacity=None, **more):
    rows, heads, length, _ = k.shape
    spare = (capacity or length) - length
    k = jnp.pad(k, ((0, 0), (0, 0), (0, spare), (0, 0)), constant_values=jnp.nan)  # nobody may look behind the end
    slot = jnp.broadcast_to(jnp.arange(length + spare), k.shape[:3])
    asked = jnp.broadcast_to(jnp.arange(length - q.shape[2], length), (rows, q.shape[2]))
    birth = jnp.where(slot < length, slot, -1)
    seen = (birth[:, :, None] >= 0) & (birth[:, :, None] <= asked[:, None, :, None])
    sums = h2o.received(q.transpose(0, 2, 1, 3), k, seen)
    return View(k, birth, birth >= 0, jnp.full(rows, length), q, asked, sums, **more)


def keep(policy, v, how):
    score = POLICIES[policy](v, how)
    return score, stays(score, v.alive, protected(v, how), how.budget)


@pytest.mark.parametrize("kind", ["random", "clustered", "duplicated"])
@pytest.mark.parametrize("policy", SCORED)
def test_kept_sets_are_those_of_the_formulas(policy, kind):
    how = Eviction(policy, budget=40, window=8, sinks=2)
    for groups, length, dtype in ((1, 24, "float32"), (4, 40, "float32"), (7, 100, "float32"), (4, 100, "bfloat16")):
        k, q = draw(kind, 2, 2, groups, length, dtype=dtype)
        v = view(k, q, capacity=128)
        score, kept = jax.jit(keep, static_argnums=(0, 2))(policy, v, how)
        safe = np.arange(length) >= length - how.window
        safe |= np.arange(length) < how.sinks
        for row in range(2):
            exact = [np.asarray(x[row], np.float64) for x in (k, q)]
            want = reference.scores(policy, *exact, how, length)
            live = np.isfinite(want)
            np.testing.assert_allclose(np.asarray(score[row, :, :length])[live], want[live], atol=2e-6, rtol=2e-6)
            for head in range(2):
                got = np.asarray(kept[row, head])
                assert not got[length:].any()
                reference.check_kept(got[:length], want[head], safe, how.budget, 4e-6)


@pytest.mark.parametrize("policy", [*POLICIES])
def test_rows_alone_and_in_any_order_and_whatever_lies_in_empty_slots(policy):
    how = Eviction(policy, budget=20, window=4, sinks=1, separators=(1,))
    k, q = draw("clustered", 3, 2, 2, 60)
    more = dict(separator=jnp.arange(80) % 7 == 3, draw=jnp.arange(3, dtype=jnp.uint32))
    more["separator"] = jnp.broadcast_to(more["separator"], (3, 2, 80))
    v = view(k, q, 80, **more)
    _, kept = keep(policy, v, how)
    assert (np.asarray(kept.sum(-1)) == 20).all()  # "full" too: it is the engine that then ends the row
    order = jnp.asarray([2, 0, 1])
    turned = jax.tree.map(lambda x: x[order] if getattr(x, "ndim", 0) else x, v)
    np.testing.assert_array_equal(keep(policy, turned, how)[1], kept[order])
    single = jax.tree.map(lambda x: x[1:2] if getattr(x, "ndim", 0) else x, v)
    np.testing.assert_array_equal(keep(policy, single, how)[1], kept[1:2])
    filled = dataclasses.replace(v, k=jnp.where(v.alive[..., None], v.k, 7.0))
    np.testing.assert_array_equal(keep(policy, filled, how)[1], kept)


def test_random_numbers_stay_with_their_keys():
    k, q = draw("random", 1, 2, 1, 30)
    v = view(k, q)
    how = Eviction("random", budget=10, window=0)
    score = POLICIES["random"](v, how)
    back = dataclasses.replace(v, birth=v.birth[..., ::-1])
    np.testing.assert_array_equal(POLICIES["random"](back, how), score[..., ::-1])
    assert len(np.unique(np.asarray(score))) == 60
    other = POLICIES["random"](dataclasses.replace(v, layer=1), how)
    assert not np.array_equal(other, score)


def test_mix_one_is_snapkv():
    v = view(*draw("duplicated", 2, 2, 2, 64))
    np.testing.assert_array_equal(POLICIES["rkv"](v, Eviction(mix=1)), POLICIES["snapkv"](v, Eviction("snapkv")))


@pytest.mark.parametrize("forgive_first", [False, True])
@pytest.mark.parametrize("length", [5, 128, 150, 300])
def test_redundancy_is_that_of_the_whole_matrix(length, forgive_first):
    for kind in ("clustered", "duplicated"):
        k, q = draw(kind, 1, 2, 1, length, queries=1)
        got = redundancy(view(k, q, length + 9), 0.5, forgive_first)
        for head in range(2):
            want = reference.redundancy(np.asarray(k[0, head], np.float64), 0.5, forgive_first)
            np.testing.assert_allclose(got[0, head, :length], want, atol=1e-6)
        assert not np.any(got[..., length:])


def test_redundancy_makes_no_square():
    length, depth = 4096, 64
    k, q = draw("random", 1, 1, 1, length, depth)
    memory = jax.jit(redundancy).lower(view(k, q)).compile().memory_analysis().temp_size_in_bytes
    assert memory < 4 * length * length / 4


def example(keys, queries=None, **more):
    k = jnp.asarray(keys, jnp.float32)[None, None]
    q = jnp.zeros((1, 1, 1, k.shape[-1])) if queries is None else jnp.asarray(queries, jnp.float32)[None]
    return view(k, q, **more)


def test_the_examples_of_the_docstrings():
    close = lambda got, want: np.testing.assert_allclose(np.asarray(got).ravel(), want, atol=1e-3)
    how = Eviction()
    v = example([(3, 4), (0, 1), (1, 0)])
    score = POLICIES["knorm"](v, how)
    close(score, [-5, -1, -1])
    np.testing.assert_array_equal(stays(score, v.alive, jnp.zeros_like(v.alive), 1).ravel(), [False, True, False])
    close(POLICIES["keydiff"](example([(1, 0), (1, 0), (0, 1)]), how), [-0.894, -0.894, -0.447])
    close(redundancy(example([(1, 0), (1, 0), (0, 1)])), [1 / 3] * 3)
    three = np.exp(np.array([2, 1, 0]) / 3)
    close(redundancy(example([(1, 0)] * 3)), three / three.sum())
    close(pool(jnp.asarray([[0.1, 0.6, 0.1, 0.1, 0.1]]), 3), [0.6, 0.6, 0.6, 0.1, 0.1])
    v = view(jnp.asarray(np.log([[[[0.5], [0.3], [0.2]]]]), jnp.float32), jnp.ones((1, 1, 1, 1)))
    close(POLICIES["tova"](v, how), [0.5, 0.3, 0.2])


def test_streaming_and_sepllm_as_drawn():
    ten = jnp.zeros((1, 1, 10, 4))
    v = view(ten, jnp.zeros((1, 1, 1, 4)))
    drawn = lambda kept: "".join("x" if x else "." for x in np.asarray(kept).ravel())
    kept = keep("streaming", v, Eviction("streaming", budget=4, window=1, sinks=2))[1]
    assert " ".join(drawn(kept)) in POLICIES["streaming"].__doc__ and drawn(kept) == "xx......xx"
    v = dataclasses.replace(v, separator=jnp.isin(v.birth, jnp.asarray([2, 4, 6])))
    kept = keep("sepllm", v, Eviction("sepllm", separators=(1,), budget=6, window=2, sinks=1, separator_room=2))[1]
    assert " ".join(drawn(kept)) in POLICIES["sepllm"].__doc__ and drawn(kept) == "x...x.xxxx"


def test_classes_and_ties_as_drawn():
    score = jnp.asarray([0.2, 0.9, 0.9, 0.1, 0.5, 0.9])
    alive, kept = jnp.arange(6) < 5, jnp.asarray([True, False, False, False, True, False])
    order = ranked(score, alive, kept)
    assert f"order  {' '.join(map(str, np.asarray(order)))}" in ranked.__doc__
    np.testing.assert_array_equal(np.flatnonzero(stays(score, alive, kept, 3)), [0, 1, 4])
    worst = ranked(jnp.asarray([jnp.nan, -jnp.inf, jnp.inf, 0, 0, jnp.inf]), alive, kept)
    np.testing.assert_array_equal(worst, [0, 4, 2, 3, 1, 5])
    stay = jnp.asarray([False, True, True, False, True])
    score, window = jnp.asarray([0.1, 0.3, 0.8, 0.2, 0.5]), jnp.arange(5) == 4
    for name, drawn in (("birth", "birth      1 2 4 | 0 3"), ("reference", "reference  2 1 4 | 0 3")):
        where = np.argsort(np.asarray(seats(stay, score, window, name)))
        assert drawn in seats.__doc__ and drawn.split("  ")[-1].strip() == f"{' '.join(map(str, where[:3]))} | 0 3"


def test_shared_choices():
    score = jnp.arange(2 * 1 * 2 * 3, dtype=jnp.float32).reshape(2, 1, 2, 3)
    assert shared(score, None) is score
    np.testing.assert_array_equal(shared(score, "heads")[:, 0, 0], score.sum(2)[:, 0])
    np.testing.assert_array_equal(shared(score, "layers")[1, 0, 1], score.sum((0, 2))[0])


def test_budgets():
    assert pyramid(5, 100, beta=5) == (180, 140, 100, 60, 20) and sum(pyramid(28, 512)) == pytest.approx(28 * 512, 0.01)
    assert Eviction(budget=64).budgets(3) == (64, 64, 64)
    for wrong, line in (
        (dict(budget=8, window=8), "leaves no room beside the window"),
        (dict(budget=(64, 9), window=8, sinks=1), "leaves no room"),
        (dict(buffer=0), "buffer is 0"),
        (dict(share="rows"), "share is 'rows'"),
        (dict(share="layers", budget=(64, 65)), "one budget for all"),
        (dict(order="score"), "order is 'score'"),
        (dict(kernel=4), "must be odd"),
        (dict(mix=1.5), "mix is 1.5"),
    ):
        with pytest.raises(UserError, match=line):
            Eviction(**wrong)
    with pytest.raises(UserError, match="2 budgets were given for a model of 3 layers"):
        Eviction(budget=(64, 65)).budgets(3)


@pytest.mark.parametrize("groups", [1, 7])
@pytest.mark.parametrize("policy", [*SCORED, "sepllm"])
def test_twenty_rounds_keep_what_the_formulas_keep(policy, groups):
    """A cache of two rows in another order, filled and cut down twenty times, against loops over its living keys."""
    rows, heads, depth, rounds = 2, 2, 16, 20
    how = Eviction(policy, budget=24, buffer=8, window=4, sinks=2, separators=(1,), separator_room=5)
    model = DecoderConfig(128, 32, 32, 1, heads * groups, heads, depth)
    cache = empty_evicting(model, rows, how.budget + how.buffer, how, rounds * 8 + 32, False)
    k, q = map(np.asarray, draw("duplicated", rows, heads, groups, rounds * 8 + 32, depth, rounds * 8 + 32))
    cut = jax.jit(functools.partial(evict, how=how))
    marks = (np.arange(rounds * 8 + 32) % 5 == 1).astype(np.int8) * SEPARATOR
    order = jnp.asarray([1, 0])
    total, index = np.zeros((rows, heads, k.shape[2])), 0
    for number in range(rounds):
        step = 32 if number == 0 else 8
        first, count = jnp.full(rows, index), jnp.full(rows, step)
        own = slice(index, index + step)
        mark = jnp.broadcast_to(jnp.asarray(marks[own]), (rows, step))
        cache, start = append(cache, order, first, count, mark=mark)
        new = k[:, :, own].transpose(0, 2, 1, 3)
        cache = dataclasses.replace(cache, k=write(cache.k, jnp.asarray(new), 0, order, start[0]))
        index += step
        if how.asks:
            last = slice(index - how.asks, index)
            ring = cache.queries.at[0, order].set(q[:, :, last])
            asked = jnp.asarray(np.broadcast_to(np.arange(index, dtype=np.int32)[last], (rows, how.asks)))
            cache = dataclasses.replace(cache, queries=ring, asked=asked)
        birth = np.asarray(cache.birth[0, order])[..., : int(cache.length[0, 0])]
        for row, head in np.ndindex(rows, heads):
            there = birth[row, head]
            group = np.asarray(q[row, head * groups : (head + 1) * groups, own], np.float64)
            keys = np.asarray(k[row, head, there], np.float64)
            total[row, head, there] += reference.received(keys, group, np.arange(index - step, index), there)
        if policy == "h2o":
            sums = np.take_along_axis(total, birth, -1).astype(np.float32)
            sums = cache.received.at[0, order, :, : sums.shape[-1]].set(sums)
            cache = dataclasses.replace(cache, received=sums)
        draw_none, due = jnp.zeros(rows, jnp.uint32), jnp.full(rows, True)
        cache, stuck = cut(cache, index=jnp.full(rows, index), draw=draw_none, due=due, rows=order)
        assert not stuck.any() and (np.asarray(cache.length) == how.budget).all()
        after = np.asarray(cache.birth[0, order])[..., : how.budget]
        for row in range(rows):
            there = birth[row]
            keys = np.stack([np.asarray(k[row, head, there[head]], np.float64) for head in range(heads)])
            asked = np.asarray(q[row, :, index - max(how.window, 1) : index], np.float64)
            sums = np.take_along_axis(total[row], there, -1)
            score = reference.scores(policy, keys, asked, how, index, there, sums, marks[there] == SEPARATOR)
            for head in range(heads):
                kept = np.isin(there[head], after[row, head])
                safe = (there[head] < how.sinks) | (there[head] >= index - how.window)
                reference.check_kept(kept, score[head], safe, how.budget, 1e-5)
                assert (np.diff(after[row, head]) > 0).all(), "birth order"
                died = np.asarray(cache.record[order[row], 0, head])
                assert (died[there[head][~kept]] == index).all() and (died[there[head][kept]] == NEVER).all()
