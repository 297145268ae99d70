"""Decoding attention on a TPU: one query a row, over its slots of the compacted cache.

Differs from the decoding kernels there are (JAX's paged attention, MaxText's ragged attention; a grid step for every
block of a row): every kv head has a length of its own, and what lies behind it is not fetched, to a tile of 16 slots,
as the copies from HBM are started by hand and are as long as the keys that are there; a piece of the cache spans all kv
heads of a row, so that the heads' chains of product, softmax and product hide each other's latency; and the next pieces
are under way over the ends of rows, so that the copying never stops.

    grid: halves of the rows (a chip's two cores, if they are one device) x groups of `GROUP` rows; in each step
        for each row of the group, for each piece of its slots:
            start the copies of a piece further on, be it of a later row
            wait for this piece; for every kv head: scores [M, S], online softmax, sums [M, D]

The queries that share a kv head are the rows of a product with its keys, padded to a tile of 8 (M). They fill a
sixteenth of the matrix unit, which does not matter: it takes keys and values in faster than they come from HBM. Other
forms, for 8 kv heads of 4 queries, in bundles (cycles without stalls) a block of 256 slots of one kv head:

                                             v5e    v5p    v6e  tpu7x
    what the block takes from HBM            240    166    140     78    cycles for 128 KiB, a core's share
    queries as rows (this form)               58     57     58     54    no spills
    keys as rows, [S, M]                     239    246    202    192    each score in a vector of its own; spills
    no matrix unit                           658    698    636    622    spills
"""

from __future__ import annotations

import dataclasses
import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

UNSEEN = -1e30  # a score no key can have; finite, so that a query that sees nothing gives zeros and not NaN
LANES, SUBLANES = 128, 8
UNIT = 64  # capacities are multiples of it, see `cache.kv_cache.SLOTS`
GROUP = 8  # rows of a grid step, which share its overhead of 30 to 90 bundles; fewer where
ROOM = 16 << 20  # bytes do not hold their masks and what their slots receive, twice

# Slots of a piece: at most `SLOTS`, and at most `SPAN` bytes of keys. Bundles a block of 256 slots of one kv head, all
# that is done for a row counted, by the compiler's schedule for a bfloat16 cache with heads of 128; no vector spills:
#
#     piece of              v5e                    v5p                    v6e                   tpu7x
#     slots, kv heads   8    4    2    1       8    4    2    1       8    4    2    1       8    4    2    1
#     256 of 2304      89  110                88  109                86  103                85  101
#     384 of 2304      78   92                77   91                72   84                72   83
#     512 of 2560      64   75   94           64   74   93           62   71   90           61   69   88
#     768 of 2304      59   66   78  102      59   66   78  103      59   65   78   99      57   62   76   97
#     640, all         60   65   80  110      59   65   80  111      69   74   86  111      67   72   85  110
#     768, all         54   58   72  101      54   59   72  100      57   62   73   94      56   60   71   93
#     cycles of HBM        240                    166                    140                     78
#
# The largest is best on every generation. A short row pays for a whole piece: 300 keys in 768 slots for 2.6 times the
# above, which on v5e and v5p is still hidden behind the copies.
SLOTS, SPAN = 768, 3 << 19
FLYING = 4 << 20  # bytes of keys and values under way: more than HBM delivers while a copy gets going, about 1 us
TOGETHER = (4, 3, 2, 1)  # kv heads in one stretch of code: more would not be faster, and would spill vectors
BUFFERS = (3, 8)  # least and most pieces that there is room for


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attended:
    """What `decode` hands back.

    Attributes:
        out: [R, H, D] in q's dtype, zeros where nothing is visible.
        received: [R, Hkv, C] float32, the probabilities of each slot summed over the query heads of the group, zeros
            elsewhere; None where not asked for.
        logsumexp: [R, H] float32, natural logarithm of the sum of exp(scores), -1e30 or less where nothing is visible;
            None where not asked for.
    """

    out: jax.Array
    received: jax.Array | None = None
    logsumexp: jax.Array | None = None


