"""Choosing the next token: greedy, temperature, top-k, top-p; the log-prob is of the distribution sampled from.

Against the usual code nothing is sorted. The least probability that top-k or top-p lets through is found by bisection
over the bits of a float (30 passes over the vocabulary, exact; tokens as probable as the last one let through are let
through too), and the draw inverts the cumulative distribution in two levels with one uniform number per row. It
depends on the row's seed and the token's index only, so a row draws the same tokens whatever else is in the batch.

How to choose is data, row by row (`Settings`), so requests that differ share one compiled program. What no row of the
batch asks for is skipped while it runs: a batch of greedy rows pays for greedy decoding.
"""

from __future__ import annotations

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lt_jax.errors import UserError

LANES = 128  # the vocabulary is a multiple of this


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to choose. Temperature 0 is greedy; top_k 0 and top_p 1 let every token through; top-k comes first."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        number = lambda value, kind=numbers.Real: isinstance(value, kind) and not isinstance(value, bool)
        if not number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature!r}; it must be a number, 0 (greedy) or more")
        if not number(self.top_k, numbers.Integral) or self.top_k < 0:
            raise UserError(f"top_k is {self.top_k!r}; it must be a whole number, 0 (off) or more")
        if not number(self.top_p) or not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p!r}; it must be a number above 0 and at most 1")
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise UserError("top_k and top_p need a temperature above 0; at temperature 0 decoding is greedy")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """What the request of each row asks for.

    Attributes:
        temperature, top_k, top_p: [R] float32, int32, float32, as in `Sampling`.
        never: [R, N] int32, ids that must not be chosen; ids of -1 stand for none.
        stop: [R, N] int32, ids that end the row, filled up in the same way.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    never: jax.Array
    stop: jax.Array

    @property
    def truncates(self) -> jax.Array:
        """[R] bool, rows whose draw leaves tokens out."""
        return (self.temperature > 0) & ((self.top_k > 0) | (self.top_p < 1))


def settings(rows: list[tuple[Sampling, tuple[int, ...], tuple[int, ...]]], never: int, stop: int) -> Settings:
    """`Settings` of numpy arrays.

    Args:
        rows: (sampling, ids never chosen, ids that end the row) of each.
        never, stop: room for ids.
    """
    sampling, *lists = zip(*rows, strict=True)
    column = lambda name, kind: np.asarray([getattr(each, name) for each in sampling], kind)
    listed = lambda ids, room: np.asarray([(*own, *[-1] * (room - len(own))) for own in ids], np.int32)
    return Settings(
        column("temperature", np.float32), column("top_k", np.int32), column("top_p", np.float32),
        listed(lists[0], never), listed(lists[1], stop),
    )  # fmt: skip


def sample(logits: jax.Array, seeds: jax.Array, index: jax.Array, how: Settings) -> tuple[jax.Array, jax.Array]:
    """Draws one token per row.

    Args:
        logits: [R, V] float32.
        seeds: [R] uint32, each row's own seed.
        index: [R] int32, the index the token will have in its row.
        how: of R rows.

    Returns:
        tokens [R] int32 and logp [R] float32: the log-prob under the tempered and truncated distribution; for greedy,
        under the model's own (temperature 1), as a point mass would only say 0. Ids of `how.never` have no part in it.
        It is NaN exactly where there is no distribution: a logit is NaN or plus infinity, or all are minus infinity.
    """
    logits = without(logits, how.never)
    token, best = largest(logits)
    logp = -jnp.log(jnp.sum(jnp.exp(logits - best[:, None]), -1))

    def drawn():
        own, own_logp = _drawn(logits, best, seeds, index, how)
        draws = how.temperature > 0
        return jnp.where(draws, own, token), jnp.where(draws, own_logp, logp)

    return lax.cond(jnp.any(how.temperature > 0), drawn, lambda: (token, logp))


def without(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """logits [R, V] with -inf at the ids [R, N] of each row; -1 stands for none."""
    place = jnp.where(ids < 0, logits.shape[1], ids)
    return jnp.asarray(logits).at[jnp.arange(logits.shape[0])[:, None], place].set(-jnp.inf, mode="drop")


def probabilities(logits: jax.Array, best: jax.Array, how: Settings) -> jax.Array:
    """[R, V]: what each row draws from, as weights of which the largest is 1; greedy rows at temperature 1."""
    temperature = jnp.where(how.temperature > 0, how.temperature, 1.0)
    weights = jnp.exp((logits - best[:, None]) / temperature[:, None])

    def least():  # of each row, the weight below which nothing is drawn; no second array [R, V] is made for it
        most = jnp.where(how.truncates & (how.top_k > 0), how.top_k, logits.shape[1])
        first = _threshold(weights, lambda w: w > 0, most.astype(jnp.float32))
        kept = lambda w: jnp.where(w >= first[:, None], w, 0)
        share = _threshold(weights, kept, how.top_p * kept(weights).sum(-1))
        return jnp.where(how.truncates & (how.top_p < 1), jnp.maximum(first, share), first)

    zero = jnp.zeros(logits.shape[0])
    return _at_least(weights, lax.cond(jnp.any(how.truncates), least, lambda: zero))


def likeliest(logits: jax.Array, how: Settings, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` most probable ids [R, count] int32 and their log-probs, in what `sample` draws from."""
    logits = without(logits, how.never)
    weights = probabilities(logits, jnp.max(logits, -1), how)
    top, ids = lax.top_k(weights, count)
    return ids.astype(jnp.int32), jnp.log(top) - jnp.log(weights.sum(-1, keepdims=True))


