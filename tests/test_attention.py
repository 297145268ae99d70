"""Every implementation against `dense`, the definition: outputs 1e-5, gradients 1e-4, and what must not matter.

Rows are joined and shapes repeated where it does not matter, because nearly all of the time goes into compiling.
"""

from __future__ import annotations

import functools
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import cuda, native
from lt_jax.attention import attention, blocks, flash, pallas_train, planned, triton_train
from lt_jax.errors import UserError
from lt_jax.lifetimes import GIST_RULES, NEVER, Lifetimes, causal, dense_mask
from tests.attention_rows import anllm, evicted, joined, lightthinker, packed, recorded
from tests.test_native import needs_native

LENGTH = 150  # not a multiple of the block sides below
SIDES = dict(block_q=32, block_k=16)  # but for pallas and triton, which have sides of their own
NATIVE = pytest.param("native", marks=needs_native)
TRITON = pytest.param("triton", marks=pytest.mark.triton_interpreted)
ours = pytest.mark.parametrize("form", ["blocked", NATIVE, "pallas", TRITON])
everyone = pytest.mark.parametrize("form", ["dense", "blocked", NATIVE, "pallas", TRITON])
if cuda.interpreting():  # a program takes its time whatever it does: the fewer the better
    triton_train.EXACT = (*triton_train.SIDES, 4, 2)
_plan_of = jax.jit(planned, static_argnames=("implementation", "block_q", "block_k"))


def plan_of(life, form=None, **sides):
    return _plan_of(life, form, **({} if form in ("pallas", "triton") and sides == SIDES else sides))


def arrays(rows, length=LENGTH, heads=4, groups=2, depth=16, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (heads, groups, groups, heads)
    return [jnp.asarray(rng.standard_normal((rows, length, n, depth)), dtype) for n in shapes]


def arrays_of(length):
    return [jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)] * 3


def output_and_gradients(run, q, k, v, weight):
    """Output and the gradients of a random linear function of it."""
    out, back = jax.vjp(run, q, k, v)
    return out, back(weight.astype(out.dtype))


@jax.jit
def results(q, k, v, weight, plan):
    return output_and_gradients(lambda q, k, v: attention(q, k, v, plan), q, k, v, weight)


def agree(form, life, heads=4, groups=2, depth=16, **sides):
    args = arrays(life.death.shape[0], life.death.shape[-1], heads, groups, depth)
    want, want_grads = results(*args, plan_of(life, "dense"))
    out, grads = results(*args, plan_of(life, form, **(sides or SIDES)))
    np.testing.assert_allclose(out, want, atol=1e-5, rtol=0)
    for name, a, b in zip("qkv", grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=0, err_msg=f"gradient of {name}")


def four(*lifetimes):
    """Four rows of all that is given, over and over, with `since`: one shape for each gist rule."""
    zeros = lambda life: jnp.zeros_like(life.death) if life.since is None else life.since
    life = joined(*(Lifetimes(life.death, zeros(life), life.gist, life.gist_rule) for life in lifetimes))
    take = lambda x: None if x is None else jnp.resize(x, (4, x.shape[1]))
    return Lifetimes(take(life.death), take(life.since), take(life.gist), life.gist_rule)


@ours
@pytest.mark.parametrize("rule", GIST_RULES)
def test_lightthinker(rule, form):
    """`see_current` and `exclude_continue`, off and on; then rows of several documents."""
    agree(form, four(*(lightthinker(LENGTH, see, rule, leave) for see in (False, True) for leave in (False, True))))
    agree(form, four(packed(LENGTH, rule)))


@ours
def test_anllm_and_rows_out_of_phase_with_dead_tails(form):
    late = (lightthinker(LENGTH, parts=(n, 10, 4), dead_tail=t) for n, t in ((12, 1), (7, 60), (30, 33)))
    agree(form, four(anllm(LENGTH), *late))