def takes(dtype) -> bool:
    """Whether there is a kernel for a cache of this dtype without scales."""
    return dtype in (jnp.float32, jnp.bfloat16)


def quantise(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys or values [..., D] to int8 [..., D] and the scale [...] float32 of each slot: absmax / 127, symmetric.

    Example: (1.0, -0.25, 0.5) has the scale 1 / 127 and is stored as (127, -32, 64).
    """
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), -1) / 127
    return jnp.round(x / jnp.maximum(scale, 1e-30)[..., None]).astype(jnp.int8), scale


def dequantise(x: jax.Array, scale: jax.Array) -> jax.Array:
    """The float32 numbers that int8 x [..., D] with scale [...] stands for."""
    return x.astype(jnp.float32) * scale[..., None]


def decode(q, keys, values, lengths, *, layer=0, rows=None, visible=None, scales=None, received: bool = False,
           logsumexp: bool = False, block: int | None = None, interpret=None) -> Attended:  # fmt: skip
    """softmax(q k^T / sqrt(D) over the visible slots) v, one query a row, over one layer of the cache.

    Args:
        q: [R, H, D].
        keys, values: [L, B, Hkv, C, D], the whole cache, read where it lies; float32, bfloat16, or int8 with `scales`.
            C is a multiple of 64 (of 128 for int8); query head h reads kv head h // (H / Hkv).
        lengths: [R, 1] or [R, Hkv] int32, slots at or after it are neither visible nor fetched and may hold anything.
            One length for all heads is one copy for all heads.
        layer: which layer, a number or [] int32.
        rows: [R] int32, the cache rows of the queries; None is the first R in order.
        visible: [R, 1 or Hkv, C] bool, which of the slots below the length are visible; the others may hold anything.
            None is all of them.
        scales: of int8 keys and values, two [L, B, Hkv, C] float32, see `quantise`.
        received, logsumexp: also return these, see `Attended`.
        block: slots of a piece, a multiple of 128; None is the best, see `SLOTS`.
        interpret: True runs it as plain XLA operations, a `pltpu.InterpretParams` on an imitation of a TPU, both on a
            CPU; False is compiled by Mosaic for a TPU. None is True in programs for the CPU, False in those for TPUs.
            For other platforms there is no form.

    Raises:
        ValueError: for shapes or dtypes that do not fit each other.
    """
    _check(q, keys, values, lengths, visible, scales)
    form = form_of(q, keys, lengths, visible, received, logsumexp, block)
    rows = jnp.arange(q.shape[0], dtype=jnp.int32) if rows is None else rows
    operands = _operands(form, q, keys, values, lengths, layer, rows, visible, scales)
    run = lambda inner: lambda *x: _call(form, q.dtype, inner, *x)
    if interpret is None:
        outs = lax.platform_dependent(*operands, cpu=run(True), tpu=run(False))
    else:
        outs = run(interpret)(*operands)
    return _attended(form, q, keys.shape[3], outs)


@dataclasses.dataclass(frozen=True)
class Form:
    """What a kernel is made for. R queries of H = kv_heads * share heads, padded to `halves * steps * group` rows.

    Attributes:
        tile: rows of a product, `share` queries padded to a tile. dtype: of the cache.
        lengths, masks: kv heads with an own length, and an own row of `visible` (0: there is none).
        buffers: pieces that there is room for.
    """

    rows: int
    kv_heads: int
    share: int
    tile: int
    size: int
    dtype: jnp.dtype
    capacity: int
    block: int
    pieces: int
    halves: int
    steps: int
    group: int
    lengths: int
    masks: int
    received: bool
    logsumexp: bool
    buffers: int

    @property
    def padded(self) -> int:
        return self.halves * self.steps * self.group

    @property
    def slots(self) -> int:
        return self.block * self.pieces

    @property
    def packed(self) -> int:
        """Values in a word of 32 bits."""
        return 4 // self.dtype.itemsize

    @property
    def quantised(self) -> bool:
        return self.dtype == jnp.int8

    @property
    def together(self) -> int:
        """Kv heads in one stretch of code."""
        return next(n for n in TOGETHER if self.kv_heads % n == 0)

    @property
    def cleans(self) -> bool:
        """Whether values of invisible slots can be NaN, and holes have to be found."""
        return bool(self.masks) and not self.quantised

    @property
    def granule(self) -> int:
        """Slots that a copy's length is rounded up to: a tile of the cache in memory."""
        return SUBLANES * self.packed


def form_of(q, keys, lengths, visible, received, logsumexp, block) -> Form:
    """The kernel for arguments of `decode`, of which only shapes and dtypes matter."""
    count, heads, size = q.shape
    kv_heads, capacity = keys.shape[2:4]
    share, line = heads // kv_heads, kv_heads * _lanes(size) * keys.dtype.itemsize
    if block is None:
        block = _block(capacity, min(SLOTS, SPAN // line))
    pieces, masks = -(-capacity // block), 0 if visible is None else visible.shape[1]
    group = min(GROUP, max(1, ROOM // max(1, 2 * _slot_bytes(pieces * block, kv_heads, masks, received))))
    halves = 1 if count == 1 else 2
    steps = -(-count // (halves * group))
    least, most = BUFFERS
    return Form(
        count, kv_heads, share, -(-share // SUBLANES) * SUBLANES, size, keys.dtype, capacity, block,
        pieces, halves, steps, -(-count // (halves * steps)), lengths.shape[1], masks, received, logsumexp,
        min(max(1 + -(-FLYING // (2 * block * line)), least), most),
    )  # fmt: skip


def _block(capacity: int, most: int) -> int:
    """Slots of a piece: equal parts of the capacity, multiples of 128."""
    most = max(most // LANES * LANES, LANES)
    parts = -(-capacity // most)
    return -(-capacity // (parts * LANES)) * LANES


def _lanes(size: int) -> int:
    return -(-size // LANES) * LANES


def _operands(form, q, keys, values, lengths, layer, rows, visible, scales):
    """Operands of the kernel: rows padded to whole groups, queries to whole tiles, masks as words of 32 bits."""
    more = form.padded - form.rows
    pad = lambda x, *after: jnp.pad(x, ((0, more), *((0, n) for n in after))) if more or any(after) else x
    lengths = jnp.clip(lengths.astype(jnp.int32), 0, form.capacity)
    flat = pad(lengths, 0).reshape(-1)
    scalars = (jnp.asarray(layer, jnp.int32).reshape(1), pad(rows.astype(jnp.int32)), flat)
    q = q.reshape(form.rows, form.kv_heads, form.share, form.size)
    arrays = [pad(q, 0, form.tile - form.share, 0), keys, values, *(scales or ())]
    if form.masks:
        if form.cleans:
            there = jnp.arange(form.capacity) < lengths[..., None]
            scalars += (pad(jnp.any(there & ~visible, (1, 2)).astype(jnp.int32)),)
        arrays += [pad(visible.astype(jnp.int32), 0, form.slots - form.capacity)]
    return *scalars, *arrays


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _call(form: Form, dtype, interpret, *operands):
    """The kernel; returns its outputs by name, rows and queries as padded. Made once for all layers of a program."""
    group, heads, size = form.group, form.kv_heads, form.size
    at = lambda half, step, *_: (half * form.steps + step, 0, 0, 0)
    flat = lambda *index: at(*index)[:3]
    tiles = pl.BlockSpec((group, heads, form.tile, size), at)
    there = pl.BlockSpec(memory_space=pltpu.HBM)
    ins = {"q": tiles, "keys": there, "values": there}
    if form.quantised:
        ins |= {"key_scale": there, "value_scale": there}
    if form.masks:
        ins |= {"seen": pl.BlockSpec((group, form.masks, form.slots), flat)}
    outs = {"out": (tiles, (form.tile, size), dtype)}
    if form.received:
        outs |= {"received": (pl.BlockSpec((group, heads, form.slots), flat), (form.slots,), jnp.float32)}
    if form.logsumexp:
        wide = pl.BlockSpec((group, heads, form.tile, LANES), at)
        outs |= {"logsumexp": (wide, (form.tile, LANES), jnp.float32)}
    scratch = _scratch(form)
    scalars = ("layer", "rows", "lengths", *(["holes"] if form.cleans else []))
    names = (*scalars, *ins, *outs, *scratch)
    found = pl.pallas_call(
        lambda *refs: _kernel(form, interpret, SimpleNamespace(**dict(zip(names, refs, strict=True)))),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(form.halves, form.steps),
            in_specs=list(ins.values()),
            out_specs=[spec for spec, *_ in outs.values()],
            scratch_shapes=list(scratch.values()),
        ),
        out_shape=[jax.ShapeDtypeStruct((form.padded, heads, *last), kind) for _, last, kind in outs.values()],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_memory(form)
        ),
        interpret=interpret,
        name="lt_decode",
    )(*operands)
    return dict(zip(outs, found, strict=True))


def _scratch(form: Form) -> dict:
    heads, buffer = form.kv_heads, (form.buffers, form.kv_heads, form.block)
    out = {"k": pltpu.VMEM((*buffer, form.size), form.dtype), "v": pltpu.VMEM((*buffer, form.size), form.dtype)}
    out |= {"arrived": pltpu.SemaphoreType.DMA((form.buffers,)), "next": pltpu.SMEM((4,), jnp.int32)}
    if form.quantised:
        out |= {"k_scale": pltpu.VMEM(buffer, jnp.float32), "v_scale": pltpu.VMEM(buffer, jnp.float32)}
    elif form.cleans:
        out |= {"turned": pltpu.VMEM((form.block, LANES), jnp.int32)}
    if form.pieces > 1:
        sums = pltpu.VMEM((heads, form.tile, LANES), jnp.float32)
        out |= {"top": sums, "total": sums, "sum": pltpu.VMEM((heads, form.tile, form.size), jnp.float32)}
        if form.received:
            out |= {"scores": pltpu.VMEM((heads, form.tile, form.slots), jnp.float32)}
    return out


def _memory(form: Form) -> int:
    """Bytes of a core's own memory to ask for: the buffers, the pairs of blocks that come and go, and some room."""
    wide = _lanes(form.size)
    buffers = 2 * form.buffers * form.kv_heads * form.block * (wide * form.dtype.itemsize + 4 * form.quantised)
    tiles = 4 * form.kv_heads * form.tile * (2 * wide + LANES * form.logsumexp)
    blocks = 2 * form.group * (tiles + _slot_bytes(form.slots, form.kv_heads, form.masks, form.received))
    sums = 4 * form.kv_heads * form.tile * (2 * LANES + wide + form.slots * form.received) * (form.pieces > 1)
    return buffers + blocks + sums + (8 << 20)


def _slot_bytes(slots: int, kv_heads: int, masks: int, received: bool) -> int:
    """Bytes of a row's masks and of what its slots received, in the core's own memory."""
    tiles = lambda n: -(-n // SUBLANES) * SUBLANES
    return 4 * slots * (tiles(masks) + tiles(kv_heads) * received)


def _kernel(form: Form, interpret, ref):
    """One grid step: the rows of a group."""
    half, step = pl.program_id(0), pl.program_id(1)
    first = half * (form.steps * form.group)
    issue = functools.partial(_issue, form, interpret, ref, first + form.steps * form.group)

    @pl.when(step == 0)
    def _():
        for i, value in enumerate((first, 0, 0, 0)):
            ref.next[i] = value
        lax.fori_loop(0, form.buffers - 1, lambda *_: issue(), None)

    def row(i, _):
        r = first + step * form.group + i
        if form.pieces > 1:
            ref.top[...] = jnp.full_like(ref.top, UNSEEN)
            ref.total[...] = jnp.zeros_like(ref.total)
            ref.sum[...] = jnp.zeros_like(ref.sum)

        def piece(c, _):
            issue()
            slot = lax.rem(ref.next[3], form.buffers)
            ref.next[3] = ref.next[3] + 1
            _copies(form, interpret, ref, r, c, slot, "wait")
            if not form.quantised:
                _clean(form, ref, r, i, c * form.block, slot)
            _heads(form, functools.partial(_piece, form, ref, r, i, c, slot))
            return 0

        if form.pieces == 1:
            piece(0, 0)
        else:
            lax.fori_loop(0, _pieces(form, ref, r), piece, 0)
            _finish_pieces(form, ref, r, i)
        return 0

    lax.fori_loop(0, form.group, row, 0)


def _length(form, ref, row, head):
    """Slots of a row and kv head."""
    return ref.lengths[row * form.lengths + (head if form.lengths > 1 else 0)]


def _longest(form, ref, row):
    """Slots of the row's longest kv head."""
    return functools.reduce(jnp.maximum, [_length(form, ref, row, head) for head in range(form.lengths)])


def _pieces(form, ref, row):
    """Pieces of a row; one without keys has an empty one."""
    if form.pieces == 1:
        return 1
    return jnp.clip(lax.div(_longest(form, ref, row) + form.block - 1, form.block), 1, form.pieces)


def _issue(form, interpret, ref, end):
    """Starts the copies of the next piece of the rows before `end`. next: its row and number, pieces issued, used."""
    row, piece = ref.next[0], ref.next[1]

    @pl.when(row < end)
    def _():
        _copies(form, interpret, ref, row, piece, lax.rem(ref.next[2], form.buffers), "start")
        last = piece + 1 >= _pieces(form, ref, row)
        ref.next[0] = jnp.where(last, row + 1, row)
        ref.next[1] = jnp.where(last, 0, piece + 1)
        ref.next[2] = ref.next[2] + 1


def _copies(form, interpret, ref, row, piece, slot, act: str):
    """Starts the copies of a piece into a buffer, as long as the keys that are there, or waits for them."""
    layer, r, begin = ref.layer[0], ref.rows[row], pl.multiple_of(piece * form.block, form.block)

    def copy(held, tile, pairs, head):
        """The first `held` slots, in whole tiles. XLA knows no copy of a length of its own: it does several of one."""
        held = jnp.clip(held - begin, 0, form.block)
        parts = [(0, pl.multiple_of(lax.div(held + tile - 1, tile) * tile, tile))]
        if interpret is True:
            unit = math.gcd(form.block, form.capacity)
            parts = [(first, unit) for first in range(0, form.block, unit)]
        for first, n in parts:

            @pl.when(first < held)
            def _(first=first, n=n):
                for x, y in pairs:
                    source = x.at[layer, r, head, pl.ds(begin + first, n)]
                    move = pltpu.make_async_copy(source, y.at[slot, head, pl.ds(first, n)], ref.arrived.at[slot])
                    getattr(move, act)()

    both = ((ref.keys, ref.k), (ref.values, ref.v))
    if form.lengths == 1:
        copy(_length(form, ref, row, 0), form.granule, both, slice(None))
    else:
        one = lambda head, _: copy(_length(form, ref, row, head), form.granule, both, head)
        lax.fori_loop(0, form.lengths, one, None)
    if form.quantised:
        both = ((ref.key_scale, ref.k_scale), (ref.value_scale, ref.v_scale))
        copy(_longest(form, ref, row), LANES, both, slice(None))


def _heads(form: Form, work):
    """`work(head)` for every kv head, some of them in one stretch of code so that one works while another waits."""

    def some(first):
        for head in range(form.together):
            work(first + head)

    if form.kv_heads == form.together:
        some(0)
    else:
        lax.fori_loop(0, form.kv_heads // form.together, lambda n, _: some(n * form.together), None)


def _piece(form: Form, ref, row, i, piece, slot, head):
    """What a kv head makes of a piece that has arrived: scores, probabilities and sums."""
    begin = piece * form.block
    seen = lax.broadcasted_iota(jnp.int32, (form.tile, form.block), 1) < _length(form, ref, row, head) - begin
    if form.masks:
        own = pl.ds(head if form.masks > 1 else 0, 1)
        seen &= jnp.broadcast_to(ref.seen[i, own, pl.ds(begin, form.block)], seen.shape) != 0
    k, v = ref.k[slot, head], ref.v[slot, head]
    if form.quantised:
        k, v = k.astype(ref.q.dtype), v.astype(ref.q.dtype)
    scores = _dot(ref.q[i, head], k, 1) * (form.size**-0.5 * math.log2(math.e))
    if form.quantised:
        scores *= ref.k_scale[slot, pl.ds(head, 1)]
    scores = jnp.where(seen, scores, UNSEEN)
    top = jnp.max(scores, 1, keepdims=True)
    if form.pieces > 1:
        before = ref.top[head, :, :1]
        top = jnp.maximum(top, before)
        if form.received:
            ref.scores[head, :, pl.ds(begin, form.block)] = scores
    p = jnp.where(seen, jnp.exp2(scores - top), 0)
    total = jnp.sum(p, 1, keepdims=True)
    weights = p
    if form.quantised:
        weights = jnp.where(seen, p * ref.v_scale[slot, pl.ds(head, 1)], 0)
    part = _dot(weights.astype(v.dtype), v, 0)
    if form.pieces == 1:
        _finish(form, ref, i, head, top, total, part)
        if form.received:
            _received(form, ref, i, head, slice(None), p, total)
        return
    fade = jnp.exp2(before - top)
    ref.top[head] = jnp.broadcast_to(top, (form.tile, LANES))
    ref.total[head] = jnp.broadcast_to(ref.total[head, :, :1] * fade + total, (form.tile, LANES))
    ref.sum[head] = ref.sum[head] * fade + part


def _clean(form, ref, row, i, begin, slot):
    """Zeros in the values of invisible slots of a piece, so that no NaN in them meets a probability of 0.

    Behind the length it is a few tiles of one piece a row. Holes below it are rare, and take as long again as the rest.
    """
    if not form.cleans:
        return _clean_tail(form, ref, row, begin, slot)
    holes = ref.holes[row] != 0
    pl.when(holes)(lambda: _clean_holes(form, ref, row, i, begin, slot))
    pl.when(jnp.logical_not(holes))(lambda: _clean_tail(form, ref, row, begin, slot))


def _clean_tail(form, ref, row, begin, slot):
    """What lies behind the lengths, tile by tile."""

    def tail(own, _):
        left = jnp.clip(_length(form, ref, row, own) - begin, 0, form.block)

        def tile(t, _):
            at = pl.ds(pl.multiple_of(t * form.granule, form.granule), form.granule)
            first = lax.broadcasted_iota(jnp.int32, (SUBLANES, form.size), 0) * form.packed + t * form.granule
            keep = _keep(form, first < left, first + 1 < left)
            for head in range(form.kv_heads) if form.lengths == 1 else [own]:
                ref.v[slot, head, at] = _masked(ref.v[slot, head, at], keep)
            return 0

        lax.fori_loop(lax.div(left, form.granule), form.block // form.granule, tile, 0)

    lax.fori_loop(0, form.lengths, tail, None) if form.lengths > 1 else tail(0, None)


def _clean_holes(form, ref, row, i, begin, slot):
    """All invisible slots of the piece: the row of masks turned into a column, two slots of it to a word."""

    def turn(own):
        left = _length(form, ref, row, own) - begin
        seen = ref.seen[i, pl.ds(own if form.masks > 1 else 0, 1), pl.ds(begin, form.block)]
        seen = jnp.where(lax.broadcasted_iota(jnp.int32, seen.shape, 1) < left, seen, 0)
        words = _keep(form, seen != 0, pltpu.roll(seen, form.block - 1, 1) != 0)
        ref.turned[...] = jnp.broadcast_to(words, (LANES, form.block)).T
        keep = ref.turned[pl.ds(0, form.block // form.packed, form.packed)]
        return jnp.concatenate([keep] * (_lanes(form.size) // LANES), 1)[:, : form.size]

    def mask(head, keep):
        ref.v[slot, head] = _masked(ref.v[slot, head], keep)

    if form.masks == 1 and form.lengths == 1:
        keep = turn(0)
        for head in range(form.kv_heads):
            mask(head, keep)
        return
    lax.fori_loop(0, form.kv_heads, lambda head, _: mask(head, turn(head)), None)


def _keep(form, low, high):
    """Masks of words that hold the values of one slot, or of two: `low` and `high` of the word."""
    return jnp.where(low, -1, 0) if form.packed == 1 else jnp.where(low, 0xFFFF, 0) | jnp.where(high, -0x10000, 0)


def _masked(v, keep):
    """Values [S, D] with words of 32 bits masked."""
    return pltpu.bitcast(pltpu.bitcast(v, jnp.int32) & keep, v.dtype)


def _finish(form, ref, i, head, top, total, summed):
    """Writes what a row's kv head comes to: top, total [M, 1]; summed [M, D]."""
    there = total > 0
    ref.out[i, head] = (summed * _inverse(total)).astype(ref.out.dtype)
    if form.logsumexp:
        found = jnp.where(there, top + jnp.log2(jnp.where(there, total, 1)), UNSEEN) * math.log(2)
        ref.logsumexp[i, head] = jnp.broadcast_to(found, (form.tile, LANES))


def _inverse(total):
    """1 / total, and 0 where nothing is visible."""
    return jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)


def _received(form, ref, i, head, at, p, total):
    """Writes what the slots `at` received: p [M, S], not yet normed, over the group's real queries."""
    real = lax.broadcasted_iota(jnp.int32, total.shape, 0) < form.share
    ref.received[i, pl.ds(head, 1), at] = jnp.sum(p * jnp.where(real, _inverse(total), 0), 0, keepdims=True)


def _finish_pieces(form, ref, row, i):
    """As `_finish` and `_received` for all kv heads of a row of several pieces."""
    _heads(form, lambda h: _finish(form, ref, i, h, ref.top[h, :, :1], ref.total[h, :, :1], ref.sum[h]))
    if not form.received:
        return
    count = _pieces(form, ref, row)

    def write(c, _):
        at = pl.ds(pl.multiple_of(c * form.block, form.block), form.block)

        def work(head):
            p = jnp.where(c < count, jnp.exp2(ref.scores[head, :, at] - ref.top[head, :, :1]), 0)
            _received(form, ref, i, head, at, p, ref.total[head, :, :1])

        _heads(form, work)
        return 0

    lax.fori_loop(0, form.pieces, write, 0)


def _dot(a, b, axis):
    """a [M, K] times b over its axis `axis`, in float32; exact for float32 operands."""
    exact = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (((1,), (axis,)), ((), ())), precision=exact, preferred_element_type=jnp.float32)


def _attended(form: Form, q, capacity: int, outs: dict) -> Attended:
    """Outputs of the kernel without the padding."""
    heads = lambda x: x[: form.rows, :, : form.share].reshape(q.shape[0], q.shape[1], *x.shape[3:])
    received, lse = outs.get("received"), outs.get("logsumexp")
    return Attended(
        heads(outs["out"]),
        None if received is None else received[: form.rows, :, :capacity],
        None if lse is None else heads(lse[..., 0]),
    )


def _check(q, keys, values, lengths, visible, scales):
    rows, heads, size = q.shape
    _, _, kv_heads, capacity, depth = keys.shape
    if keys.shape != values.shape or keys.dtype != values.dtype or size != depth or heads % kv_heads:
        raise ValueError(f"decode shapes do not fit: q {q.shape}, keys {keys.shape}, values {values.shape}")
    if (keys.dtype == jnp.int8) != (scales is not None):
        raise ValueError(f"a cache of {keys.dtype} was given with{'' if scales else 'out'} scales")
    unit = LANES if scales is not None else UNIT
    if capacity % unit:
        raise ValueError(f"the capacity is {capacity}; it must be a multiple of {unit}")
    if scales is not None and any(x.shape != keys.shape[:4] for x in scales):
        raise ValueError(f"scales {[x.shape for x in scales]} do not fit keys {keys.shape}")
    if lengths.shape not in ((rows, 1), (rows, kv_heads)):
        raise ValueError(f"lengths {lengths.shape} do not fit {rows} rows and {kv_heads} kv heads")
    if visible is not None and visible.shape not in ((rows, 1, capacity), (rows, kv_heads, capacity)):
        raise ValueError(f"visible {visible.shape} does not fit {rows} rows and keys {keys.shape}")
