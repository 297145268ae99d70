"""Attention over the cache on an NVIDIA GPU: new keys into their slots, then their queries, any number a row.

    fresh [R, T, H + 2 Hkv, D]  --write-->  q, and the cache in place  --attend-->  [R, T, H, D]

Two kernels a layer, `write` and `attend` of `triton_decode_kernels.py`, and a third for what the slots received. They
are apart, as a program must not read a slot that another one writes; norm and rotation join the first, which has to
touch all of `fresh` anyway. Against the decoding kernels there are (FlashDecoding and FlashInfer, over pages): the
cache is whole and an operand as it is, the layer a number; the slots that are seen are a mask and not a length, and may
differ between kv heads; what is written is a cache that the caller lets go of, so nothing of it is copied.

A group's queries are the rows of one product with their kv head's keys. The slots of a row are cut into parts, as many
as fill the chip, each of the same share of the row's own keys; the last program of them to be done adds up what they
found. So one row of 640 keys and 2 kv heads is 20 programs at once, and nothing of this is known by the host.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from lt_jax import cuda
from lt_jax.errors import UserError

DEVICE = "lt_jax.attention.triton_decode_kernels"
MOST = 256  # largest head size
WIDE = 162 << 10  # bytes of shared memory that a card must have for heads above 128
DEEP = 105 << 10  # and for four stages
UNIT = 64  # capacities are multiples of it, see `cache.kv_cache.SLOTS`
PROGRAMS = 264  # to fill a chip with: two for each multiprocessor of an H100
PARTS = 64  # of one row's slots: the last of them adds up all

# What `form_of` chooses, as compiled for an H100 (bfloat16; registers of a thread, kB of shared memory of a program, by
# ptxas); none of these spills. Times are not known yet; stages 4 keep two tiles under way besides the one in work.
#
#     heads                     tokens           tile       warps  stages   attend        received   write
#     12 / 2, 28 / 4 of 128     1                16 x 64      4      4       96, 102       56, 28      23
#                               10, 64, 512      64 x 64      4      3      240, 116      150, 64     102
#     16 / 8 of 128             1; 64            the same                    96; 178                   34
#     14 / 2 of 64              1                16 x 64      4      4       96, 52                    22
#                               64              128 x 64      4      3      248, 68                    20
#     8 / 4 of 256              1                16 x 32      4      4      108, 105                   31


@dataclasses.dataclass(frozen=True)
class Form:
    """How `attend` is cut into programs.

    Attributes:
        queries, slots: sides of a tile.
        parts: into how many parts a row's slots are cut.
        warps, stages: how Triton compiles it.
    """

    queries: int
    slots: int
    parts: int
    warps: int
    stages: int


def takes(size: int, dtype) -> bool:
    """Whether there are kernels for this head size and dtype of the cache."""
    return size % 2 == 0 and size <= (MOST if cuda.room() >= WIDE else 128) and dtype in (jnp.float32, jnp.bfloat16)


def form_of(rows: int, kv_heads: int, queries: int, size: int, capacity: int, itemsize: int) -> Form:
    """The form for `rows` x `kv_heads` products of so many queries, by heads of `size` in `itemsize` bytes."""
    exact = itemsize == 4
    side = max(16, min(_power(queries), 32 if exact else 64 if size > 64 else 128))
    slots = 32 if exact or size > 128 else 64
    programs = rows * kv_heads * -(-queries // side)
    wanted = PROGRAMS if side < 64 else PROGRAMS // 2
    parts = max(1, min(-(-wanted // programs), capacity // slots, PARTS))
    warps = 4 if side * max(_power(size), 16) <= 64 * 128 else 8
    stages = 2 if exact else 4 if side == 16 and cuda.room() >= DEEP else 3
    return Form(side, slots, parts, warps, stages)


def attend(fresh, keys, values, layer: int, rows, start, mask, bound, *, angles=None, norms=None, eps: float = 0.0,
           received: bool = False, form: Form | None = None):  # fmt: skip
    """Turns new queries and keys, writes keys and values into their slots, and attends.

    Args:
        fresh: [R, T, H + 2 Hkv, D], queries, keys and values as projected; rows beyond those of `bound` are padding.
        keys, values, layer, rows, start, mask, bound: as in `cache.attend`; multiplied in the cache's dtype.
        angles: cos and sin [R, T, 1, D / 2] float32 to rotate queries and keys by; None if they are rotated.
        norms: weights [D] of the norms of queries and keys, with `eps`; None without.
        received: whether to sum up what each slot receives, as `cache.policies.h2o.received`.
        form: None chooses.

    Returns:
        attended [R, T, H, D] in the dtype of `fresh`, zeros for padding; keys, values, and received [R, Hkv, C] float32
        or None.

    Raises:
        UserError: there are no kernels for this head size or dtype.
    """
    r, (lines, t, both, size) = len(bound), fresh.shape
    if not takes(size, keys.dtype):
        raise UserError(f"triton attention over the cache takes even head sizes up to {MOST} (128 on cards with "
                        f"less than 162 KiB of shared memory) and float32 or bfloat16 caches, not {size} and "
                        f"{keys.dtype}; name 'blocks'")  # fmt: skip
    _, batch, kv_heads, capacity, _ = keys.shape
    heads = both - 2 * kv_heads
    queries, padded = t * heads // kv_heads, max(16, _power(size))
    form = form or form_of(r, kv_heads, queries, size, capacity, keys.dtype.itemsize)
    groups = r * kv_heads * -(-queries // form.queries)
    where = dict(first=layer * batch, blocks=capacity // UNIT)
    several = form.parts > 1
    counts = _power(groups) if several else 0
    q, keys, values, *count = _write(fresh, keys, values, rows, start, angles, norms, eps, counts, where)
    shown = mask[:, :, 0] if t == 1 else jnp.any(mask, 2)
    seen = dict(rows=rows, shown=shown, mask=None if t == 1 else mask, bound=bound)
    same = dict(
        T=t, G=heads // kv_heads, HKV=kv_heads, KB=mask.shape[1], D=size, DP=padded, BN=form.slots, BM=form.queries,
        FACTOR=size**-0.5 * math.log2(math.e), PRECISION="ieee" if keys.dtype == jnp.float32 else "tf32",
    )  # fmt: skip
    own = min(form.queries, _power(queries))  # rows of a tile that may be real
    together = max(1, min(16, 64 * 32 * form.warps // (own * padded)))  # 64 registers of a thread
    floats = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    made = dict(out=jax.ShapeDtypeStruct((lines, t, heads, size), fresh.dtype))
    if several:
        made |= dict(part=floats((groups, form.parts, own, size)), line=floats((groups, form.parts, own)))
    if received:
        made |= dict(lse=floats((r, kv_heads, queries)))
    if several:
        made |= dict(done=jax.ShapeDtypeStruct((counts,), jnp.int32))
    absent = {name: None for name in ("part", "line", "lse", "done") if name not in made}
    found = cuda.call(
        f"{DEVICE}:attend", dict(q=q, keys=keys, values=values, **seen, count=count[0] if several else None), made,
        grid=(form.parts, groups // r, lines), scalars=dict(where, R=r, parts=form.parts), warps=form.warps,
        stages=form.stages, constants=dict(same, ROWS=own, TOGETHER=together, **absent),
        aliases=dict(done="count") if several else {},
    )  # fmt: skip
    out = dict(zip(made, found, strict=True))
    if not received:
        return out["out"], keys, values, None
    (sums,) = cuda.call(
        f"{DEVICE}:received", dict(q=q, keys=keys, **seen, lse=out["lse"]),
        dict(sums=floats((r, kv_heads, capacity))), grid=(-(-capacity // form.slots), kv_heads, r), scalars=where,
        constants=same, warps=form.warps, stages=form.stages,
    )  # fmt: skip
    # The next layer's keys are written in place: this one's must have been read by then.
    attended, sums = lax.optimization_barrier((out["out"], sums))
    return attended, keys, values, sums


def _write(fresh, keys, values, rows, start, angles, norms, eps, counts: int, where: dict):
    """q [R, T, H, D], the cache with the new keys and values in it, and `counts` zeros if any are wanted."""
    r, (t, both, size) = len(start), fresh.shape[1:]
    kv_heads = keys.shape[2]
    heads, tokens = both - 2 * kv_heads, r * t
    together = max(1, min(16, _power(tokens * both // 2048)))
    cos, sin = (None, None) if angles is None else angles
    q_norm, k_norm = (None, None) if norms is None else norms
    like = lambda x, shape=None: jax.ShapeDtypeStruct(x.shape if shape is None else shape, x.dtype)
    made = dict(q=like(fresh, (r, t, heads, size)), keys=like(keys), values=like(values))
    if counts:
        made |= dict(count=jax.ShapeDtypeStruct((counts,), jnp.int32))
    return cuda.call(
        f"{DEVICE}:write",
        dict(fresh=fresh, cos=cos, sin=sin, q_norm=q_norm, k_norm=k_norm, keys_in=keys, values_in=values, rows=rows,
             start=start),
        made, grid=(-(-tokens // together), both), scalars=dict(where, eps=float(eps), N=tokens),
        constants=dict(T=t, H=heads, HKV=kv_heads, D=size, HALF=max(1, _power(size // 2)), TOKENS=together,
                       COUNTS=max(counts, 1), **({} if counts else dict(count=None))),
        aliases=dict(keys="keys_in", values="values_in"), warps=1,
    )  # fmt: skip


def _power(n: int) -> int:
    """The first power of two that is no less than n, and no less than 1."""
    return 1 << max(n - 1, 0).bit_length()
