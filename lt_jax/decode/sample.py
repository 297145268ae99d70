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
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lt_jax.cache import across
from lt_jax.errors import UserError

ROWS = 64  # whose least weights are looked for at a time: it takes an array as large as their logits
LANES = 128  # the vocabulary (on a mesh, a device's part of it) is a multiple of this


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


def sample(
    logits: jax.Array, barred: jax.Array, seeds: jax.Array, index: jax.Array, how: Settings, axis: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Draws one token per row.

    Args:
        logits: [R, V] float32; on a mesh this device's part of the vocabulary, and so of `barred`.
        barred: [R, V] bool, see `listed_in`.
        seeds: [R] uint32, each row's own seed.
        index: [R] int32, the index the token will have in its row.
        how: of R rows.
        axis: that cuts the vocabulary, see `cache.across`.

    Returns:
        tokens [R] int32 and logp [R] float32: the log-prob under the tempered and truncated distribution; for greedy,
        under the model's own (temperature 1), as a point mass would only say 0. Barred ids have no part in it.
        It is NaN exactly where there is no distribution: a logit is NaN or plus infinity, or all are minus infinity.
    """
    token, best = largest(allowed(logits, barred), axis)
    logp = -jnp.log(across.summed(jnp.sum(jnp.exp(allowed(logits, barred) - best[:, None]), -1), axis))

    def drawn():
        own, own_logp = _drawn(logits, barred, best, seeds, index, how, axis)
        draws = how.temperature > 0
        return jnp.where(draws, own, token), jnp.where(draws, own_logp, logp)

    return lax.cond(jnp.any(how.temperature > 0), drawn, lambda: (token, logp))


def listed_in(ids: jax.Array, columns: int, axis: str | None = None) -> jax.Array:
    """Which ids of the vocabulary (on a mesh, of this device's part) are in the lists `ids` [R, N]: [R, columns] bool.

    A byte for each logit, made once for a request and looked at wherever logits are, costs a fraction of a second array
    of logits, in memory as in time.
    """
    own = ids - across.number(axis) * columns
    place = jnp.where((ids >= 0) & (own >= 0) & (own < columns), own, columns)
    return jnp.zeros((len(ids), columns), bool).at[jnp.arange(len(ids))[:, None], place].set(True, mode="drop")


def allowed(logits: jax.Array, barred: jax.Array) -> jax.Array:
    """logits [R, V] with -inf for what must not be chosen."""
    return jnp.where(barred, -jnp.inf, logits)


def weights(logits: jax.Array, barred: jax.Array, best: jax.Array, how: Settings, least=0.0) -> jax.Array:
    """[R, N] for logits [R, N] of any ids: what each row draws from, relative to the most probable id, whose logit is
    `best` [R]; greedy rows at temperature 1. 0 for what is barred or below `least` [R].

    Computed anew wherever it is needed, not kept: for the whole vocabulary it is as large as the logits.
    """
    temperature = jnp.where(how.temperature > 0, how.temperature, 1.0)
    found = jnp.exp((allowed(logits, barred) - best[:, None]) / temperature[:, None])
    return jnp.where(found >= jnp.reshape(least, (-1, 1)), found, 0)


def least_weight(logits, barred, best: jax.Array, how: Settings, axis: str | None = None) -> jax.Array:
    """[R]: of each row, the weight below which nothing is drawn; 0 where it takes all."""

    def of(rows):
        logits, barred, best, how = rows
        whole = weights(logits, barred, best, how)
        most = jnp.where(how.truncates & (how.top_k > 0), how.top_k, whole.shape[1] * across.count(axis))
        first = _threshold(whole, lambda w: w > 0, most.astype(jnp.float32), axis)
        kept = lambda w: jnp.where(w >= first[:, None], w, 0)
        share = _threshold(whole, kept, how.top_p * across.summed(kept(whole).sum(-1), axis), axis)
        return jnp.where(how.truncates & (how.top_p < 1), jnp.maximum(first, share), first)

    def least():
        count = len(logits) // ROWS if len(logits) % ROWS == 0 else 1
        apart = jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), (logits, barred, best, how))
        return lax.map(of, apart).reshape(-1)

    return lax.cond(jnp.any(how.truncates), least, lambda: jnp.zeros(logits.shape[0]))


def likeliest(logits, barred, how: Settings, count: int, axis: str | None = None) -> tuple[jax.Array, jax.Array]:
    """The `count` most probable ids [R, count] int32 and their log-probs, in what `sample` draws from."""
    best = across.largest(jnp.max(allowed(logits, barred), -1), axis)
    found = weights(logits, barred, best, how, least_weight(logits, barred, best, how, axis))
    top, ids = lax.top_k(found, count)
    total = across.summed(found.sum(-1, keepdims=True), axis)
    if axis is not None:
        rows = lambda x: jnp.moveaxis(across.gathered(x, axis), 0, 1).reshape(len(x), -1)
        top, ids = rows(top), rows(ids + across.number(axis) * logits.shape[1])
        top, place = lax.top_k(top, count)
        ids = jnp.take_along_axis(ids, place, 1)
    return ids.astype(jnp.int32), jnp.log(top) - jnp.log(total)


def _drawn(logits, barred, best, seeds, index, how, axis):
    least = least_weight(logits, barred, best, how, axis)
    groups = lambda x: x.reshape(len(x), -1, LANES)
    inside = lambda group: weights(*(_pick(groups(x), group) for x in (logits, barred)), best, how, least)
    sums = groups(weights(logits, barred, best, how, least)).sum(-1)
    uniform = jax.vmap(lambda seed, i: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), i)))(seeds, index)
    token, own = invert(sums, inside, uniform, axis)
    return token, jnp.log(own) - jnp.log(across.summed(sums.sum(-1), axis))


def largest(x: jax.Array, axis: str | None = None) -> tuple[jax.Array, jax.Array]:
    """argmax [R] (the first of equals) and max [R] of x [R, V]; first the group, then the lane, as argmax is slow."""
    groups = x.reshape(x.shape[0], -1, LANES)
    tops = groups.max(-1)
    group = jnp.argmax(tops, -1).astype(jnp.int32)
    own = _pick(groups, group)
    place, top = group * LANES + jnp.argmax(own, -1).astype(jnp.int32), tops.max(-1)
    if axis is None:
        return place, top
    tops, places = across.gathered(top, axis), across.gathered(place + across.number(axis) * x.shape[1], axis)
    return jnp.take_along_axis(places, jnp.argmax(tops, 0)[None], 0)[0], tops.max(0)


def _threshold(found, measure, target, axis):
    """[R]: the largest w such that the tokens with weights >= w together measure at least `target`."""
    bits = lax.bitcast_convert_type(found, jnp.int32)  # of non-negative floats: in the same order as the floats

    def halve(_, bounds):
        low, high = bounds  # at least `target` is at or above low, less than it at or above high
        middle = low + (high - low) // 2
        part = jnp.sum(jnp.where(bits >= middle[:, None], measure(found), 0), -1)
        enough = across.summed(part, axis) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros(found.shape[0], jnp.int32)
    high = across.largest(jnp.max(bits, -1), axis) + 1
    low, _ = lax.fori_loop(0, 31, halve, (low, high))
    return lax.bitcast_convert_type(low, jnp.float32)


def invert(sums: jax.Array, inside: Callable, uniform: jax.Array, axis: str | None = None):
    """The token [R] at the point `uniform` in [0, 1) of the cumulative distribution, and its weight [R].

    Args:
        sums: [R, G], the weights of each `LANES` ids together, 0 or more.
        inside: group [R] -> their weights one by one, [R, LANES].
    """
    if axis is not None:
        device, uniform = _find(across.gathered(sums.sum(1), axis).T, uniform)
    group, rest = _find(sums, uniform)
    found = inside(group)
    lane, _ = _find(found, rest)
    token, own = group * LANES + lane, _pick(found, lane)
    if axis is None:
        return token, own
    here = device == across.number(axis)
    mine = lambda x: across.summed(jnp.where(here, x, 0), axis)
    return mine(token + across.number(axis) * sums.shape[1] * LANES), mine(own)


def _pick(x: jax.Array, place: jax.Array) -> jax.Array:
    """x [R, N, ...] at place [R]: [R, ...]."""
    return jnp.take_along_axis(x, place.reshape(-1, *[1] * (x.ndim - 1)), 1)[:, 0]


def _find(weights, uniform):
    """The place of `uniform` in [R, N], and how far into that place it is, in [0, 1). Never a place of weight 0."""
    cumulative = jnp.cumsum(weights, -1)
    total = cumulative[:, -1]
    target = jnp.minimum(uniform * total, jnp.nextafter(total, jnp.zeros_like(total)))
    place = jnp.argmax(cumulative > target[:, None], -1).astype(jnp.int32)
    own = jnp.take_along_axis(weights, place[:, None], -1)[:, 0]
    before = jnp.take_along_axis(cumulative, place[:, None], -1)[:, 0] - own
    return place, jnp.clip((target - before) / own, 0, 1 - 2**-24)