@ours
@pytest.mark.parametrize("rule", ["causal", "diagonal"])
def test_rows_without_since(rule, form):
    agree(form, packed(LENGTH, rule))


@ours
@pytest.mark.parametrize("rule", ["bidirectional", "diagonal"])
def test_gist_ids_may_be_scattered_and_come_back(rule, form):
    gist = jnp.asarray(np.random.default_rng(3).integers(-3, 6, (4, LENGTH)).clip(-1), jnp.int32)
    agree(form, four(Lifetimes(evicted(4, 1, LENGTH).death[:, 0], gist=gist, gist_rule=rule)))


@pytest.mark.parametrize("form, heads, groups, depth", [
    ("blocked", 14, 2, 8),  # native: refused, see below
    *(pytest.param(*form.values, *sizes, marks=form.marks)
      for form in (pytest.param("blocked"), NATIVE, pytest.param("pallas"), TRITON)
      for sizes in ((2, 2, 80), (7, 1, 128), (8, 2, 256))),
])  # fmt: skip
def test_grouped_queries_and_head_sizes(form, heads, groups, depth):
    agree(form, lightthinker(33), heads, groups, depth)  # shorter than any block


@ours
def test_deaths_of_one_head(form):
    """Two heads in two rows are below, under a budget."""
    agree(form, evicted(2, 1, LENGTH), 2, 1)


@ours
def test_deaths_of_three_heads_with_since_and_gists(form):
    life = lightthinker(LENGTH, see_current=True, rule="bidirectional")
    agree(form, Lifetimes(evicted(1, 3, LENGTH).death, life.since, life.gist, life.gist_rule), 6, 3)


@ours
def test_one_token(form):
    agree(form, lightthinker(1), block_q=None, block_k=None)


@pytest.mark.parametrize("form", ["blocked", NATIVE])
def test_any_sides(form):
    agree(form, lightthinker(64), block_q=16, block_k=13)


