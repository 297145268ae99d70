"""Losses against plain float64 loops over tokens, written from the formulas; gradients against finite differences."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.errors import UserError
from lt_jax.rl import losses, metrics
from lt_jax.rl.losses import LossConfig
from lt_jax.rl.mismatch import Correction, correct
from lt_jax.rl.mismatch_config import PRESETS
from tests.test_rl_mismatch import reference, rollouts

LENGTH = 10
CONFIGS = {
    kind: LossConfig(kind, kl_weight=0.05, entropy_weight=0.01, length=LENGTH if kind == "dr_grpo" else None)
    for kind in losses.CLIPS
}
ROWS = np.array([True] * 7 + [False])  # the last is padding; row 3 is an empty response, row 4 has one token


def batch(seed=0):
    """A whole batch as `policy_loss` takes it, with NaN in every place that must not be read.

    Rows 0 and 1 move so little that gspo does not clip them; the others far enough to be clipped here and there, mostly
    where their advantage sends them.
    """
    rng = np.random.default_rng(seed)
    old, sampler, response = rollouts(seed)
    response[7] = False
    far = np.array([1e-4, 2e-4, 0.3, 0.3, 0.4, 0.3, 0.5, 0.3])[:, None]
    advantages = np.array([1.0, -0.7, 0.4, 0.9, -1.2, 0.6, -0.5, np.nan], np.float32)
    logp = old + far * (rng.normal(size=old.shape) + np.sign(advantages)[:, None])
    away = old + (0.8 * rng.normal(size=old.shape)).astype(np.float32)
    hide = lambda x: np.where(response, x, np.nan).astype(np.float32)
    return {
        "logp": hide(logp), "logp_old": hide(old), "logp_sampler": hide(sampler), "logp_reference": hide(away),
        "entropy": hide(rng.uniform(0.1, 2, old.shape)), "response": response,
        "advantages": advantages,
    }  # fmt: skip


def plain_loss(config, b, weights, kept, accepted, logp=None, entropy=None):
    """The loss of a whole batch, token by token."""
    logp = b["logp"].astype(np.float64) if logp is None else logp
    entropy = b["entropy"].astype(np.float64) if entropy is None else entropy
    bounds = {"grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "rloo": None}
    low, high = bounds[config.kind] or (math.inf, math.inf)
    total, tokens, responses = 0.0, 0, 0
    for i in np.flatnonzero(ROWS):
        if accepted[i] or config.count_rejected:
            responses += 1
            tokens += sum(bool(kept[i, t]) for t in range(kept.shape[1]))
        if not accepted[i]:
            continue
        places = [t for t in range(kept.shape[1]) if kept[i, t]]
        log_r = {t: logp[i, t] - float(b["logp_old"][i, t]) for t in places}
        if config.kind == "gspo":
            log_r = dict.fromkeys(places, sum(log_r.values()) / max(1, len(places)))
        row, advantage = 0.0, float(b["advantages"][i])
        for t in places:
            r = math.exp(log_r[t])
            row -= weights[i, t] * min(r * advantage, min(max(r, 1 - low), 1 + high) * advantage)
            d = float(b["logp_reference"][i, t]) - logp[i, t]
            row += config.kl_weight * (min(10, math.exp(d) - 1 - d) if config.kl == "k3" else -d)
            row -= config.entropy_weight * entropy[i, t]
        total += row / max(1, len(places)) if config.kind in ("grpo", "gspo") else row
    return total / {"dapo": max(1, tokens), "dr_grpo": max(1, responses) * LENGTH}.get(config.kind, max(1, responses))


@functools.partial(jax.jit, static_argnums=(0, 1))
def whole(config, preset, b, rows):
    """Loss, sums, correction, and the gradients to logp and entropy, of a whole batch at once."""
    correction = correct(PRESETS[preset], b["logp_old"], b["logp_sampler"], b["response"])
    divisor = losses.denominator(config, b["response"], correction, rows)

    def loss(logp, entropy):
        return losses.policy_loss(config, logp, b["logp_old"], b["advantages"], b["response"], correction, divisor,
                                  b["logp_reference"], entropy)  # fmt: skip

    (value, sums), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(b["logp"], b["entropy"])
    return value, sums, correction, grads


def slopes(function, x, where, step=1e-6):
    """Central differences of a function of a float64 array, in the places `where`; 0 elsewhere."""
    out = np.zeros(x.shape)
    for place in zip(*np.nonzero(where), strict=True):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            ends.append(function(moved))
        out[place] = (ends[0] - ends[1]) / (2 * step)
    return out


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_loss_and_gradient_of_every_preset(kind, preset):
    config, b = CONFIGS[kind], batch()
    value, sums, correction, (grad, entropy_grad) = whole(config, preset, b, ROWS)
    parts = reference(preset, b["logp_old"], b["logp_sampler"], b["response"])
    plain = functools.partial(plain_loss, config, b, *parts)
    np.testing.assert_allclose(value, plain(), rtol=2e-5)
    np.testing.assert_allclose(sums["policy"] + sums["kl"] + sums["entropy"], value, rtol=1e-5)
    expected = slopes(lambda x: plain(logp=x), b["logp"].astype(np.float64), b["response"])
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=2e-6)
    expected = slopes(lambda x: plain(entropy=x), b["entropy"].astype(np.float64), b["response"])
    np.testing.assert_allclose(entropy_grad, expected, rtol=1e-4, atol=1e-7)

    learned = np.asarray(correction.learned)
    assert (np.asarray(grad)[~learned] == 0).all() and (np.asarray(entropy_grad)[~learned] == 0).all()
    assert np.abs(grad)[learned].min() > 0  # the KL reaches every token that is learned from
    if preset in ("paper", "release"):
        assert not correction.accepted[2] and (np.asarray(grad)[2] == 0).all()
    assert (0 < sums["clipped"] < sums["tokens"]) == (kind != "rloo") and sums["tokens"] == learned.sum()


@pytest.mark.parametrize("kind", CONFIGS)
def test_microbatches_add_up_to_the_batch(kind):
    config, b = CONFIGS[kind], batch()
    for preset in ("paper", "release"):
        value, sums, correction, grads = whole(config, preset, b, ROWS)
        divisor = losses.denominator(config, b["response"], correction, ROWS)

        @jax.jit
        def piece(b, correction, divisor):
            def loss(logp, entropy):
                return losses.policy_loss(config, logp, b["logp_old"], b["advantages"], b["response"], correction,
                                          divisor, b["logp_reference"], entropy)  # fmt: skip
            return jax.value_and_grad(loss, (0, 1), has_aux=True)(b["logp"], b["entropy"])

        cut = lambda tree, k: jax.tree.map(lambda a: a[k::4], tree)
        pieces = [piece(cut(b, k), cut(correction, k), divisor) for k in range(4)]
        added = jax.tree.map(lambda *parts: sum(parts), *(found for found, _ in pieces))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), added, (value, sums))
        for k, (_, found) in enumerate(pieces):
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found, cut(grads, k))


@pytest.mark.parametrize("kind", CONFIGS)
def test_all_arms_are_one_where_sampler_and_learner_agree(kind):
    b = batch()
    b["logp_sampler"] = b["logp_old"]
    first = None
    for preset in PRESETS:
        value, sums, _, grads = whole(CONFIGS[kind], preset, b, ROWS)
        first = first or (value, sums, grads)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
        jax.tree.map(close, (value, sums, grads), first)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("kl", ["k1", "k3"])
def test_options(kind, kl):
    b = batch()
    clip = None if kind == "rloo" else (0.1, 0.4)
    config = LossConfig(kind, clip, kl, 0.5, 0.0, LENGTH if kind == "dr_grpo" else None, count_rejected=False)
    value, sums, correction, _ = whole(config, "release", b, ROWS)
    parts = reference("release", b["logp_old"], b["logp_sampler"], b["response"])
    counted = losses.denominator(config, b["response"], correction, ROWS)
    every = losses.denominator(CONFIGS[kind], b["response"], correction, ROWS)
    tokens = parts[1].sum()
    expected = {"dapo": (tokens - parts[1][2].sum(), tokens), "dr_grpo": (6 * LENGTH, 7 * LENGTH)}.get(kind, (6, 7))
    assert (counted, every) == expected
    # Rows that nobody named are those with a sampled token: not row 3.
    unnamed = losses.denominator(CONFIGS[kind], b["response"], correction)
    assert unnamed == {"dapo": tokens, "dr_grpo": 6 * LENGTH}.get(kind, 6)
    if clip is None:
        np.testing.assert_allclose(value, plain_loss(config, b, *parts), rtol=2e-5)
    else:
        learned = np.asarray(correction.learned)
        d = np.where(learned, b["logp"] - b["logp_old"], 0).astype(np.float64)
        if kind == "gspo":
            d = np.broadcast_to(d.sum(1, keepdims=True) / np.maximum(learned.sum(1, keepdims=True), 1), d.shape)
        r, advantage = np.exp(d), np.broadcast_to(b["advantages"][:, None], d.shape)
        clipped = learned & (((advantage > 0) & (r > 1.4)) | ((advantage < 0) & (r < 0.9)))
        assert sums["clipped"] == clipped.sum() > 0


def test_the_k3_of_the_release_is_cut_to_10():
    reference_logp, logp = jnp.array([[-1.0, -1.0, -9.0, -30.0]]), jnp.array([[-1.5, -8.0, -1.0, -1.0]])
    find = lambda logp: losses.kl("k3", logp, reference_logp, jnp.array([[True, True, True, True]]))
    exact = math.exp(0.5) - 1.5, 10.0, math.exp(-8) - 1 + 8, 10.0
    np.testing.assert_allclose(find(logp)[0], exact, rtol=1e-6)
    slope = jax.grad(lambda logp: find(logp).sum())(logp)[0]
    np.testing.assert_allclose(slope, [1 - math.exp(0.5), 0, 1 - math.exp(-8), 0], rtol=1e-6)


EXTREMES = [-1e4, 1e4, -np.inf, -3e38, 0.0]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("which", ["logp", "logp_old", "logp_sampler", "logp_reference", "all"])
def test_extreme_log_probs_give_numbers(kind, which):
    names = ("logp", "logp_old", "logp_sampler", "logp_reference") if which == "all" else (which,)
    for sign in (1, -1):
        b = batch()
        b["advantages"] *= sign
        for name in names:
            for row, value in zip((0, 1, 4, 5, 6), EXTREMES, strict=True):
                b[name][row, np.flatnonzero(b["response"][row])[-1]] = value
        for preset in ("naive", "release"):
            value, sums, _, grads = whole(CONFIGS[kind], preset, b, ROWS)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, sums, grads)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_batches_with_nothing_to_learn(kind):
    b = batch()
    nothing = b | {"response": np.zeros_like(b["response"])}
    value, sums, _, grads = whole(CONFIGS[kind], "release", nothing, ROWS)
    assert value == 0 and all((g == 0).all() for g in grads)
    assert not any(np.isnan(found) for found in metrics.update(sums).values())
    all_rejected = b | {"logp_sampler": b["logp_old"] + 15}
    value, sums, correction, grads = whole(CONFIGS[kind], "paper", all_rejected, ROWS)
    assert value == 0 and sums["tokens"] == 0 and all((g == 0).all() for g in grads)
    assert not correction.accepted[b["response"].any(1)].any()


def test_update_metrics():
    b = batch()
    value, sums, correction, _ = whole(CONFIGS["grpo"], "release", b, ROWS)
    found = metrics.update(sums)
    learned = np.asarray(correction.learned)
    d = (b["logp"] - b["logp_old"])[learned].astype(np.float64)
    far = (b["logp_reference"] - b["logp"])[learned].astype(np.float64)
    expected = {"reference_kl": np.minimum(np.exp(far) - 1 - far, 10).mean(), "entropy": b["entropy"][learned].mean(),
                "ratio": np.exp(d).mean(), "old_kl": -d.mean(), "tokens": learned.sum()}  # fmt: skip
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["policy_loss"] + found["kl_loss"] + found["entropy_loss"], value, rtol=1e-5)
    assert found["clip_fraction"] == sums["clipped"] / learned.sum() > 0


def test_without_reference_and_entropy():
    b = batch()
    response = b["response"]
    correction = correct(PRESETS["naive"], b["logp_old"], b["logp_sampler"], response)
    find = lambda config, **more: losses.policy_loss(config, b["logp"], b["logp_old"], b["advantages"], response,
                                                     correction, jnp.float32(7), **more)  # fmt: skip
    value, sums = find(LossConfig(kl_weight=0.0))
    assert value == sums["policy"] and not {"kl", "entropy", "sum_reference_kl", "sum_entropy"} & sums.keys()
    # Given, and of no weight: they are measured, and change nothing.
    same, more = find(LossConfig(kl_weight=0.0), logp_reference=b["logp_reference"], entropy=b["entropy"])
    assert same == value and more["kl"] == 0 and more["sum_reference_kl"] > 0 and more["sum_entropy"] > 0
    for config, line in ((LossConfig(), "reference"), (LossConfig(kl_weight=0.0, entropy_weight=0.1), "entropy")):
        with pytest.raises(ValueError, match=line):
            find(config)


def test_gspo_weighs_tokens_of_a_response_by_their_mean():
    response = jnp.ones((1, 2), bool)
    correction = Correction(jnp.array([[0.5, 1.0]]), response, jnp.ones(1, bool), jnp.ones(1))
    old, config = jnp.log(jnp.array([[0.2, 0.3]])), LossConfig("gspo", kl_weight=0)
    loss = lambda logp: losses.policy_loss(config, logp, old, jnp.array([2.0]), response, correction, 1.0)[0]
    np.testing.assert_allclose(loss(old), -1.5, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(old), [[-0.75, -0.75]], rtol=1e-6)


@pytest.mark.parametrize("given, line", [
    (dict(kind="ppo"), "loss.kind is 'ppo'; it is one of grpo, dr_grpo, dapo, gspo, rloo"),
    (dict(kind="rloo", clip=(0.2, 0.2)), "but rloo does not clip"),
    (dict(clip=(-0.2, 0.2)), "loss.clip is"),
    (dict(clip=(0.2,)), "loss.clip is"),
    (dict(clip=("a", "b")), "loss.clip is ('a', 'b'); it is (low, high)"),
    (dict(kl="k2"), "loss.kl is 'k2'; it is one of k1, k3"),
    (dict(kl_weight=-1), "must not be negative"),
    (dict(kind="dr_grpo"), "dr_grpo needs a length above 0"),
    (dict(kind="dr_grpo", length=0), "dr_grpo needs a length above 0"),
    (dict(length=10), "no other loss has one"),
])  # fmt: skip
def test_nonsense_is_refused_in_one_line(given, line):
    with pytest.raises(UserError) as error:
        LossConfig(**given)
    assert line in str(error.value) and "\n" not in str(error.value)
