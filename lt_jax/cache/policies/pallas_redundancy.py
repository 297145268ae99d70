"""`redundancy.charges` as a Pallas TPU kernel: the pairs of a head's keys are compared in vector memory and forgotten.

Differs from the plain form in the order of its rounding. The matrix unit multiplies the keys as they are cached, since
products of 16-bit numbers are exact in float32, and norms come in afterwards. Unit keys would have to be float32 to
decide what is above the threshold, and cost six such products. What else is summed by the matrix unit is cut into three
16-bit parts first, which together are the float32 number. (float32 keys are multiplied with precision "highest".)

    other keys j down, own keys i along: u = (k_j . k_i) / |k_j|, a duplicate where u > threshold |k_i|;
    of the 8 keys j of a register the last duplicate so far and its u are kept, one product, one comparison and two
    selections for each register of pairs; at the end the latest of the 8.

The forgiven cosines go to their keys without a scatter: r(i) = 128 a + b, and the sum over i of [a = a(i)] cosine times
[b = b(i)] is a product of two small matrices.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
STRAIGHT = 8  # up to so many tiles the loops over them are written out, so that one tile's products hide another's
MEMORY = 12 * 2**20  # bytes of vector memory for a head
NORM = 1e-8  # added to norms, as `keydiff.directions` does
WITHIN, ACROSS, OUTER = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))  # a b, a b^T, a^T b


def takes(k: jax.Array) -> bool:
    """Whether there is a kernel for these keys: bfloat16 or float32, and a head that fits the vector memory."""
    slots, size = k.shape[2:]
    bytes_ = slots * (2 * -(-size // LANES) * LANES * k.dtype.itemsize + LANES * 4)
    return k.dtype in (jnp.bfloat16, jnp.float32) and bytes_ <= MEMORY


def charges(k, alive, threshold: float, forgive_first: bool = False, *, interpret: bool = False) -> jax.Array:
    """See `redundancy.charges`.

    Args:
        interpret: run on any platform, slowly, for tests.
    """
    rows, heads, slots, size = k.shape
    short = -slots % LANES
    k, alive = jnp.pad(k, ((0, 0), (0, 0), (0, short), (0, 0))), jnp.pad(alive, ((0, 0), (0, 0), (0, short)))
    square = jnp.sum(jnp.square(k.astype(jnp.float32)), -1)
    inverse = jnp.where(alive, 1 / (jnp.sqrt(jnp.where(alive, square, 0)) + NORM), jnp.nan)
    whole = slots + short
    line = pl.BlockSpec((1, heads, whole), lambda r, h: (r, 0, 0))  # of all heads: one would have a layout of its own
    found = pl.pallas_call(
        functools.partial(_kernel, threshold=threshold, forgive_first=forgive_first),
        grid=(rows, heads),
        in_specs=[line, pl.BlockSpec((1, 1, whole, size), lambda r, h: (r, h, 0, 0))],
        out_specs=line,
        out_shape=jax.ShapeDtypeStruct(inverse.shape, jnp.float32),
        scratch_shapes=[
            pltpu.VMEM((whole, LANES), jnp.float32),
            pltpu.VMEM((1, whole), jnp.int32),
            pltpu.VMEM((1, whole), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=2 * MEMORY
        ),
        interpret=interpret,
        name="lt_redundancy",
    )(inverse, k)
    return found[..., :slots]


def _kernel(inverse, k, out, spread, last, cosine, *, threshold, forgive_first):
    """One head: its lines of inverse [1, Hkv, C], NaN in dead slots, and of out [1, Hkv, C]; k [1, 1, C, D].

    spread [C, 128]: the inverse norm of each key in all lanes. last, cosine [1, C]: r(i) and c[i, r(i)].
    """
    own = pl.ds(pl.program_id(1), 1)
    inverse, k, out = inverse.at[0, own], k.at[0, 0], out.at[0, own]
    tiles = k.shape[0] // LANES
    total = _each(tiles, functools.partial(_direction, inverse, k, spread), jnp.zeros((8, k.shape[1]), jnp.float32))
    total = jnp.sum(total, 0, keepdims=True)
    _each(tiles, functools.partial(_compare, inverse, k, spread, out, last, cosine, total, threshold, forgive_first), 0)
    groups = -(-tiles // 8) * 8
    start = jnp.zeros((groups, LANES), jnp.float32)
    forgiven = _each(tiles, functools.partial(_forgive, last, cosine), start)
    for t in range(tiles):
        out[:, _at(t)] -= forgiven[t : t + 1]


def _each(tiles, body, carry):
    """carry = body(t, carry) for every tile; t is a number where the loop is written out."""
    if tiles > STRAIGHT:
        return lax.fori_loop(0, tiles, body, carry)
    for t in range(tiles):
        carry = body(t, carry)
    return carry


def _at(t):
    """The slots of tile t."""
    return slice(t * LANES, (t + 1) * LANES) if isinstance(t, int) else pl.ds(pl.multiple_of(t * LANES, LANES), LANES)


def _direction(inverse, k, spread, t, total):
    """Puts the inverse norms of tile t down its rows, and adds its unit keys to `total` [8, D], one of 8 to a line."""
    row, line = (lax.broadcasted_iota(jnp.int32, (LANES, LANES), axis) for axis in (0, 1))
    column = jnp.sum(jnp.where(row == line, inverse[:, _at(t)], 0.0), 1, keepdims=True)
    spread[_at(t), :] = jnp.broadcast_to(column, (LANES, LANES))
    unit = jnp.where(column > 0, k[_at(t), :].astype(jnp.float32) * column, 0.0)  # NaN is not above 0
    return sum((unit[i : i + 8] for i in range(0, LANES, 8)), total)


def _compare(inverse, k, spread, out, last, cosine, total, threshold, forgive_first, t, _):
    """The last duplicate of each key of tile t, and the sum of its cosines with all others."""
    own, norm = k[_at(t), :], inverse[:, _at(t)]
    # |k_i| / (|k_i| + NORM), squared, is the cosine of a key with itself.
    out[:, _at(t)] = _sum_product(total, own, ACROSS) * norm - jnp.square(1 - NORM * norm)
    pairs = _product(k[...], own, ACROSS)
    bar = jnp.broadcast_to(threshold / norm, (8, LANES))
    row, lane = (lax.broadcasted_iota(jnp.int32, (8, LANES), axis) for axis in (0, 1))
    newest, value = jnp.full((8, LANES), -8, jnp.int32), jnp.zeros((8, LANES), jnp.float32)
    for j in range(0, k.shape[0], 8):
        u = pairs[j : j + 8] * spread[j : j + 8, :]
        found = u > bar
        if not isinstance(t, int) or j // LANES == t:
            found &= row + (j - t * LANES) != lane  # not the key itself
        newest, value = jnp.where(found, j, newest), jnp.where(found, u, value)
    newest = newest + row
    latest = jnp.max(newest, 0, keepdims=True)
    value = jnp.sum(jnp.where(newest == latest, value, 0.0), 0, keepdims=True)
    if forgive_first:
        first = pairs[:1] * spread[:1, :]
        itself = lane[:1] + t * LANES == 0
        value = jnp.where(latest < 0, jnp.where(itself | jnp.isnan(first), 0.0, first), value)
        latest = jnp.maximum(latest, 0)
    charged = (latest >= 0) & (norm > 0)
    last[:, _at(t)] = jnp.where(charged, latest, -1)
    cosine[:, _at(t)] = jnp.where(charged, value * norm, 0.0)
    return 0


def _forgive(last, cosine, t, forgiven):
    """Adds the cosines of the keys of tile t to those they forgive: forgiven [tiles or more, 128], a tile to a line."""
    key = last[:, _at(t)]
    place = (key & (LANES - 1)).astype(jnp.float32).astype(jnp.bfloat16)  # exact
    place = _product(place, jnp.ones((1, LANES), jnp.bfloat16), OUTER)  # b(i) in all lanes of line i
    lane = lax.broadcasted_iota(jnp.int32, (LANES, LANES), 1).astype(jnp.float32)
    hit = jnp.where(place == lane, 1.0, 0.0).astype(jnp.bfloat16)
    tile = lax.broadcasted_iota(jnp.int32, forgiven.shape, 0)
    charge = jnp.where(tile == key >> 7, cosine[:, _at(t)], 0.0)  # -1 stands for no key and is in no tile
    return forgiven + _sum_product(charge, hit, WITHIN)


def _product(a, b, dims):
    precision = "highest" if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (dims, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _sum_product(a, b, dims):
    """The product of float32 a with b as exact as float32 is, in one pass where b is of 16 bits."""
    if b.dtype == jnp.float32:
        return _product(a, b, dims)
    high = a.astype(jnp.bfloat16)
    rest = a - high.astype(jnp.float32)
    middle = rest.astype(jnp.bfloat16)
    low = (rest - middle.astype(jnp.float32)).astype(jnp.bfloat16)
    n = a.shape[0]
    parts = _product(jnp.concatenate([high, middle, low], 0), b, dims)
    return parts[:n] + parts[n : 2 * n] + parts[2 * n :]