def _drawn(logits, best, seeds, index, how):
    weights = probabilities(logits, best, how)
    uniform = jax.vmap(lambda seed, i: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), i)))(seeds, index)
    token = invert(weights, uniform)
    own = jnp.take_along_axis(weights, token[:, None], -1)[:, 0]
    return token, jnp.log(own) - jnp.log(weights.sum(-1))


def largest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """argmax [R] (the first of equals) and max [R] of x [R, V]; first the group, then the lane, as argmax is slow."""
    groups = x.reshape(x.shape[0], -1, LANES)
    tops = groups.max(-1)
    group = jnp.argmax(tops, -1).astype(jnp.int32)
    own = jnp.take_along_axis(groups, group[:, None, None], 1)[:, 0]
    return group * LANES + jnp.argmax(own, -1).astype(jnp.int32), tops.max(-1)


def _at_least(weights, least):
    return jnp.where(weights >= least[:, None], weights, 0)


def _threshold(weights, measure, target):
    """[R]: the largest w such that the tokens with weights >= w together measure at least `target`."""
    bits = lax.bitcast_convert_type(weights, jnp.int32)  # of non-negative floats: in the same order as the floats

    def halve(_, bounds):
        low, high = bounds  # at least `target` is at or above low, less than it at or above high
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(bits >= middle[:, None], measure(weights), 0), -1) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros(weights.shape[0], jnp.int32)
    high = jnp.max(bits, -1) + 1
    low, _ = lax.fori_loop(0, 31, halve, (low, high))
    return lax.bitcast_convert_type(low, jnp.float32)


def invert(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """[R]: the token at the point `uniform` in [0, 1) of the cumulative distribution of weights [R, V] >= 0."""
    chunks = weights.reshape(weights.shape[0], -1, LANES)
    group, rest = _find(chunks.sum(-1), uniform)
    inside = jnp.take_along_axis(chunks, group[:, None, None], 1)[:, 0]
    lane, _ = _find(inside, rest)
    return group * LANES + lane


def _find(weights, uniform):
    """The place of `uniform` in [R, N], and how far into that place it is, in [0, 1). Never a place of weight 0."""
    cumulative = jnp.cumsum(weights, -1)
    total = cumulative[:, -1]
    target = jnp.minimum(uniform * total, jnp.nextafter(total, jnp.zeros_like(total)))
    place = jnp.argmax(cumulative > target[:, None], -1).astype(jnp.int32)
    own = jnp.take_along_axis(weights, place[:, None], -1)[:, 0]
    before = jnp.take_along_axis(cumulative, place[:, None], -1)[:, 0] - own
    return place, jnp.clip((target - before) / own, 0, 1 - 2**-24)
