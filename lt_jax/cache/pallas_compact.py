"""`kv_cache.moved` as a Pallas TPU kernel: the keys and values of a head change their slots in one pass, in place.

XLA gathers rows of 16-bit numbers one by one, keys and values apart, eleven instructions each, into a copy of the rows
that it then writes back. Here a head's keys and values come into vector memory once. There key and value of a slot are
put into one row of 32-bit words, so that one row is one load and one store for both, two instructions; then they are
taken apart again and go back to where they came from. What bounds the kernel are those instructions or the memory,
whichever is slower (`benchmarks/tpu_cache.py`).

Any order will do, not only one that keeps keys in order of birth. A row that is not named is not touched.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

CHUNK = 64  # slots that are moved before the next are looked at; divides every capacity
MEMORY = 12 * 2**20  # bytes of vector memory for the blocks of one step, both copies of each
LOW, HIGH = 0xFFFF, -0x10000  # the halves of a word


def takes(k: jax.Array) -> bool:
    """Whether there is a kernel for these keys: 16 or 32 bits, and a head that fits the vector memory of a TPU."""
    heads, slots, size = k.shape[2:]
    return k.dtype in (jnp.bfloat16, jnp.float16, jnp.float32) and slots % CHUNK == 0 and _together(k) is not None


def moved(k, v, order, count, rows=None, *, interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """See `kv_cache.moved`; the slots behind `count` keep what they had or get what `order` says.

    Args:
        interpret: run on any platform, slowly, for tests.
    """
    layers, batch, heads, slots, size = k.shape
    rows = jnp.arange(batch, dtype=jnp.int32) if rows is None else rows
    own_layer, _, own_head, _ = order.shape
    together = _together(k)
    step = together if own_head > 1 else 1  # heads whose own order a step needs
    of = lambda own, i: i if own > 1 else 0
    # One line for each row: a block in scalar memory has to be whole lines.
    lines = order.reshape(own_layer, -1, 1, own_head * slots)
    counts = count.reshape(own_layer, -1, 1, own_head)
    scalars = functools.partial(pl.BlockSpec, memory_space=pltpu.SMEM)
    keys = pl.BlockSpec((1, 1, together, slots, size), lambda l, r, h, rows: (l, rows[r], h, 0, 0))
    kernel = functools.partial(_kernel, heads=together, own=own_head > 1, unroll=not interpret)
    words = [] if k.dtype.itemsize == 4 else [pltpu.VMEM((slots, size), jnp.int32)] * 2
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(layers, rows.shape[0], heads // together),
            in_specs=[
                scalars((1, 1, 1, step * slots), lambda l, r, h, rows: (of(own_layer, l), r, 0, of(own_head, h))),
                scalars((1, 1, 1, own_head), lambda l, r, h, rows: (of(own_layer, l), r, 0, 0)),
                keys,
                keys,
            ],
            out_specs=[keys, keys],
            scratch_shapes=words,
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        input_output_aliases={3: 0, 4: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3, vmem_limit_bytes=2 * MEMORY),
        interpret=interpret,
        name="lt_compact",
    )(rows, lines, counts, k, v)


def _together(k) -> int | None:
    """Heads of one step: as many as the memory takes, where their slots make whole lines of 128; None if not one."""
    heads, slots, size = k.shape[2:]
    bytes_ = 8 * slots * -(-size // 128) * 128 * k.dtype.itemsize  # keys and values, in and out, two copies of each
    fits = lambda n: heads % n == 0 and n * bytes_ <= MEMORY and (n == heads or n * slots % 128 == 0)
    return next((n for n in range(heads, 0, -1) if fits(n)), None)


def _kernel(rows, order, count, k, v, new_k, new_v, *scratch, heads, own, unroll):
    """One layer of one row: k, v and new_k, new_v are blocks [1, 1, heads, C, D]."""
    del rows  # the index maps have read them
    slots, first = k.shape[3], pl.program_id(2) * heads

    def head(h, _):
        blocks = [x.at[0, 0, h] for x in (k, v, new_k, new_v)]
        begins = h * slots if own else 0
        place = lambda i: lambda s, base=begins + i * CHUNK: order[0, 0, 0, base + s]  # of slot s of chunk i
        used = count[0, 0, 0, first + h if own else 0]
        chunks = lax.div(used + (CHUNK - 1), CHUNK)
        if scratch:
            _joined(*blocks[:2], scratch[0])
            lax.fori_loop(0, chunks, functools.partial(_move_words, place, unroll, *scratch, *blocks[2:]), 0)
        else:
            lax.fori_loop(0, chunks, functools.partial(_move_rows, place, unroll, *blocks), 0)
        lax.fori_loop(chunks, slots // CHUNK, functools.partial(_leave, *blocks), 0)
        return 0

    lax.fori_loop(0, heads, head, 0)


def _joined(k, v, words):
    """words [C, D] int32: the key of a slot in the lower halves, its value in the upper ones.

    16-bit numbers lie in memory two slots to a word: slot 2i in the lower half, 2i + 1 in the upper.
    """

    size = next(n for n in (2 * CHUNK, CHUNK) if k.shape[0] % n == 0)

    def chunk(i, _):
        at = pl.multiple_of(i * size, size)
        x, y = (pltpu.bitcast(ref[pl.ds(at, size), :], jnp.int32) for ref in (k, v))
        words[pl.ds(at, size // 2, stride=2), :] = (x & LOW) | (y << 16)
        words[pl.ds(at + 1, size // 2, stride=2), :] = lax.shift_right_logical(x, 16) | (y & HIGH)
        return 0

    lax.fori_loop(0, k.shape[0] // size, chunk, 0)


def _move_words(place, unroll, words, found, new_k, new_v, i, _):
    """The slots of chunk i: from `words` to `found`, and from there apart."""
    at, old = pl.multiple_of(i * CHUNK, CHUNK), place(i)

    def slot(s, _):
        found[pl.ds(at + s, 1), :] = words[pl.ds(old(s), 1), :]
        return 0

    lax.fori_loop(0, CHUNK, slot, 0, unroll=unroll)
    even, odd = (found[pl.ds(at + s, CHUNK // 2, stride=2), :] for s in (0, 1))
    new_k[pl.ds(at, CHUNK), :] = pltpu.bitcast((even & LOW) | (odd << 16), new_k.dtype)
    new_v[pl.ds(at, CHUNK), :] = pltpu.bitcast(lax.shift_right_logical(even, 16) | (odd & HIGH), new_v.dtype)
    return 0


def _move_rows(place, unroll, k, v, new_k, new_v, i, _):
    """The slots of chunk i, of keys and values that fill a word each."""
    at, old = i * CHUNK, place(i)

    def slot(s, _):
        to, origin = pl.ds(at + s, 1), pl.ds(old(s), 1)
        new_k[to, :], new_v[to, :] = k[origin, :], v[origin, :]
        return 0

    lax.fori_loop(0, CHUNK, slot, 0, unroll=unroll)
    return 0


def _leave(k, v, new_k, new_v, i, _):
    """The slots of chunk i stay as they are."""
    at = pl.ds(pl.multiple_of(i * CHUNK, CHUNK), CHUNK)
    new_k[at, :], new_v[at, :] = k[at, :], v[at, :]
    return 0
