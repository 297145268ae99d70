"""What is watched: how far sampler and learner are apart, what the correction did, what the update did.

What differs: names and definitions of `mismatch` are the release's (slime's `mis.py`): a mean over the tokens of each
response, then over responses, before anything is rejected. The release counts accepted sequences under the name of the
rejected ones; here `rejected` are the rejected. Log-ratios are cut to +-20, so that every number is finite (but the
perplexities, where a token is impossible). Not in the release: effective sample size, share of rejected responses,
quantiles, agreement, repetition and truncation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.rl.mismatch import ESTIMATES, Correction, log_ratio, masked_quantile, ratio
from lt_jax.rl.mismatch_config import MismatchConfig, weight_bounds

CATASTROPHIC = 1e-4  # xi below which a token is one, whether or not it is vetoed
QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
CUT_OFF = ("length", "capacity", "positions")


def mismatch(
    config: MismatchConfig, correction: Correction, logp_old: jax.Array, logp_sampler: jax.Array, response: jax.Array
) -> dict:
    """Metrics of a whole batch, float32 scalars on the device; arguments as of `mismatch.correct`, and what it made.

    With d = log xi = log pi_old - log pi_sampler of a token:

    kl, k3_kl: estimates of KL(sampler || old), -d and exp(d) - d - 1; logprob_abs_diff: |d|.
    training_log_ppl, rollout_log_ppl, log_ppl_diff, log_ppl_abs_diff: minus the mean log-prob of a response by the old
        policy and by the sampler; the first minus the second.
    chi2_token, chi2_seq: mean of xi^2, minus 1; exp(2 sum of d) - 1.
    catastrophic_token_fraction, catastrophic_seq_fraction: tokens with xi < 1e-4; responses that have one.
    weight_before_bound, weight_after_bound: mean weight as it was, and as it is used, normalisation included.
    truncate_fraction: tokens whose weight is above the upper bound; batch_norm_factor: what weights were divided by.
    mask_fraction_low, mask_fraction_high, mask_fraction: tokens below and above the band; not kept by any criterion.
    rejected: share of responses. effective_sample_size: (sum w)^2 / (n sum w^2) over n response tokens with w = 0 where
        rejected, from 0 to 1.
    xi_q01 ... xi_q99: quantiles over all response tokens. agreement_q05: 5th percentile of min(xi, 1 / xi), which is 1
        where both say the same. (Sparrow measures it over the whole distribution; this is by the sampled token alone.)

    Without response tokens xi and agreement are 1 and all else is 0.
    """
    response = jnp.asarray(response, bool)
    d = log_ratio(logp_old, logp_sampler, response)
    xi = jnp.exp(d)
    given = jnp.any(response, axis=-1)
    number = jnp.maximum(jnp.sum(given), 1)
    over_rows = lambda x: jnp.sum(jnp.where(given, x, 0)) / number
    length = jnp.maximum(jnp.sum(response, axis=-1), 1)
    per_row = lambda x: jnp.sum(jnp.where(response, x, 0), axis=-1) / length
    mean = lambda x: over_rows(per_row(x))
    bounds, band = weight_bounds(config), config.band
    raw = response.astype(jnp.float32) if bounds is None else ratio(bounds.level, d, response)
    catastrophic = response & (d < math.log(CATASTROPHIC))
    used = jnp.where(correction.learned, correction.weights, 0.0)
    difference = per_row(-d)
    found = {
        "kl": mean(ESTIMATES["k1"](d)),
        "k3_kl": mean(ESTIMATES["k3"](d)),
        "logprob_abs_diff": mean(jnp.abs(d)),
        "training_log_ppl": mean(-logp_old),
        "rollout_log_ppl": mean(-logp_sampler),
        "log_ppl_diff": over_rows(difference),
        "log_ppl_abs_diff": over_rows(jnp.abs(difference)),
        "chi2_token": over_rows(per_row(xi**2) - 1),
        "chi2_seq": over_rows(ratio("sequence", d, response).max(axis=-1) ** 2 - 1),
        "catastrophic_token_fraction": mean(catastrophic),
        "catastrophic_seq_fraction": over_rows(jnp.any(catastrophic, axis=-1)),
        "weight_before_bound": mean(raw),
        "weight_after_bound": mean(correction.weights),
        "truncate_fraction": jnp.zeros(()) if bounds is None else mean(raw > bounds.high),
        "batch_norm_factor": correction.factor[0],
        "mask_fraction_low": jnp.zeros(()) if band is None else mean(xi < band[0]),
        "mask_fraction_high": jnp.zeros(()) if band is None else mean(xi > band[1]),
        "mask_fraction": mean(~correction.kept),
        "rejected": over_rows(~correction.accepted),
        "effective_sample_size": effective_sample_size(used, response),
        "agreement_q05": _quantiles(jnp.exp(-jnp.abs(d)), response, (0.05,))[0],
    }
    names = [f"xi_q{round(100 * q):02}" for q in QUANTILES]
    return found | dict(zip(names, _quantiles(xi, response, QUANTILES), strict=True))


def effective_sample_size(weights: jax.Array, response: jax.Array) -> jax.Array:
    """Kish's (sum w)^2 / (n sum w^2) over the n tokens of `response`: how large a share of them equal weights would be.

    0 if all weights are.
    """
    weights = jnp.where(response, weights, 0.0)
    square = jnp.sum(weights**2) * jnp.sum(response)
    return jnp.sum(weights) ** 2 / jnp.where(square > 0, square, 1.0)


def update(sums: dict) -> dict:
    """Metrics of an update from the added-up sums of `losses.policy_loss`: parts, and means over tokens learned from.

    policy_loss, kl_loss and entropy_loss add up to the loss. clip_fraction: tokens through which no gradient flows.
    """
    tokens = jnp.maximum(sums["tokens"], 1)
    parts = {f"{name}_loss": sums[name] for name in ("policy", "kl", "entropy", "dense_kl") if name in sums}
    means = {name[4:]: sums[name] / tokens for name in sums if name.startswith("sum_")}
    return parts | means | {"clip_fraction": sums["clipped"] / tokens, "tokens": sums["tokens"]}


def repetition(tokens: Sequence[int], n: int = 8) -> float:
    """The share of a response's n-grams that were in it before: 0 for what never repeats, near 1 for endless loops."""
    tokens = np.asarray(tokens)
    if len(tokens) <= n:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(tokens, n)
    return 1.0 - len(np.unique(grams, axis=0)) / len(grams)


def repetition_rate(responses: Sequence[Sequence[int]], n: int = 8, share: float = 0.5) -> float:
    """The share of responses of which more than `share` is repetition; on the host."""
    return sum(repetition(tokens, n) > share for tokens in responses) / max(len(responses), 1)


def truncation_rate(finishes: Sequence[str]) -> float:
    """The share of responses that were cut off at a limit, given each one's `Completion.finish`; on the host."""
    return sum(finish in CUT_OFF for finish in finishes) / max(len(finishes), 1)


def _quantiles(values: jax.Array, response: jax.Array, q: tuple[float, ...]) -> jax.Array:
    """Over all response tokens of the batch, [len(q)]; 1 if there are none."""
    return masked_quantile(values.reshape(-1), response.reshape(-1), q, 1.0)
