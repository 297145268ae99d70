"""Who stays, given the scores: written once for all policies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from lt_jax.cache import across
from lt_jax.cache.policies.config import Eviction
from lt_jax.cache.policies.view import View, recent


def protected(view: View, how: Eviction, gist: jax.Array | None = None) -> jax.Array:
    """Keys that no score can evict: the window, the sinks and the gists; with policy "full" all. [R, Hkv, C] bool.

    Args:
        gist: [R, Hkv, C] bool, keys that hold a compressed thought, or None.
    """
    if how.policy == "full":
        return view.alive
    kept = recent(view, how.window) | (view.alive & (view.birth < how.sinks))
    return kept if gist is None else kept | (gist & view.alive)


def ranked(score: jax.Array, alive: jax.Array, kept: jax.Array) -> jax.Array:
    """The slots in the order of their worth, [..., C] int32: of a budget b the first b living ones stay.

    Protected keys come first, then the others by score, then empty slots; of equals the oldest slot comes first.
    Classes are sorted as classes: no score, not even an infinite one, can pass for protected. NaN is the worst score.

        slot       0    1    2    3    4    5
        class      p    k    k    k    p    empty
        score      .2   .9   .9   .1   .5   .9          order  0 4 1 2 3 5      budget 3 keeps 0 4 1

    Args:
        score: [..., C] float32. alive, kept: [..., C] bool.
    """
    return _sorted(_grade(score, alive, kept))[1]


def stays(score: jax.Array, alive: jax.Array, kept: jax.Array, budget) -> jax.Array:
    """The keys that stay, [..., C] bool: all that are alive where they are no more than `budget` (broadcasts)."""
    grade = _grade(score, alive, kept)
    last = jnp.clip(jnp.asarray(budget), 1, grade.shape[-1])[..., None] - 1
    last = jnp.broadcast_to(last, (*grade.shape[:-1], 1))
    line, slot = (jnp.take_along_axis(x, last, -1) for x in _sorted(grade))
    return alive & ((grade < line) | ((grade == line) & (jnp.arange(grade.shape[-1]) <= slot)))


def _grade(score, alive, kept):
    """Class and score in one int32, small for the worthy: one number sorts in a third of the time of two on a TPU."""
    worth = jnp.where(jnp.isnan(score), -jnp.inf, jnp.where(score == 0, 0, score)).astype(jnp.float32)  # no -0 either
    bits = lax.bitcast_convert_type(worth, jnp.int32)
    rising = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # in the order of the numbers; only NaN would be at the ends
    ends = jnp.iinfo(jnp.int32)
    return jnp.where(alive, jnp.where(kept, ends.min, ~rising), ends.max)


def _sorted(grade):
    """The grades in order, and their slots; of equals the oldest slot first."""
    slot = jnp.broadcast_to(jnp.arange(grade.shape[-1], dtype=jnp.int32), grade.shape)
    return lax.sort((grade, slot), dimension=-1, num_keys=2)


def seats(stay: jax.Array, score: jax.Array, kept: jax.Array, order: str = "birth") -> jax.Array:
    """Where keys go: [..., C] int32, all different; keys take slots in the order of their seats, the staying first.

    "birth" keeps the order of the slots. "reference" puts the keys that were chosen by score first, best first, and the
    protected ones behind them, as the R-KV release leaves its cache.

        slot      0    1    2    3    4            birth      1 2 4 | 0 3
        stays     .    x    x    .    x (window)   reference  2 1 4 | 0 3
        score     .1   .3   .8   .2   .5
    """
    slot = jnp.broadcast_to(jnp.arange(score.shape[-1], dtype=jnp.int32), score.shape)
    if order == "birth":
        return jnp.where(stay, slot, score.shape[-1] + slot)
    grade = jnp.where(stay, jnp.where(kept, 1, 0), 2)
    worth = jnp.where(grade == 0, jnp.where(jnp.isnan(score), -jnp.inf, score), 0)
    return jnp.argsort(lax.sort((grade, -worth, slot), dimension=-1, num_keys=3)[2], -1).astype(jnp.int32)


def shared(score: jax.Array, share: str | None, axis: str | None = None) -> jax.Array:
    """Scores [L, R, Hkv, C] made common: summed over heads ("heads"), or over layers and heads ("layers").

    All who share must hold the same keys, which they do if they have shared from the start. `axis` as in `evict`.
    """
    if share is None:
        return score
    axes = (2,) if share == "heads" else (0, 2)
    return jnp.broadcast_to(across.summed(jnp.sum(score, axes, keepdims=True), axis), score.shape)