@pytest.mark.parametrize("depth, inside, groups", [(16, True, 1), (128, True, 2), (16, False, 2), (128, False, 1)])
def test_pallas_chunks(depth, inside, groups, monkeypatch):
    """Rows long enough for chunks of full blocks, of partial ones, half chunks, and lists that end in one; two query
    blocks a tile; keys sorted by the kernel and, as in long rows, by XLA."""
    monkeypatch.setattr(pallas_train, "INSIDE", 10**6 if inside else 0)
    jax.clear_caches()  # the choice is a constant of traced programs
    life = lightthinker(1100, parts=(600, 40, 9))
    plan = plan_of(life, "pallas")
    full, active = np.asarray(plan.n_full), np.asarray(plan.n_active)
    assert full.max() >= 4 and {*(active - full // 4 * 4).ravel() % 4} == {0, 1, 2, 3}
    agree("pallas", life, 2, groups, depth, **(dict(block_q=256, block_k=128) if groups == 2 else {}))
    jax.clear_caches()


@pytest.mark.triton_interpreted
def test_triton_tiles_smaller_than_blocks(monkeypatch):
    """Several tiles of queries and of keys to a block, in lists with full blocks; deaths of two heads."""
    monkeypatch.setattr(triton_train, "EXACT", (32, 16, 4, 2))
    life = evicted(1, 2, 100)
    life = Lifetimes(jnp.where(jnp.arange(100) < 40, NEVER, life.death))
    sides = dict(block_q=64, block_k=32)
    assert np.max(plan_of(life, "triton", **sides).q_full) == 1
    agree("triton", life, 4, 2, **sides)


@ours
@pytest.mark.parametrize("policy", ["rkv", "snapkv"])
def test_deaths_recorded_under_a_budget(policy, form):
    agree(form, recorded(policy))


@ours
def test_logsumexp(form):
    """To the base 2 where a form works in it; of what is visible, and huge where that is nothing."""
    life = packed(LENGTH)
    life = Lifetimes(life.death.at[:, :9].set(0))
    q, k, v, _ = arrays(2)
    plan = plan_of(life, form, **SIDES)
    name = {"blocked": "one by one", "native": "native", "pallas": "pallas interpreted", "triton": "triton"}[form]
    _, lse = jax.jit(functools.partial(flash.FORMS[name][0], scale=0.25))(q, k, v, plan)
    scores = jnp.einsum("bthd,bshd->bhts", q, jnp.repeat(k, 2, 2), precision="highest") * 0.25
    want = jax.nn.logsumexp(jnp.where(dense_mask(life), scores, -jnp.inf), -1)
    some = np.isfinite(want)
    base = 1.0 if form == "native" else np.log(2)
    np.testing.assert_allclose(np.where(some, lse * base, 0), np.where(some, want, 0), atol=1e-5)
    assert not some[:, :, :9].any() and np.all(np.asarray(lse)[~some] > 1e20)


@pytest.mark.parametrize("life", [four(lightthinker(LENGTH, True)), evicted(1, 3, LENGTH)], ids=["rows", "heads"])
def test_lockstep_is_the_same(life):
    """The form for accelerators, all units as one batch."""
    args = arrays(life.death.shape[0], heads=4 if life.death.ndim == 2 else 6, groups=2 if life.death.ndim == 2 else 3)
    plan = plan_of(life, "blocked", **SIDES)
    one, one_back = results(*args, plan)
    run = lambda q, k, v: flash.flash(q, k, v, plan, 0.25, (("default", "lockstep"),))
    together, back = jax.jit(functools.partial(output_and_gradients, run))(*args)
    np.testing.assert_allclose(together, one, atol=1e-6)
    for a, b in zip(back, one_back, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@everyone
def test_causal_is_plain_causal_attention(form):
    q, k, v, weight = arrays(2)
    want = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(results(q, k, v, weight, plan_of(causal(2, LENGTH), form, **SIDES))[0], want, atol=1e-5)
    if form != "pallas":  # its scale is in the scan below
        half = jax.nn.dot_product_attention(q, k, v, is_causal=True, scale=0.5)
        np.testing.assert_allclose(attention(q, k, v, causal(2, LENGTH), form, scale=0.5), half, atol=1e-5)


@everyone
def test_bfloat16(form):
    args = arrays(2, dtype=jnp.bfloat16)
    life = packed(LENGTH)
    exact, exact_grads = results(*(x.astype(jnp.float32) for x in args), plan_of(life, "dense"))
    out, grads = results(*args, plan_of(life, form))
    assert out.dtype == grads[1].dtype == jnp.bfloat16
    rounding = 2.0**-8  # of the result itself
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=6e-3, rtol=rounding)
    for a, b in zip(grads, exact_grads, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=2e-2, rtol=2 * rounding)


@everyone
def test_queries_without_a_key_give_zeros(form):
    death = jnp.arange(LENGTH, dtype=jnp.int32) * jnp.ones((2, 1), jnp.int32)
    plan = plan_of(Lifetimes(death.at[:, 20:].set(NEVER)), form, **SIDES)  # the first 20 keys are dead at birth
    out, grads = results(*arrays(2), plan)
    assert not np.any(out[:, :20]) and np.all(np.any(out[:, 20:], axis=-1))
    assert not np.any(grads[0][:, :20]) and not np.any(grads[1][:, :20])
    assert all(np.isfinite(x).all() for x in grads)


@everyone
def test_what_lies_behind_unseen_keys_does_not_matter(form):
    """NaN behind keys dead at birth; huge numbers behind keys that a query does not see."""
    life = joined(*[lightthinker(LENGTH)] * 2)
    dead = np.arange(20, 26)
    life = Lifetimes(life.death.at[:, dead].set(dead))
    plan = plan_of(life, form, **SIDES)
    q, k, v, weight = args = arrays(2)
    want, want_grads = results(*args, plan)
    out, grads = results(q, k.at[:, dead].set(np.nan), v.at[:, dead].set(np.nan), weight, plan)
    np.testing.assert_array_equal(out, want)
    for a, b in zip(grads, want_grads, strict=True):
        np.testing.assert_array_equal(a, b)
    thought = slice(12, 20)  # dies at 26
    out, _ = results(q, k.at[:, thought].set(1e4), v.at[:, thought].set(1e6), weight, plan)
    np.testing.assert_array_equal(out[:, 26:], want[:, 26:])
    assert not np.allclose(out[:, 13:26], want[:, 13:26])


@ours
def test_large_scores_stay_finite(form):
    q, k, v, weight = arrays(2)
    life = packed(LENGTH)
    args = 300 * q, 300 * k, v, weight
    want, _ = results(*args, plan_of(life, "dense"))
    out, grads = results(*args, plan_of(life, form, **SIDES))
    np.testing.assert_allclose(out, want, atol=1e-3)
    assert all(np.isfinite(x).all() for x in grads)


@ours
@pytest.mark.parametrize("rise", [0.3, 1, 3])
def test_scores_that_rise_from_block_to_block(form, rise):
    """The native form lets a softmax's maximum lag behind by a little: here it does, and where it catches up."""
    q, k, v, weight = arrays(2)
    towards = jnp.sign(q[:, :1, :1])  # a direction in which all queries and, more and more, the keys lie
    q = jnp.abs(q) * towards
    k = k + rise / 40 * jnp.arange(LENGTH)[:, None, None] * towards
    got, got_grads = results(q, k, v, weight, plan_of(causal(2, LENGTH), form, **SIDES))
    want, want_grads = results(q, k, v, weight, plan_of(causal(2, LENGTH), "dense"))
    np.testing.assert_allclose(got, want, atol=2e-5)
    for a, b in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


@ours
def test_one_plan_serves_a_rematerialised_scan_over_layers(form):
    """The plan is closed over by the scan, built once, and the gradient through it is dense's, whatever the scale."""
    q, k, v, weight = arrays(2)
    scales = jnp.linspace(0.5, 1.5, 3)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(life, name, q):
        plan = planned(life, name)

        @jax.checkpoint
        def layer(x, s):
            return x + attention(x * s, k, v, plan, scale=0.5), None

        return jax.grad(lambda q: jnp.sum(jax.lax.scan(layer, q, scales)[0] * weight))(q)

    life = packed(LENGTH)
    np.testing.assert_allclose(gradient(life, form, q), gradient(life, "dense", q), atol=1e-4)


@pytest.mark.parametrize("form", [None, NATIVE, TRITON])
def test_vmap(form):
    """Over inputs that share their lifetimes; the best form here, and by name."""
    args, plan = arrays(2), plan_of(packed(LENGTH), form, **SIDES)
    want = [results(*(x + n for x in args), plan) for n in range(2)]
    stacked = [jnp.stack([x, x + 1]) for x in args]
    got = jax.jit(jax.vmap(results, (0, 0, 0, 0, None)))(*stacked, plan)
    for a, *b in zip(*map(jax.tree.leaves, (got, *want)), strict=True):
        np.testing.assert_allclose(a, jnp.stack(b), atol=1e-5)


@needs_native
def test_several_threads_at_once():
    """One caller has the pool of helpers, the others work alone: results must not mix."""
    plans = [plan_of(life, "native", **SIDES) for life in (packed(LENGTH), causal(2, LENGTH))]
    jobs = [(*arrays(2, seed=seed), plans[seed % 2]) for seed in range(6)]
    run = lambda job: jax.block_until_ready(results(*job))
    want = list(map(run, jobs))
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            jax.tree.map(np.testing.assert_array_equal, list(pool.map(run, jobs)), want)


def program(platform, implementation=None):
    """Text of the gradient of attention, lowered for a platform."""
    q, k, v, _ = arrays(1)
    total = lambda q, k, v: attention(q, k, v, lightthinker(LENGTH), implementation).sum()
    return jax.jit(jax.grad(total, (0, 1, 2))).trace(q, k, v).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_step_can_be_lowered_for_another_platform(platform):
    """The choice falls at lowering: nothing of the CPU's gets into an accelerator's program."""
    if native.available():
        assert "lt_flash_forward" in program("cpu") and "lt_flash_backward" in program("cpu")
    assert "tpu_custom_call" in program("tpu", "pallas")
    text = program(platform)
    assert "lt_flash" not in text and "stablehlo.while" in text
    assert text.count("stablehlo.while") == program(platform, "blocked").count("stablehlo.while")


def test_a_tpu_gets_the_kernels_where_they_fit(monkeypatch):
    """A process on a TPU v5 or later lowers them by default; one on a v4, or with rows too long for them, does not."""
    kinds = {"TPU v5 lite": "v5e", "TPU v5p": "v5p", "TPU v5": "v5p", "TPU v6 lite": "v6e", "TPU7x": "tpu7x"}
    kinds |= dict.fromkeys(("TPU v4", "cpu", "NVIDIA H100 80GB HBM3"))
    assert {kind: pallas_train.generation(kind) for kind in kinds} == kinds
    monkeypatch.setattr(pallas_train, "generation", lambda: "v5e")
    assert "tpu_custom_call" in program("tpu")
    monkeypatch.setattr(pallas_train, "fits", lambda *size: False)
    assert "tpu_custom_call" not in program("tpu")
    monkeypatch.undo()
    assert "tpu_custom_call" not in program("tpu")


def test_several_devices_get_the_blocked_form(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert "lt_flash" not in program("cpu")
    if native.available():
        with pytest.raises(UserError, match="for one device, and there are 2; name 'blocked'"):
            program("cpu", "native")


def test_no_array_of_length_squared():
    """Memory grows with the length, forward and backward, and stays far under one S x S array."""
    def temporary(length, name):
        args = arrays(1, length, heads=4, groups=1)
        plan = jax.eval_shape(lambda x: planned(x, name), lightthinker(length))
        return results.lower(*args, plan).compile().memory_analysis().temp_size_in_bytes

    length = 2048
    used, half = temporary(length, "blocked"), temporary(length // 2, "blocked")
    assert used < 4 * length * length / 4  # a quarter of one float32 S x S array of one head
    assert used < 2.2 * half
    assert temporary(length, "dense") > 4 * length * length  # so the measure sees such arrays


@needs_native
def test_no_array_of_length_squared_outside_of_what_xla_counts():
    """As above for the native form, by the process's own memory: what it takes beside XLA's buffers is its own."""
    reset, length = Path("/proc/self/clear_refs"), 4096
    if not reset.exists():
        pytest.skip("no /proc/self/clear_refs: the most memory held cannot be asked for anew")
    kilobytes = lambda name: int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    args = arrays(1, length, heads=4, groups=1)
    run = lambda: jax.block_until_ready(results(*args, plan))
    plan = plan_of(lightthinker(length), "native")
    run()
    reset.write_text("5")
    before = kilobytes("VmRSS")
    run()
    assert kilobytes("VmHWM") - before < length * length / 1024  # a quarter of one float32 S x S array of one head


@pytest.mark.parametrize("life", [
    lightthinker(LENGTH, True, "diagonal"), lightthinker(LENGTH, False, "bidirectional", True), anllm(LENGTH),
    evicted(2, 3, LENGTH), joined(*(lightthinker(LENGTH, parts=(n, 10, 4), dead_tail=20) for n in (5, 17))),
])
def test_lists_hold_every_visible_pair_and_no_false_full_block(life):
    plan = plan_of(life, "blocked", **SIDES)
    lists, nq, nk = plan.blocks.shape
    pair = functools.partial(blocks.block_mask, plan, width=32)
    every_pair = jax.vmap(jax.vmap(jax.vmap(pair, (None, None, 0)), (None, 0, None)), (0, None, None))
    mask = jax.jit(every_pair)(jnp.arange(lists), jnp.arange(nq), jnp.arange(nk))
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
    share = lambda life: float(blocks.share(plan_of(life, "blocked", block_q=128, block_k=128)))
    assert share(lightthinker(4096, parts=(64, 40, 9))) < 0.22
    assert 0.5 < share(causal(1, 4096)) < 0.53
    assert float(blocks.share(plan_of(lightthinker(4096, parts=(64, 40, 9)), block_q=64, block_k=32))) < 0.145


def test_wrong_use_says_what_is_wrong():
    q, k, v, _ = arrays(1, 20)
    life = lightthinker(20)
    with pytest.raises(ValueError, match="'flash' is not one of dense, blocked"):
        attention(q, k, v, life, "flash")
    with pytest.raises(UserError, match="blocks of 128 keys and of a multiple of 128 queries, not 128 and 64"):
        planned(life, "pallas", block_q=64, block_k=128)
    with pytest.raises(UserError, match="does not hold 65536 in float32"):
        jax.eval_shape(functools.partial(attention, implementation="pallas"), *arrays_of(65536), causal(1, 65536))
    with pytest.raises(ValueError, match="'dense' was asked for, but the plan is for 'blocked'"):
        attention(q, k, v, planned(life, "blocked"), "dense")
    with pytest.raises(ValueError, match="'native' was asked for, but the plan is for 'blocked'"):
        attention(q, k, v, planned(life, "blocked"), "native")
    for plan in (planned(life), planned(life, "dense")):
        with pytest.raises(ValueError, match="'flash' is not one of dense, blocked, native"):
            attention(q, k, v, plan, "flash")
    with pytest.raises(ValueError, match="'dense' was asked for, but the plan is for 'blocked' or 'native'"):
        attention(q, k, v, planned(life), "dense")
    with pytest.raises(ValueError, match="do not fit q"):
        attention(q, k, v, lightthinker(21))
    with pytest.raises(ValueError, match="shapes do not fit"):
        attention(q[:, :, :3], k, v, life)


def test_what_triton_does_not_take(monkeypatch):
    life = causal(1, 20)
    for module in (cuda, cuda.kernel):
        monkeypatch.setattr(module, "installed", lambda: False)
    with pytest.raises(UserError, match="triton attention is made of Triton kernels, and triton 3.6 or later is not"):
        planned(life, "triton")
    monkeypatch.setattr(cuda, "installed", lambda: True)
    with pytest.raises(UserError, match="multiples of 16 queries and keys, not 128 and 24"):
        planned(life, "triton", block_k=24)
    large = [jax.ShapeDtypeStruct((1, 20, 2, 512), jnp.float32)] * 3
    with pytest.raises(UserError, match="head sizes up to 256 .* 16-bit types, not 512 in float32"):
        jax.eval_shape(functools.partial(attention, implementation="triton"), *large, life)
    with pytest.raises(ValueError, match="'triton' was asked for, but the plan is for 'blocked' or 'native'"):
        jax.eval_shape(functools.partial(attention, implementation="triton"), *arrays_of(20), planned(life))


@needs_native
def test_head_sizes_and_query_blocks_that_native_does_not_take():
    q, k, v, _ = arrays(1, 20)
    life = lightthinker(20)
    with pytest.raises(UserError, match="multiples of 16, not 8 and 32"):
        attention(q[..., :8], k[..., :8], v[..., :8], life, "native")
    with pytest.raises(UserError, match="multiples of 16, not 16 and 24"):
        attention(q, k, v, planned(life, "native", block_q=24))
    assert attention(q, k, v, planned(life, block_q=24)).shape == q.shape
