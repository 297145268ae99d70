"""Every implementation against `dense`, the definition: outputs 1e-5, gradients 1e-4, and what must not matter."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.attention import attention, blocked, blocks, prepare
from lt_jax.errors import UserError
from lt_jax.lifetimes import GIST_RULES, NEVER, Lifetimes, causal
from tests.attention_rows import anllm, evicted, joined, lightthinker, packed

LENGTH = 150  # not a multiple of the block sides below
SIDES = dict(block_q=32, block_k=16)


def arrays(rows, length, heads=4, groups=2, depth=16, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (heads, groups, groups, heads)
    return [jnp.asarray(rng.standard_normal((rows, length, n, depth)), dtype) for n in shapes]


@jax.jit
def results(q, k, v, weight, plan):
    """Output and the gradients of a random linear function of it."""
    run = lambda q, k, v: attention(q, k, v, plan)
    out, back = jax.vjp(run, q, k, v)
    return out, back(weight.astype(out.dtype))


def agree(life, heads=4, groups=2, depth=16, **sides):
    args = arrays(life.death.shape[0], life.death.shape[-1], heads, groups, depth)
    want, want_grads = results(*args, prepare(life, "dense"))
    for form in ("blocked", "native"):
        if form == "native" and depth % 16:
            continue  # refused, see test_wrong_use_says_what_is_wrong
        out, grads = results(*args, prepare(life, form, **(sides or SIDES)))
        np.testing.assert_allclose(out, want, atol=1e-5, rtol=0, err_msg=form)
        for name, a, b in zip("qkv", grads, want_grads, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, rtol=0, err_msg=f"{form}: gradient of {name}")


@pytest.mark.parametrize("exclude_continue", [False, True])
@pytest.mark.parametrize("rule", GIST_RULES)
@pytest.mark.parametrize("see_current", [False, True])
def test_lightthinker(see_current, rule, exclude_continue):
    agree(lightthinker(LENGTH, see_current, rule, exclude_continue))


def test_anllm():
    agree(anllm(LENGTH))


@pytest.mark.parametrize("rule", ["causal", "bidirectional", "diagonal"])
def test_packed_rows(rule):
    agree(packed(LENGTH, rule))


def test_rows_out_of_phase_with_dead_tails():
    agree(joined(*(lightthinker(LENGTH, parts=(n, 10, 4), dead_tail=t) for n, t in ((12, 1), (7, 60), (30, 33)))))


def test_gist_ids_may_be_scattered_and_come_back():
    rng = np.random.default_rng(3)
    for rule in ("bidirectional", "diagonal"):
        gist = jnp.asarray(rng.integers(-3, 6, (1, LENGTH)).clip(-1), jnp.int32)
        agree(Lifetimes(evicted(1, 1, LENGTH).death[:, 0], gist=gist, gist_rule=rule))


@pytest.mark.parametrize("heads, groups", [(2, 2), (8, 2), (7, 1), (14, 2)])
def test_grouped_queries(heads, groups):
    agree(lightthinker(70), heads, groups, depth=8)
    agree(lightthinker(70), heads, groups, depth=80)


@pytest.mark.parametrize("rows, groups", [(1, 3), (2, 2), (2, 1)])
def test_deaths_per_head(rows, groups):
    agree(evicted(rows, groups, LENGTH), 2 * groups, groups)


def test_deaths_per_head_with_since_and_gists():
    life = lightthinker(LENGTH, see_current=True, rule="bidirectional")
    agree(Lifetimes(evicted(1, 2, LENGTH).death, life.since, life.gist, life.gist_rule))


@pytest.mark.parametrize("length", [1, 31, 33, 64])
def test_any_length_with_the_default_sides(length):
    agree(lightthinker(length), block_q=None, block_k=None)


@pytest.mark.parametrize("life", [lightthinker(LENGTH, True), evicted(2, 2, LENGTH), packed(LENGTH, "diagonal")])
def test_lockstep_is_the_same(life):
    """The form for accelerators, all units as one batch."""
    args = arrays(life.death.shape[0], LENGTH)
    plan = prepare(life, "blocked", **SIDES)
    run = jax.jit(lambda lockstep, q, k, v: blocked.blocked(q, k, v, plan, 0.25, lockstep), static_argnums=0)
    one, one_back = jax.vjp(functools.partial(run, False), *args[:3])
    all_, all_back = jax.vjp(functools.partial(run, True), *args[:3])
    np.testing.assert_allclose(all_, one, atol=1e-6)
    for a, b in zip(all_back(args[3]), one_back(args[3]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_causal_is_plain_causal_attention():
    q, k, v, _ = arrays(2, LENGTH)
    want = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    for name in ("dense", "blocked", "native"):
        np.testing.assert_allclose(attention(q, k, v, causal(2, LENGTH), name), want, atol=1e-5)
    half = jax.nn.dot_product_attention(q, k, v, is_causal=True, scale=0.5)
    np.testing.assert_allclose(attention(q, k, v, causal(2, LENGTH), scale=0.5), half, atol=1e-5)


def test_bfloat16():
    args = arrays(1, LENGTH, dtype=jnp.bfloat16)
    life = lightthinker(LENGTH)
    exact, _ = results(*(x.astype(jnp.float32) for x in args), prepare(life, "dense"))
    for name in ("dense", "blocked", "native"):
        out, grads = results(*args, prepare(life, name))
        assert out.dtype == grads[1].dtype == jnp.bfloat16
        np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)


@pytest.mark.parametrize("name", ["dense", "blocked", "native"])
def test_queries_without_a_key_give_zeros(name):
    death = jnp.arange(40, dtype=jnp.int32)[None].at[:, 20:].set(NEVER)  # the first 20 keys are dead at birth
    args = arrays(1, 40)
    out, grads = results(*args, prepare(Lifetimes(death), name))
    assert not np.any(out[:, :20]) and np.all(np.any(out[:, 20:], axis=-1))
    assert not np.any(grads[0][:, :20]) and not np.any(grads[1][:, :20])
    assert all(np.isfinite(x).all() for x in grads)


@pytest.mark.parametrize("name", ["dense", "blocked", "native"])
def test_what_lies_behind_unseen_keys_does_not_matter(name):
    """NaN behind keys dead at birth; huge numbers behind keys that a query does not see."""
    life = lightthinker(LENGTH)
    dead = np.arange(20, 26)
    life = Lifetimes(life.death.at[:, dead].set(dead))
    args = arrays(1, LENGTH)
    plan = prepare(life, name)
    want, want_grads = results(*args, plan)
    q, k, v, weight = args
    out, grads = results(q, k.at[:, dead].set(np.nan), v.at[:, dead].set(np.nan), weight, plan)
    np.testing.assert_array_equal(out, want)
    for a, b in zip(grads, want_grads, strict=True):
        np.testing.assert_array_equal(a, b)
    thought = slice(12, 20)  # dies at 26
    out, _ = results(q, k.at[:, thought].set(1e4), v.at[:, thought].set(1e6), weight, plan)
    np.testing.assert_array_equal(out[:, 26:], want[:, 26:])
    assert not np.allclose(out[:, 13:26], want[:, 13:26])


def test_large_scores_stay_finite():
    q, k, v, weight = arrays(1, LENGTH)
    life = lightthinker(LENGTH)
    args = 300 * q, 300 * k, v, weight
    want, _ = results(*args, prepare(life, "dense"))
    for name in ("blocked", "native"):
        out, grads = results(*args, prepare(life, name, **SIDES))
        np.testing.assert_allclose(out, want, atol=1e-3)
        assert all(np.isfinite(x).all() for x in grads)


def test_one_plan_serves_a_rematerialised_scan_over_layers():
    """The plan is closed over by the scan, built once, and the gradient through it is dense's."""
    q, k, v, weight = arrays(2, LENGTH)
    scales = jnp.linspace(0.5, 1.5, 3)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(life, name, q):
        plan = prepare(life, name)

        @jax.checkpoint
        def layer(x, s):
            return x + attention(x * s, k, v, plan), None

        return jax.grad(lambda q: jnp.sum(jax.lax.scan(layer, q, scales)[0] * weight))(q)

    life = packed(LENGTH)
    want = gradient(life, "dense", q)
    for name in ("blocked", "native"):
        np.testing.assert_allclose(gradient(life, name, q), want, atol=1e-4)


