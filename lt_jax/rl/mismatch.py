"""Weights and rejection of sampled tokens, from xi = pi_old / pi_sampler: the dense policy over the sparse sampler.

What differs: paper and release have one combination each, `mismatch_config.PRESETS`; here weights and rejection are two
independent families, as in verl. The release normalises weights over a microbatch, so that its gradient depends on how
a batch was cut; here it is over whatever is given, which is to be the whole batch of an optimizer step. The log-ratio
of each token is cut to +-20 before anything is made of it, sums over a response included (verl and slime cut these
after summing), and a token that the old policy cannot say at all has the lowest. No gradient flows to anything here.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from lt_jax.rl.mismatch_config import BOUND, Criterion, MismatchConfig, criteria, weight_bounds

# Of the log-ratio d = log p - log q, estimates of KL(q || p) for samples of q: http://joschu.net/blog/kl-approx.html
ESTIMATES = {
    "k1": lambda d: -d,
    "k2": lambda d: 0.5 * d**2,
    "k3": lambda d: jnp.expm1(d) - d,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Correction:
    """What is made of the mismatch of a batch. Every leaf has the rows first, so that it is cut as a batch is.

    Attributes:
        weights: [B, S] float32, 0 outside of responses; a rejected token has one too.
        kept: [B, S] bool, tokens of responses that no criterion for single tokens drops.
        accepted: [B] bool, rows that no criterion for whole responses drops. Rows without a response are accepted.
        factor: [B] float32, what weights were divided by, the same in all rows; 1 without batch normalisation.
    """

    weights: jax.Array
    kept: jax.Array
    accepted: jax.Array
    factor: jax.Array

    @property
    def learned(self) -> jax.Array:
        """[B, S] bool: the tokens that are learned from."""
        return self.kept & self.accepted[:, None]


def correct(config: MismatchConfig, logp_old: jax.Array, logp_sampler: jax.Array, response: jax.Array) -> Correction:
    """Weights and rejection of a batch.

    Args:
        logp_old: [B, S], of each token, by the policy that learns, before the update, as it sees the tokens.
        logp_sampler: [B, S], by the policy that sampled, as it saw them.
        response: [B, S] bool, which tokens were sampled. What log-probs say elsewhere means nothing and is not read.
    """
    response = jnp.asarray(response, bool)
    d = jax.lax.stop_gradient(log_ratio(logp_old, logp_sampler, response))
    kept, accepted = rejection(config, d, response)
    bounds = weight_bounds(config)
    weights, factor = response.astype(jnp.float32), jnp.ones(())
    if bounds is not None:
        raw = ratio(bounds.level, d, response)
        weights = jnp.minimum(raw, bounds.high)
        if bounds.zero:
            weights = jnp.where((raw >= bounds.low) & (raw <= bounds.high), raw, 0.0)
        if config.rollout_is_batch_normalize:
            mean = mean_weight(bounds.level, weights, response)
            factor = jnp.where(mean > 1e-8, mean, 1.0)  # the release's guard
        weights = weights / factor
    return Correction(weights, kept, accepted, jnp.broadcast_to(factor, accepted.shape))


def log_ratio(logp: jax.Array, other: jax.Array, mask: jax.Array) -> jax.Array:
    """log p - log q cut to +-20, [B, S] float32, and 0 where `mask` is False; gradients flow within the bounds.

    -20 where log p is -inf, whatever log q is. NaN stays NaN: it is a broken model's, and must not be hidden.
    """
    logp, other = jnp.asarray(logp, jnp.float32), jnp.asarray(other, jnp.float32)
    difference = jnp.where(logp == -jnp.inf, -BOUND, logp - other)
    return jnp.where(mask, jnp.clip(difference, -BOUND, BOUND), 0.0)


def ratio(level: str, d: jax.Array, response: jax.Array) -> jax.Array:
    """Weights before bounds, [B, S], 0 outside of responses: xi, or of each response their product or geometric mean.

    Args:
        level: "token", "sequence" or "geometric".
        d: [B, S] log xi, 0 outside of responses.
    """
    if level != "token":
        d = jnp.sum(d, axis=-1, keepdims=True) / (_lengths(response)[:, None] if level == "geometric" else 1)
    return jnp.where(response, jnp.exp(jnp.clip(d, -BOUND, BOUND)), 0.0)


def mean_weight(level: str, weights: jax.Array, response: jax.Array) -> jax.Array:
    """Scalar: over all tokens of responses; over responses that have tokens, where each has one weight."""
    if level == "token":
        return jnp.sum(weights) / jnp.maximum(jnp.sum(response), 1)
    each = jnp.sum(weights, axis=-1) / _lengths(response)
    return jnp.sum(each) / jnp.maximum(jnp.sum(jnp.any(response, axis=-1)), 1)


def rejection(config: MismatchConfig, d: jax.Array, response: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(kept [B, S], accepted [B]), see `Correction`; `d` is log xi, 0 outside of responses."""
    kept, accepted = response, jnp.ones(response.shape[:1], bool)
    for criterion in criteria(config):
        passed = passes(criterion, d, response)
        if criterion.level == "token":
            kept = kept & passed
        else:
            accepted = accepted & passed
    if config.veto is not None:
        accepted = accepted & ~jnp.any(response & (d < math.log(config.veto)), axis=-1)
    if config.band is not None:
        xi = jnp.exp(d)
        kept = kept & (xi >= config.band[0]) & (xi <= config.band[1])
    if config.tail is not None:
        q, least = config.tail
        accepted = accepted & (masked_quantile(jnp.exp(d), response, (q,), 1.0)[..., 0] >= least)
    return kept, accepted


def passes(criterion: Criterion, d: jax.Array, response: jax.Array) -> jax.Array:
    """Whether tokens [B, S], or at any other level rows [B], meet a criterion of `rollout_rs`."""
    values = ESTIMATES[criterion.estimator](d)
    if criterion.level in ("seq_sum", "seq_mean"):
        values = jnp.sum(values, axis=-1, where=response)
        if criterion.level == "seq_mean":
            values = values / _lengths(response)
        # A row without a response has a sum of 0, which bounds of 1 / xi need not hold: nothing speaks against it.
        return (values >= criterion.low) & (values <= criterion.high) | ~jnp.any(response, axis=-1)
    inside = (values >= criterion.low) & (values <= criterion.high)
    return inside if criterion.level == "token" else jnp.all(inside | ~response, axis=-1)


def masked_quantile(values: jax.Array, mask: jax.Array, q: tuple[float, ...], empty: float) -> jax.Array:
    """Quantiles, with linear interpolation, of the values of each row that `mask` names: [..., S] -> [..., len(q)].

    Args:
        q: which, from 0 to 1.
        empty: what a row has for which it names none.
    """
    number = jnp.sum(mask, axis=-1, keepdims=True)
    ordered = jnp.sort(jnp.where(mask, values, jnp.where(number > 0, jnp.inf, empty)), axis=-1)
    place = jnp.asarray(q, jnp.float32) * jnp.maximum(number - 1, 0)
    at = lambda index: jnp.take_along_axis(ordered, index.astype(jnp.int32), axis=-1)
    low, high = at(jnp.floor(place)), at(jnp.ceil(place))
    return low + (high - low) * (place - jnp.floor(place))


def _lengths(response: jax.Array) -> jax.Array:
    """[B] float32, tokens of each response, at least 1 so that it can be divided by."""
    return jnp.maximum(jnp.sum(response, axis=-1), 1).astype(jnp.float32)
