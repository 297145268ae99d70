"""Weights, rejection, advantages and metrics against plain float64 loops over tokens, written from the formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.errors import UserError
from lt_jax.rl import advantages, metrics
from lt_jax.rl.mismatch import correct, masked_quantile
from lt_jax.rl.mismatch_config import PRESETS, RS_OPTIONS, TRL_MODES, MismatchConfig

corrected = jax.jit(correct, static_argnums=0)


def rollouts(seed=0, rows=8, length=11):
    """logp_old, logp_sampler [B, S] float32 and response: holes, a row without a response, one of a single token.

    Mismatch grows with the row; row 2 has a token that the old policy finds catastrophic. Outside of responses: NaN.
    """
    rng = np.random.default_rng(seed)
    sampler = rng.uniform(-3, -0.1, (rows, length)).astype(np.float32)
    old = sampler + (np.linspace(0.02, 1.0, rows)[:, None] * rng.normal(size=(rows, length))).astype(np.float32)
    response = rng.random((rows, length)) < 0.7
    response[:, 0] = False
    response[3] = False
    response[4] = np.arange(length) == 5
    response[2, 6] = True
    old[2, 6] = sampler[2, 6] - 12
    return np.where(response, old, np.nan), np.where(response, sampler, np.nan), response


def log_xis(old, sampler, response):
    """Per row, the log-ratios of its response tokens."""
    rows = []
    for i in range(len(old)):
        row = []
        for t in range(old.shape[1]):
            if response[i, t]:
                row.append(min(20.0, max(-20.0, float(old[i, t]) - float(sampler[i, t]))))
        rows.append(row)
    return rows


def k(name, d):
    return {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - 1 - d}[name]


def scattered(rows, response, fill=0.0):
    """Lists of the values of response tokens, back in their places."""
    out = np.full(response.shape, fill, np.float64)
    for i, row in enumerate(rows):
        out[i, response[i]] = row
    return out


def reference(name, old, sampler, response):
    """(weights, kept, accepted) of a preset, as spec A2 writes it down."""
    rows = log_xis(old, sampler, response)
    if name == "naive":
        return response * 1.0, response, np.ones(len(rows), bool)
    accepted = np.array([all(math.exp(d) >= 1e-4 for d in row) for row in rows])
    weights = [[min(math.exp(d), 1.5) for d in row] for row in rows]
    kept = [[True] * len(row) for row in rows]
    if name == "release":
        kept = [[0.5 <= math.exp(d) <= 1.5 for d in row] for row in rows]
        every = [w for row in weights for w in row]
        weights = [[w / (sum(every) / len(every)) for w in row] for row in weights]
    return scattered(weights, response), scattered(kept, response) > 0, accepted


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    old, sampler, response = rollouts()
    found = corrected(PRESETS[name], old, sampler, response)
    weights, kept, accepted = reference(name, old, sampler, response)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-5)
    np.testing.assert_array_equal(found.kept, kept)
    np.testing.assert_array_equal(found.accepted, accepted)
    np.testing.assert_array_equal(found.learned, kept & accepted[:, None])
    if name in ("paper", "release"):
        assert accepted.tolist() == [True, True, False] + [True] * 5
        assert (np.asarray(found.weights)[response] == np.max(found.weights)).sum() > 3  # some were cut
    assert (kept.sum() < response.sum()) == (name == "release")


@pytest.mark.parametrize("config", [
    *PRESETS.values(), MismatchConfig("sequence", 2.0, True),
    MismatchConfig("geometric", "0.9_1.1", False, "seq_sum_k1", 2),
])  # fmt: skip
def test_nothing_is_corrected_where_sampler_and_learner_agree(config):
    _, sampler, response = rollouts()
    found = corrected(config, sampler, sampler, response)
    np.testing.assert_array_equal(found.weights, response)
    np.testing.assert_array_equal(found.learned, response)
    assert found.accepted.all() and (found.factor == 1).all()


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("threshold", [1.2, "0.8_1.3", None])
@pytest.mark.parametrize("normalize", [False, True])
def test_weights(level, threshold, normalize):
    old, sampler, response = rollouts()
    found = corrected(MismatchConfig(level, threshold, normalize), old, sampler, response)
    rows = log_xis(old, sampler, response)
    if level != "token":
        rows = [[math.fsum(row) / (len(row) if level == "geometric" else 1) for _ in row] for row in rows]
    weights = [[math.exp(min(20, max(-20, d))) for d in row] for row in rows]
    if threshold == "0.8_1.3":
        weights = [[w if 0.8 <= w <= 1.3 else 0 for w in row] for row in weights]
    else:
        weights = [[min(w, threshold or 2.0) for w in row] for row in weights]
    factor = 1.0
    if normalize:
        every = [w for row in weights for w in (row if level == "token" else row[:1])]
        factor = sum(every) / len(every)
    np.testing.assert_allclose(found.weights, scattered(weights, response) / factor, rtol=1e-5)
    np.testing.assert_allclose(found.factor, factor, rtol=1e-5)
    assert found.accepted.all() and (found.kept == response).all()  # weights reject nothing


@pytest.mark.parametrize("mode", TRL_MODES)
def test_names_of_trl(mode):
    old, sampler, response = rollouts()
    level, _, what = mode.partition("_")
    rows = log_xis(old, sampler, response)
    for cap in (1.25, 3.0):
        config = MismatchConfig(mode) if cap == 3 else MismatchConfig(mode, cap)
        expected = []
        for row in rows:
            xis = [math.exp(d) for d in row] if level == "token" else [math.exp(math.fsum(row))] * len(row)
            expected.append([min(xi, cap) if what == "truncate" else xi * (xi <= cap) for xi in xis])
        found = corrected(config, old, sampler, response)
        np.testing.assert_allclose(found.weights, scattered(expected, response), rtol=1e-5)
        assert found.learned.sum() == response.sum()
    assert any(xi == cap or xi == 0 for row in expected for xi in row)


@pytest.mark.parametrize("option", RS_OPTIONS)
def test_rejection_criteria_are_those_of_verl(option):
    old, sampler, response = rollouts()
    level, _, name = option.rpartition("_")
    threshold = {"token": 0.08, "seq_sum": 0.5, "seq_mean": 0.1, "seq_max": 0.3}[level]
    low, high = -math.inf, threshold
    if name == "k1":
        threshold, low, high = "0.7_1.6", math.log(0.7), math.log(1.6)
    found = corrected(MismatchConfig(rollout_rs=option, rollout_rs_threshold=threshold), old, sampler, response)
    kept, accepted = [], []
    for row in log_xis(old, sampler, response):
        values = [k(name, d) for d in row]
        inside = [low <= value <= high for value in values]
        kept.append(inside if level == "token" else [True] * len(row))
        if level in ("token", "seq_max"):
            accepted.append(level == "token" or all(inside))
        else:
            total = math.fsum(values) / (len(row) if level == "seq_mean" and row else 1)
            accepted.append(low <= total <= high)
    np.testing.assert_array_equal(found.kept, scattered(kept, response) > 0)
    np.testing.assert_array_equal(found.accepted, accepted)
    np.testing.assert_array_equal(found.weights, response)  # rejection weighs nothing
    assert 0 < np.asarray(found.learned).sum() < response.sum()


def test_k1_bounds_the_inverse_of_xi_as_in_verl_and_the_band_bounds_xi():
    old, sampler, response = rollouts()
    find = lambda **config: np.asarray(corrected(MismatchConfig(**config), old, sampler, response).kept)
    xi = np.exp(scattered(log_xis(old, sampler, response), response))
    np.testing.assert_array_equal(
        find(rollout_rs="token_k1", rollout_rs_threshold="0.5_1.25"), response & (xi >= 0.8) & (xi <= 2)
    )
    np.testing.assert_array_equal(find(band=(0.5, 1.25)), response & (xi >= 0.5) & (xi <= 1.25))
    alone, both = (find(rollout_rs="token_k1", rollout_rs_threshold=given) for given in (1.25, "0.8_1.25"))
    np.testing.assert_array_equal(alone, both)


def test_every_criterion_must_let_a_token_pass():
    old, sampler, response = rollouts()
    find = lambda **config: np.asarray(corrected(MismatchConfig(**config), old, sampler, response).learned)
    parts = [dict(rollout_rs="token_k1", rollout_rs_threshold="0.6_1.6"), dict(band=(0.5, 1.5)), dict(tail=(0.25, 0.7)),
             dict(rollout_rs="seq_max_k3", rollout_rs_threshold=2), dict(veto=1e-3)]  # fmt: skip
    expected = np.logical_and.reduce([find(**part) for part in parts])
    both = dict(rollout_rs="token_k1, seq_max_k3", rollout_rs_threshold="0.6_1.6,2", band=(0.5, 1.5), tail=(0.25, 0.7))
    np.testing.assert_array_equal(find(**both, veto=1e-3), expected)
    assert 0 < expected.sum() < response.sum()


def test_lower_tail():
    old, sampler, response = rollouts()
    for q, least in ((0.0, 0.3), (0.1, 0.6), (0.5, 0.95)):
        found = corrected(MismatchConfig(tail=(q, least)), old, sampler, response)
        xis = [np.exp(row) for row in log_xis(old, sampler, response)]
        np.testing.assert_array_equal(found.accepted, [len(xi) == 0 or np.quantile(xi, q) >= least for xi in xis])
        assert 0 < found.accepted.sum() < len(response)
    veto = corrected(MismatchConfig(veto=0.3), old, sampler, response)
    np.testing.assert_array_equal(
        veto.accepted, corrected(MismatchConfig(tail=(0.0, 0.3)), old, sampler, response).accepted
    )


def test_quantiles_of_rows():
    rng = np.random.default_rng(1)
    values, mask = rng.normal(size=(5, 9)).astype(np.float32), rng.random((5, 9)) < 0.6
    mask[2] = False
    q = (0.0, 0.05, 0.33, 0.5, 1.0)
    expected = [np.quantile(v[m], q) if m.any() else [7.0] * 5 for v, m in zip(values, mask, strict=True)]
    np.testing.assert_allclose(masked_quantile(values, mask, q, 7.0), expected, rtol=2e-6)


EXTREMES = [(0.0, -1e4), (-1e4, 0.0), (-np.inf, -1.0), (-1.0, -np.inf), (-np.inf, -np.inf), (-3e38, 3e38)]


@pytest.mark.parametrize("config", [
    *PRESETS.values(),
    *(MismatchConfig(level, "0.5_5", True, "seq_sum_k3,token_k2,seq_max_k1", 3, tail=(0.1, 0.5))
      for level in ("token", "sequence", "geometric")),
])  # fmt: skip
def test_extreme_log_ratios_give_numbers(config):
    old, sampler, response = rollouts()
    for row, (of_old, of_sampler) in enumerate(EXTREMES):
        at = np.flatnonzero(response[row])[-1:]
        old[row, at], sampler[row, at] = of_old, of_sampler
    found = corrected(config, old, sampler, response)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    seen = jax.jit(metrics.mismatch, static_argnums=0)(config, found, old, sampler, response)
    assert not any(np.isnan(value) for value in seen.values())
    assert all(np.isfinite(value) for name, value in seen.items() if not name.endswith("_log_ppl"))
    if config.veto:  # impossible tokens are vetoed, whatever their sampler says of them
        has = [bool(response[row].any()) and not old_more for row, old_more in enumerate([1, 0, 0, 1, 0, 0])]
        np.testing.assert_array_equal(np.asarray(found.accepted)[:6], ~np.array(has) & (np.arange(6) != 2))


def test_a_broken_model_is_not_hidden():
    old, sampler, response = rollouts()
    old[0, np.flatnonzero(response[0])[0]] = np.nan
    assert np.isnan(corrected(PRESETS["paper"], old, sampler, response).weights).sum() == 1


def test_no_gradient_flows_through_a_correction():
    old, sampler, response = rollouts()
    total = lambda old, sampler: correct(PRESETS["release"], old, sampler, response).weights.sum()
    for grad in jax.grad(total, argnums=(0, 1))(old, sampler):
        np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("given, line", [
    (dict(rollout_is="tokens"), "mismatch.rollout_is is 'tokens'; it is None or one of token, sequence"),
    (dict(rollout_is="token", rollout_is_threshold=0.5), "rollout_is_threshold is 0.5; it is an upper bound"),
    (dict(rollout_is="token", rollout_is_threshold="2_1"), "rollout_is_threshold is '2_1'"),
    (dict(rollout_is="token", rollout_is_threshold="a_1"), "is 'a_1'; it is a number, or two as in 0.5_5.0"),
    (dict(rollout_is="token", rollout_is_threshold=math.nan), "rollout_is_threshold is nan"),
    (dict(rollout_is="token", rollout_is_threshold=math.inf), "rollout_is_threshold is inf"),
    (dict(rollout_is="token_truncate", rollout_is_threshold="0.5_2"), "token_truncate has an upper bound only"),
    (dict(rollout_is_threshold=2.0), "but mismatch.rollout_is is None"),
    (dict(rollout_is_batch_normalize=True), "there are no weights; set mismatch.rollout_is"),
    (dict(rollout_rs="token_k1"), "set both or neither"),
    (dict(rollout_rs_threshold=2), "set both or neither"),
    (dict(rollout_rs="token_k4", rollout_rs_threshold=2), "mismatch.rollout_rs has 'token_k4'; criteria are token_k1"),
    (dict(rollout_rs="token_k3", rollout_rs_threshold="0.1_2"), "for token_k3; it is one number above 0"),
    (dict(rollout_rs="token_k3", rollout_rs_threshold=0), "for token_k3; it is one number above 0"),
    (dict(rollout_rs="token_k1", rollout_rs_threshold="1.5_2"), "for token_k1; it is low_high"),
    (dict(rollout_rs="token_k1", rollout_rs_threshold=0.5), "for token_k1; it is low_high"),
    (dict(rollout_rs="token_k1,token_k3,seq_max_k2", rollout_rs_threshold="2,1"), "2 thresholds for 3 criteria"),
    (dict(veto=2.0), "mismatch.veto is 2.0"),
    (dict(veto=1e-10), "mismatch.veto is 1e-10; it must be above 2.1e-09 and below 1"),
    (dict(band=(1.5, 0.5)), "mismatch.band is"),
    (dict(tail=(0.1, 1.5)), "mismatch.tail is"),
])  # fmt: skip
def test_nonsense_is_refused_in_one_line(given, line):
    with pytest.raises(UserError) as error:
        MismatchConfig(**given)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_settings_read_from_a_file_are_the_same():
    listed, given = MismatchConfig(band=[0.5, 1.5], tail=[0.1, 0.5]), MismatchConfig(band=(0.5, 1.5), tail=(0.1, 0.5))
    assert listed == given and hash(listed) == hash(given)


@pytest.mark.parametrize("name", ["release", "naive"])
def test_metrics(name):
    config = PRESETS[name]
    old, sampler, response = rollouts()
    correction = corrected(config, old, sampler, response)
    found = jax.jit(metrics.mismatch, static_argnums=0)(config, correction, old, sampler, response)
    weights, kept, accepted = reference(name, old, sampler, response)
    rows = [i for i in range(len(response)) if response[i].any()]
    ds = log_xis(old, sampler, response)
    mean = lambda values: sum(values) / len(values)
    over = lambda function: mean([mean([function(d) for d in ds[i]]) for i in rows])
    own = lambda values, i: [float(v) for v in values[i][response[i]]]
    training, rollout = [-mean(own(old, i)) for i in rows], [-mean(own(sampler, i)) for i in rows]
    every, used = [d for row in ds for d in row], (weights * kept * accepted[:, None])[response]
    released = name == "release"
    expected = {
        "kl": over(lambda d: -d),
        "k3_kl": over(lambda d: math.exp(d) - d - 1),
        "logprob_abs_diff": over(abs),
        "training_log_ppl": mean(training),
        "rollout_log_ppl": mean(rollout),
        "log_ppl_diff": mean([a - b for a, b in zip(training, rollout, strict=True)]),
        "log_ppl_abs_diff": mean([abs(a - b) for a, b in zip(training, rollout, strict=True)]),
        "chi2_token": over(lambda d: math.exp(d) ** 2) - 1,
        "chi2_seq": mean([math.exp(2 * math.fsum(ds[i])) for i in rows]) - 1,
        "catastrophic_token_fraction": over(lambda d: math.exp(d) < 1e-4),
        "catastrophic_seq_fraction": 1 / len(rows),
        "weight_before_bound": over(math.exp) if released else 1,
        "weight_after_bound": mean([mean(own(weights, i)) for i in rows]),
        "truncate_fraction": over(lambda d: math.exp(d) > 1.5) if released else 0,
        "batch_norm_factor": mean([min(math.exp(d), 1.5) for d in every]) if released else 1,
        "mask_fraction_low": over(lambda d: math.exp(d) < 0.5) if released else 0,
        "mask_fraction_high": over(lambda d: math.exp(d) > 1.5) if released else 0,
        "mask_fraction": over(lambda d: not 0.5 <= math.exp(d) <= 1.5) if released else 0,
        "rejected": 1 / len(rows) if released else 0,
        "effective_sample_size": used.sum() ** 2 / (len(used) * (used**2).sum()),
        "agreement_q05": np.quantile([math.exp(-abs(d)) for d in every], 0.05),
    }
    expected |= {f"xi_q{name}": np.quantile(np.exp(every), int(name) / 100) for name in ("01", "05", "50", "95", "99")}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=2e-5, atol=1e-6, err_msg=key)


def test_metrics_of_no_response():
    old, sampler, response = rollouts()
    nothing = np.zeros_like(response)
    for config in PRESETS.values():
        found = metrics.mismatch(config, correct(config, old, sampler, nothing), old, sampler, nothing)
        ones = {name for name in found if name.startswith(("xi_", "agreement", "batch_norm"))}
        assert {name for name, value in found.items() if value == 1} == ones
        assert all(value == 0 for name, value in found.items() if name not in ones)


def test_metrics_of_responses():
    assert metrics.repetition(range(100)) == 0 and metrics.repetition([]) == 0 and metrics.repetition([1] * 8) == 0
    assert metrics.repetition([1, 2, 3] * 40, 4) == 1 - 3 / 117
    assert metrics.repetition(list(range(30)) + list(range(10)), 8) == pytest.approx(3 / 33)
    assert metrics.repetition_rate([[1] * 50, range(50), [1, 2] * 30, []]) == 0.5 and metrics.repetition_rate([]) == 0
    assert metrics.truncation_rate(["eos", "length", "stop", "capacity"]) == 0.5 and metrics.truncation_rate([]) == 0
    assert metrics.effective_sample_size(jnp.ones((2, 3)), jnp.ones((2, 3), bool)) == 1
    assert metrics.effective_sample_size(jnp.eye(4)[:1], jnp.ones((1, 4), bool)) == 0.25


REWARDS = np.array([[1, 0, 0, 1], [0.1, 0.1, 0.1, 0.1], [0, 0, 0, 1], [0.5, -1, 2, 0.25]], np.float32)


def plain_advantage(name, rewards, counted):
    out = []
    for i, reward in enumerate(rewards):
        group = [r for r, c in zip(rewards, counted, strict=True) if c]
        if not counted[i] or max(group) == min(group):
            out.append(0.0)
            continue
        mean, n = sum(group) / len(group), len(group)
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / (n - 1))
        others = [r for j, (r, c) in enumerate(zip(rewards, counted, strict=True)) if c and j != i]
        out.append({"grpo": (reward - mean) / (std + 1e-6), "dr_grpo": reward - mean,
                    "rloo": reward - sum(others) / len(others)}[name])  # fmt: skip
    return out


@pytest.mark.parametrize("name", advantages.ADVANTAGES)
def test_advantages(name):
    function = jax.jit(advantages.ADVANTAGES[name])
    counted = np.ones(REWARDS.shape, bool)
    counted[0, 2] = counted[2, 3] = counted[3, 1:] = False  # leaves row 2 without a signal, and row 3 a group of one
    for mask in (None, counted):
        every = np.ones(REWARDS.shape, bool) if mask is None else mask
        rows = [[float(r) for r in row] for row in REWARDS]
        expected = np.array([plain_advantage(name, *pair) for pair in zip(rows, every, strict=True)])
        found = np.asarray(function(REWARDS, None, mask))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
        assert (found[1] == 0).all() and np.abs(found[0]).min(where=every[0], initial=1) > 0
        # The same by a group id for each row, in any order and of any numbers.
        order = np.random.default_rng(2).permutation(REWARDS.size)
        group = np.repeat([9, 3, 0, 15], 4)[order]
        mixed = function(REWARDS.reshape(-1)[order], group, None if mask is None else mask.reshape(-1)[order])
        np.testing.assert_allclose(mixed, found.reshape(-1)[order], rtol=1e-6)
    signal = np.asarray(advantages.signal(REWARDS))
    np.testing.assert_array_equal(signal, np.broadcast_to([[1], [0], [1], [1]], REWARDS.shape))
    np.testing.assert_array_equal(np.asarray(advantages.signal(REWARDS, None, counted)).any(axis=1), [1, 0, 0, 0])
    assert (np.asarray(function(np.ones((3, 1), np.float32))) == 0).all()
    with pytest.raises(ValueError, match="groups, samples"):
        advantages.grpo(REWARDS.reshape(-1))


def test_rewards_of_length_and_format():
    lengths = np.array([0, 60, 80, 81, 90, 99, 100, 130])
    expected = [0, 0, 0, -0.05, -0.5, -0.95, -1, -1]
    np.testing.assert_allclose(advantages.overlong(lengths, 100, 20), expected, atol=1e-6)
