"""How much a key repeats the others, without an S x S array (R-KV's redundancy term)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lt_jax.cache.policies import pallas_redundancy
from lt_jax.cache.policies.keydiff import directions
from lt_jax.cache.policies.view import View, softmax

TILE = 128  # keys compared at a time


def redundancy(view: View, threshold: float = 0.5, forgive_first: bool = False) -> jax.Array:
    """softmax_j(mean_i c_ij) over the living keys, [R, Hkv, C] float32; zeros in dead slots.

    c is the cosine of two keys with zeros on the diagonal. Each key i forgives the last key that repeats it: with
    r(i) the largest j != i with c_ij > threshold, c[i, r(i)] is 0. (Where there is none, no key is forgiven, or slot 0
    if `forgive_first`.) So older copies are charged and the newest is not.

        column sums of c    sum_i c_ij = k_j . (sum_i k_i) - |k_j|^2        of unit keys, exact
        minus forgiven      sum over the i with r(i) = j of c_ij

    Only r(i) and its cosine need pairs, and they are a running maximum over tiles of keys: O(C) memory.

    Example: unit keys (1, 0), (1, 0), (0, 1). c_01 = c_10 = 1; r(0) = 1, r(1) = 0, so both cosines are forgiven and all
    means are 0: the redundancy is 1/3, 1/3, 1/3. With a third copy, keys 0, 1, 2 = (1, 0): r(0) = r(1) = 2, r(2) = 1:
    column sums 2, 2, 2 less 0, 1, 2 are 2, 1, 0.
    """
    how = dict(threshold=threshold, forgive_first=forgive_first)
    kernel, plain = (functools.partial(f, **how) for f in (pallas_redundancy.charges, charges))
    if pallas_redundancy.takes(view.k):
        total = lax.platform_dependent(view.k, view.alive, tpu=kernel, default=plain)
    else:
        total = plain(view.k, view.alive)
    count = jnp.maximum(jnp.sum(view.alive, -1, keepdims=True), 1)
    return softmax(total / count, view.alive)


def charges(k, alive, threshold: float, forgive_first: bool = False) -> jax.Array:
    """Column sums of c less what is forgiven, [R, Hkv, C] float32; anything in dead slots. On TPUs `pallas_redundancy`.

    Args:
        k: [R, Hkv, C, D] as cached, anything in slots that are not alive. alive: [R, Hkv, C] bool.
    """
    unit = directions(k, alive)
    rows, heads, slots, _ = unit.shape
    last, cosine = _last_duplicate(unit, alive, threshold)
    if forgive_first:
        first = jnp.einsum("rhcd,rhd->rhc", unit, unit[:, :, 0], precision="highest")
        first = jnp.where(jnp.arange(slots) == 0, 0, first)  # its own cosine is off the diagonal anyway
        cosine, last = jnp.where(last < 0, first, cosine), jnp.maximum(last, 0)
    total = jnp.einsum("rhcd,rhd->rhc", unit, jnp.sum(unit, 2), precision="highest") - jnp.sum(unit * unit, -1)
    row, head = jnp.arange(rows)[:, None, None], jnp.arange(heads)[:, None]
    charged = jnp.where(alive & (last >= 0), cosine, 0)
    return total.at[row, head, jnp.maximum(last, 0)].add(-charged)


def _last_duplicate(unit, alive, threshold):
    """r(i), -1 where there is none, and c[i, r(i)]: [R, Hkv, C] each. Walks over tiles of keys, later ones win."""
    slots = unit.shape[2]
    tile = min(TILE, slots)
    count = -(-slots // tile)
    pad = count * tile - slots
    padded = jnp.pad(unit, ((0, 0), (0, 0), (0, pad), (0, 0)))
    living = jnp.pad(alive, ((0, 0), (0, 0), (0, pad)))
    mine = jnp.arange(slots)[:, None]

    def step(t, carry):
        last, cosine = carry
        other = lax.dynamic_slice_in_dim(padded, t * tile, tile, 2)
        index = t * tile + jnp.arange(tile)
        pair = jnp.einsum("rhcd,rhtd->rhct", unit, other, precision="highest")
        there = lax.dynamic_slice_in_dim(living, t * tile, tile, 2)[:, :, None]
        found = jnp.where((pair > threshold) & there & (index != mine), index, -1)
        newest = jnp.max(found, -1)
        value = jnp.max(jnp.where(index == newest[..., None], pair, -2), -1)  # no gather: a TPU is slow at that
        return jnp.where(newest >= 0, newest, last), jnp.where(newest >= 0, value, cosine)

    start = jnp.full(unit.shape[:3], -1, jnp.int32), jnp.zeros(unit.shape[:3], jnp.float32)
    return lax.fori_loop(0, count, step, start)