def test_no_array_of_length_squared():
    """Memory grows with the length, forward and backward, and stays far under one S x S array."""
    def temporary(length, name):
        args = arrays(1, length, heads=4, groups=1)
        plan = jax.eval_shape(lambda x: prepare(x, name), lightthinker(length))
        return results.lower(*args, plan).compile().memory_analysis().temp_size_in_bytes

    length = 2048
    used, half = temporary(length, "blocked"), temporary(length // 2, "blocked")
    assert used < 4 * length * length / 4  # a quarter of one float32 S x S array of one head
    assert used < 2.2 * half
    assert temporary(length, "dense") > 4 * length * length  # so the measure sees such arrays


@pytest.mark.parametrize("life", [
    lightthinker(LENGTH, True, "diagonal"), lightthinker(LENGTH, False, "bidirectional", True), anllm(LENGTH),
    evicted(2, 3, LENGTH), joined(*(lightthinker(LENGTH, parts=(n, 10, 4), dead_tail=20) for n in (5, 17))),
])
def test_lists_hold_every_visible_pair_and_no_false_full_block(life):
    plan = prepare(life, "blocked", **SIDES)
    lists, nq, nk = plan.blocks.shape
    mask = jax.vmap(jax.vmap(jax.vmap(functools.partial(blocks.block_mask, plan, width=32), (None, None, 0)),
                             (None, 0, None)), (0, None, None))(jnp.arange(lists), jnp.arange(nq), jnp.arange(nk))
    inside = (jnp.arange(nq * 32) < LENGTH).reshape(nq, 1, 1, 32)  # queries that exist
    some = np.asarray((mask & inside).any((-1, -2)))
    every = np.asarray((mask | ~inside).all((-1, -2)))
    for row in range(lists):
        for i in range(nq):
            listed = np.asarray(plan.blocks[row, i])
            n_full, n_active = int(plan.n_full[row, i]), int(plan.n_active[row, i])
            assert sorted(listed) == list(range(nk))
            assert every[row, i, listed[:n_full]].all()
            assert not some[row, i, listed[n_active:]].any()


def test_death_order_leaves_few_blocks():
    """40-token thoughts at 4,096 tokens: about a fifth of the pairs of 128-blocks, where causal needs half."""
    share = lambda life: float(blocks.share(prepare(life, "blocked", block_q=128, block_k=128)))
    assert share(lightthinker(4096, parts=(64, 40, 9))) < 0.22
    assert 0.5 < share(causal(1, 4096)) < 0.53
    assert float(blocks.share(prepare(lightthinker(4096, parts=(64, 40, 9)), block_q=64, block_k=32))) < 0.145


def test_wrong_use_says_what_is_wrong():
    q, k, v, _ = arrays(1, 20)
    life = lightthinker(20)
    with pytest.raises(ValueError, match="'flash' is not one of dense, blocked"):
        attention(q, k, v, life, "flash")
    with pytest.raises(ValueError, match="'dense' was asked for, but the plan is for 'blocked'"):
        attention(q, k, v, prepare(life, "blocked"), "dense")
    with pytest.raises(ValueError, match="'native' was asked for, but the plan is for 'blocked'"):
        attention(q, k, v, prepare(life, "blocked"), "native")
    with pytest.raises(UserError, match="multiples of 16, not 8 and 32"):
        attention(q[..., :8], k[..., :8], v[..., :8], life, "native")
    with pytest.raises(ValueError, match="do not fit q"):
        attention(q, k, v, lightthinker(21))
    with pytest.raises(ValueError, match="shapes do not fit"):
        attention(q[:, :, :3], k, v, life)
