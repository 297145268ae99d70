"""Flash attention over a `BlockPlan` as Pallas TPU kernels, forward and backward: the algorithm of `blocked.py`.

Differences from splash attention (JAX) and FlashAttention-2 (Dao, 2023):

- The mask is not known when the kernel is built. Each query block brings the list of its active key blocks, and the
  mask of a partial block is computed in registers from two int32 a key. Nothing of size S x S exists.
- Key blocks are small (128 keys) so that lists are short, and are taken `CHUNK` at a time, from wherever they
  lie, so that the matrix unit and the softmax work on large tiles. All keys and values of one (row, kv head) are in
  VMEM while its query blocks go by, and the next head's are fetched meanwhile: no block is read from HBM twice.
- Keys are sorted by death in VMEM, a row at a time: XLA's gather takes several times as long.
- The queries of all heads that share a kv head make one tile, so their keys are read, and their mask made, once.
- One backward kernel: dk and dv of a whole head are summed in VMEM. Five matrix products instead of seven.

Tiles hold keys first, scores are [chunk * 128, heads * block_q]. The softmax then reduces down the sublanes, its
statistics are single lines, and forward and backward share them.

Proved in interpret mode against `dense` (tests/test_attention.py); compiled, and its schedule read, by the TPU compiler
(tests/test_tpu.py, benchmarks/tpu_static.py).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lt_jax.attention.blocks import BlockPlan, sort_keys, unsort_keys

F32 = jnp.float32
LOG2_E = math.log2(math.e)
HIDDEN = -1e30  # added to the score of a hidden pair
LOWEST = -1e29  # where the running maximum starts: far above HIDDEN, so hidden pairs weigh exp2(HIDDEN - LOWEST) = 0
BLOCK = 128  # keys of a block, and the least queries of one: the lanes of a vector register
GROUP = 512  # columns (heads x queries) of a tile; more would only spill registers
WRAP = np.int32(-(2**31))  # turns an unsigned comparison into a signed one
CHUNK = 4  # key blocks taken at a time; plans are made for it
INSIDE = 16384  # rows up to this length are sorted in the kernel
MIB = 2**20

# In how many steps of the softmax a chunk is taken, for the scheduler to interleave, by TPU generation.
# Bundles of a chunk of four full blocks, of partial ones and of half a chunk, by the schedules of the compiler for 32
# heads, 8 kv heads of 128 and query blocks of 128 (`benchmarks/tpu_static.py --sweep`; v5p is as v5e, tpu7x as v6e):
#
#     steps         v5e                       v6e
#         1   1476  1448  807  3320     974  1040  558  2946      the last column: vector spills of the kernel
#         2   1261  1365  704  2650     826   904  594  2290
#         4   1132  1212  704  2207     881   944  594  2516
#     ideal   1024                      384                       what the matrix units take; v6e's, of 256 x 256, are
#                                                                 half filled by a head of 128, and the vector unit's
#                                                                 550 are the limit
#
# A tile of 512 x 512 scores is four times the vector registers, so it passes through vector memory between its two
# products: that is what the spills are. Tiles small enough to stay (128 columns) have next to none, and take 1.6 times
# the bundles a pair. Query blocks of 256 are within 3 %.
PARTS = {"v5e": 4, "v5p": 4, "v6e": 2, "tpu7x": 2}


def generation(kind: str | None = None) -> str | None:
    """Which entry of `PARTS` is for a TPU of this `device_kind`; None for any other device, a TPU v4 with its 16 MiB of
    vector memory among them.

    Args:
        kind: None is that of this process's devices.
    """
    kind = (jax.devices()[0].device_kind if kind is None else kind).lower()
    names = {"v5 lite": "v5e", "v5e": "v5e", "v5": "v5p", "v6": "v6e", "tpu7": "tpu7x"}
    return next((name for part, name in names.items() if part in kind and "tpu" in kind), None)


def takes(plan: BlockPlan) -> bool:
    """Whether the kernels can follow a plan: sides in multiples of 128, lists in multiples of `CHUNK`."""
    return plan.block_q % BLOCK == 0 and plan.block_k == BLOCK and plan.blocks.shape[-1] % CHUNK == 0


def fits(length: int, itemsize: int = 2) -> bool:
    """Whether a head's keys, values and their float32 gradients fit the VMEM of all generations in `PARTS` (64 MiB)."""
    return length * BLOCK * (2 * itemsize + 2 * 4) <= 50 * MIB


def forward(q, k, v, plan: BlockPlan, scale: float, *, interpret: bool = False, parts: int | None = None):
    """See `flash.FORMS`; lse is to the base 2.

    Args:
        interpret: run as plain JAX on any platform (slow; for tests).
        parts: None is that of this process's TPU in `PARTS`.
    """
    cut = _Cut.of(q, k, plan)
    kernel = functools.partial(_forward_kernel, scale=scale * LOG2_E, **cut.static(plan, parts, interpret))
    out, lse = pl.pallas_call(
        kernel,
        grid=cut.grid,
        in_specs=[*cut.plan_specs(plan), cut.queries(), *cut.keys()],
        out_specs=[cut.queries(), cut.lines()],
        out_shape=[cut.shape_of_queries(), jax.ShapeDtypeStruct((cut.rows, cut.kv_heads, cut.group, cut.padded), F32)],
        scratch_shapes=[pltpu.VMEM((1, cut.tile), F32), pltpu.VMEM((1, cut.tile), F32),
                        pltpu.VMEM((cut.depth, cut.tile), F32), *cut.scratch()],
        compiler_params=_compiler_params(),
        interpret=interpret,
        name="lt_attention_forward",
    )(*_plan_operands(plan), cut.lay_queries(q), *cut.lay_keys(k, v, plan))  # fmt: skip
    return cut.unlay_queries(out), lse.reshape(cut.rows, q.shape[2], -1)[..., : cut.length]


def backward(
    q, k, v, plan: BlockPlan, out, lse, dout, scale: float, *, interpret: bool = False, parts: int | None = None
):
    """See `flash.FORMS`."""
    cut = _Cut.of(q, k, plan)
    kernel = functools.partial(_backward_kernel, scale=scale, **cut.static(plan, parts, interpret))
    lse = jnp.pad(lse, ((0, 0), (0, 0), (0, cut.padded - cut.length)))
    sums, shapes = cut.key_sums()
    dq, *grads = pl.pallas_call(
        kernel,
        grid=cut.grid,
        in_specs=[*cut.plan_specs(plan), *[cut.queries()] * 3, cut.lines(), *cut.keys()],
        out_specs=[cut.queries(), *sums],
        out_shape=[cut.shape_of_queries(), *shapes],
        scratch_shapes=[pltpu.VMEM((cut.tile, cut.depth), F32), *cut.scratch(), *cut.sum_scratch()],
        compiler_params=_compiler_params(),
        interpret=interpret,
        name="lt_attention_backward",
    )(*_plan_operands(plan), *map(cut.lay_queries, (q, dout, out)),
      lse.reshape(cut.rows, cut.kv_heads, cut.group, -1), *cut.lay_keys(k, v, plan))  # fmt: skip
    return cut.unlay_queries(dq), *cut.unlay_sums(grads, plan, k)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """How the arrays of one call are laid out in HBM and cut into blocks. Grid: (row, kv head, query block).

    Head sizes in multiples of 128 are cut from [B, S, H * D] as it is; others would not be whole vector registers there
    and are laid out heads first.

    Keys and values are sorted inside the kernel, as 32-bit rows: bfloat16 ones as pairs (k, v) in one word. Rows of
    more than `INSIDE` tokens are sorted by XLA, for lack of room.
    """

    rows: int
    kv_heads: int
    group: int  # query heads of a kv head
    depth: int
    length: int
    block_q: int
    nq: int
    nk: int
    dtype: jnp.dtype

    @classmethod
    def of(cls, q, k, plan):
        B, S, H, D = q.shape
        return cls(B, k.shape[2], H // k.shape[2], D, S, plan.block_q, *plan.blocks.shape[1:], q.dtype)

    @property
    def grid(self):
        return self.rows, self.kv_heads, self.nq

    @property
    def tile(self) -> int:
        return self.group * self.block_q

    @property
    def padded(self) -> int:
        return self.nq * self.block_q

    @property
    def flat(self) -> bool:
        return self.depth % BLOCK == 0

    @property
    def inside(self) -> bool:
        return self.length <= INSIDE

    @property
    def packed(self) -> bool:
        return self.inside and self.dtype == jnp.bfloat16

    def static(self, plan, parts, interpret) -> dict:
        """Arguments of both kernels. `sort`: rows moved in one piece of code, 0 where XLA sorts."""
        parts = parts or PARTS[generation() or "v5e"]  # there is no TPU here: lowered ahead of time, or interpreted
        unroll = 1 if interpret else BLOCK  # interpreted code is compiled by XLA, which would take its time
        return dict(block_q=self.block_q, group=self.group, parts=parts, rule=plan.gist_rule,
                    since=plan.since is not None, sort=unroll if self.inside else 0)  # fmt: skip

    def lay_queries(self, x):
        """[B, S, H, D] -> [B, nq * block_q, H * D], or [B, Hkv, G, nq * block_q, D]."""
        x = jnp.pad(x, ((0, 0), (0, self.padded - self.length), (0, 0), (0, 0)))
        if self.flat:
            return x.reshape(self.rows, self.padded, -1)
        return x.swapaxes(1, 2).reshape(self.rows, self.kv_heads, self.group, self.padded, self.depth)

    def unlay_queries(self, x):
        if self.flat:
            return x.reshape(self.rows, self.padded, -1, self.depth)[:, : self.length]
        return x.reshape(self.rows, -1, self.padded, self.depth).swapaxes(1, 2)[:, : self.length]

    def shape_of_queries(self):
        heads = self.kv_heads * self.group
        flat, apart = (self.padded, heads * self.depth), (self.kv_heads, self.group, self.padded, self.depth)
        return jax.ShapeDtypeStruct((self.rows, *(flat if self.flat else apart)), self.dtype)

    def queries(self):
        if self.flat:
            return pl.BlockSpec((1, self.block_q, self.group * self.depth), lambda b, h, i: (b, i, h))
        return pl.BlockSpec((1, 1, self.group, self.block_q, self.depth), lambda b, h, i: (b, h, 0, i, 0))

    def lines(self):
        return pl.BlockSpec((1, 1, self.group, self.block_q), lambda b, h, i: (b, h, 0, i))

    def lay_keys(self, k, v, plan):
        """k, v [B, S, Hkv, D] -> one or two arrays [B, ., Hkv * D] or [B * Hkv, ., D]."""
        if not self.inside:
            return tuple(sort_keys(x, plan).reshape(-1, self.nk * BLOCK, self.depth) for x in (k, v))
        arrays = (_pair(k, v),) if self.packed else tuple(x.astype(F32) for x in (k, v))
        return tuple(map(self._heads_last if self.flat else self._heads_first, arrays))

    def _heads_last(self, x):
        return x.reshape(self.rows, self.length, -1)

    def _heads_first(self, x):
        return x.swapaxes(1, 2).reshape(-1, self.length, self.depth)

    def keys(self):
        tokens, size = (self.length, 4) if self.inside else (self.nk * BLOCK, self.dtype.itemsize)
        return [self._key_spec(tokens, size)] * (1 if self.packed else 2)

    def _key_spec(self, tokens, itemsize):
        """A whole head at a time, and early, in two buffers, unless it is too large for that."""
        mode = {} if tokens * BLOCK * itemsize <= 4 * MIB else dict(pipeline_mode=pl.Buffered(1))
        flat = self.flat and self.inside
        at = lambda b, h, i: (b, 0, h) if flat else (b * self.kv_heads + h, 0, 0)
        return pl.BlockSpec((1, tokens, self.depth), at, **mode)

    def key_sums(self):
        """Blocks and shapes of what the backward kernel makes of dk and dv: 32-bit, in the keys' own layout."""
        like = jax.eval_shape(self._heads_last if self.flat else self._heads_first, jax.ShapeDtypeStruct(
            (self.rows, self.length, self.kv_heads, self.depth), jnp.uint32 if self.packed else F32))  # fmt: skip
        if not self.inside:
            like = jax.ShapeDtypeStruct((self.rows * self.kv_heads, self.nk * BLOCK, self.depth), F32)
        n = 1 if self.packed else 2
        return [self._key_spec(like.shape[1], 4)] * n, [like] * n

    def unlay_sums(self, grads, plan, like):
        if not self.inside:
            return tuple(unsort_keys(x.reshape(len(x), self.nk, BLOCK, -1), plan, like) for x in grads)
        shape = (self.rows, self.length, self.kv_heads, self.depth)
        back = lambda x: x.reshape(shape) if self.flat else x.reshape(self.rows, -1, *x.shape[1:]).swapaxes(1, 2)
        grads = tuple(map(back, grads))
        return _unpair(*grads) if self.packed else tuple(x.astype(like.dtype) for x in grads)

    def plan_specs(self, plan):
        per_head = plan.blocks.shape[0] != self.rows
        row = lambda b, h: b * self.kv_heads + h if per_head else b
        lists, order, keys, queries = jax.eval_shape(_plan_operands, plan)
        smem = dict(memory_space=pltpu.SMEM)
        return [
            pl.BlockSpec((1, 1, *lists.shape[2:]), lambda b, h, i: (row(b, h), i, 0, 0), **smem),
            pl.BlockSpec((1, *order.shape[1:]), lambda b, h, i: (row(b, h), 0, 0), **smem),
            pl.BlockSpec((1, *keys.shape[1:]), lambda b, h, i: (row(b, h), 0, 0, 0)),
            pl.BlockSpec((1, 1, *queries.shape[2:]), lambda b, h, i: (row(b, h), i, 0, 0)),
        ]

    def scratch(self):
        """A query's own numbers as columns; sorted keys and values; a block of rows on their way."""
        sorted_ = pltpu.VMEM((1, self.nk * BLOCK if self.inside else BLOCK, self.depth), self.dtype)
        return [pltpu.VMEM((2, self.block_q, BLOCK), jnp.int32), sorted_, sorted_,
                pltpu.VMEM((2, BLOCK, self.depth), jnp.uint32 if self.packed else F32)]  # fmt: skip

    def sum_scratch(self):
        """dk and dv in sorted order, unless they are the output."""
        return [pltpu.VMEM((1, self.nk * BLOCK if self.inside else 8, self.depth), F32)] * 2


def _pair(k, v):
    """Two bfloat16 arrays as the low and the high half of one uint32 array."""
    low, high = (lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) for x in (k, v))
    return low | (high << 16)


def _unpair(x):
    """The way back from `_pair`."""
    return tuple(lax.bitcast_convert_type(h.astype(jnp.uint16), jnp.bfloat16) for h in (x & 0xFFFF, x >> 16))


def _plan_operands(plan: BlockPlan):
    """lists [R, nq, 1, 2 + nk] (n_full, n_active, blocks), order [R, 1, nk * 128], keys [R, nk, 3, 128], queries
    [R, nq, 2, block_q]; int32.

    A key's numbers are its birth and its life (death - birth), both offset so that one signed comparison of
    index - birth with life stands for birth <= index < death, and what `since` is compared with; under a gist rule its
    birth, its death and its gist block. A query's are `since` and its gist block.
    """
    lists = jnp.concatenate([plan.n_full[..., None], plan.n_active[..., None], plan.blocks], -1)[:, :, None]
    if plan.gist_rule == "causal":
        life = jnp.where(plan.birth >= 0, jnp.maximum(plan.death - plan.birth, 0), 0)
        keys = [plan.birth + WRAP, life + WRAP, plan.birth]
    else:
        keys = [plan.birth, jnp.where(plan.birth >= 0, plan.death, 0), plan.key_gist]
    zeros = jnp.zeros((*plan.n_full.shape, plan.block_q), jnp.int32)
    queries = [zeros if plan.since is None else plan.since, zeros if plan.query_gist is None else plan.query_gist]
    return lists, plan.order[:, None], jnp.stack(keys, 2), jnp.stack(queries, 2)


def _compiler_params():
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=60 * MIB
    )


def _dot(a, b, i, j):
    """Matmul that contracts axis i of a with axis j of b, to float32."""
    exact = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (((i,), (j,)), ((), ())), precision=exact, preferred_element_type=jnp.float32)


def _columns(queries, since, rule, columns):
    """Writes each of a query block's own numbers [block_q] as a column over all lanes."""
    for n, wanted in enumerate((since, rule != "causal")):
        if wanted:
            line = queries[0, 0, n : n + 1]
            columns[n] = jnp.broadcast_to(line, (BLOCK, line.shape[1])).T


def _hidden(index, keys, j, columns, since, rule):
    """What to add to the scores of key block j: 0 where a pair is visible, `HIDDEN` elsewhere, [128, block_q].

    The rule is evaluated with queries first, where a key's numbers are lines that broadcast for free, and turned once.
    """
    birth, life, third = (keys[0, pl.ds(j, 1)][0][n : n + 1] for n in range(3))
    if rule == "causal":
        seen = index - birth < life
        oldest = third
    else:
        same = (third == columns[1]) & (third >= 0)
        born = birth <= index
        born = (born | same) if rule == "bidirectional" else (born & (~same | (birth == index)))
        seen = born & (index < life)
        oldest = birth
    if since:
        seen = seen & (oldest >= columns[0])
    return jnp.where(seen, 0.0, HIDDEN).T


def _visit(lists, step):
    """`step(first, n, masked)` over the list: full blocks a chunk at a time, then all others under their mask.

    What is left at the end, less than a chunk, is half a chunk where that is enough. Blocks behind the list's end are
    hidden entirely, so a last chunk may reach over it.
    """
    full, active = lists[0, 0, 0, 0], lists[0, 0, 0, 1]
    half = CHUNK // 2
    whole = lax.div(full, jnp.int32(CHUNK))
    masked = lax.div(active - whole * CHUNK + (half - 1), jnp.int32(CHUNK))

    def run(start, count, n, under):
        def body(t, carry):
            step(start + t * n, n, under)
            return carry

        lax.fori_loop(0, count, body, 0)

    run(0, whole, CHUNK, False)
    run(whole * CHUNK, masked, CHUNK, True)
    last = (whole + masked) * CHUNK
    run(last, (active > last).astype(jnp.int32), half, True)


def _groups(group, block_q):
    """Column slices of a tile that are worked on at a time: whole heads, at most `GROUP` columns."""
    heads = max(1, GROUP // block_q)
    return [slice(h * block_q, min(h + heads, group) * block_q) for h in range(0, group, heads)]


def _places(lists, first, n):
    blocks = [lists[0, 0, 0, 2 + first + x] for x in range(n)]
    return blocks, [pl.ds(pl.multiple_of(j * BLOCK, BLOCK), BLOCK) for j in blocks]


def _stack(ref, places):
    return jnp.concatenate([ref[0, place, :] for place in places], 0)


def _read_tile(ref, group):
    """The queries of a block, [group * block_q, D], head by head."""
    if len(ref.shape) == 5:
        return ref[0, 0].reshape(-1, ref.shape[-1])
    depth = ref.shape[-1] // group
    return jnp.concatenate([ref[0, :, h * depth : (h + 1) * depth] for h in range(group)], 0)


def _write_tile(ref, x, group):
    block, depth = x.shape[0] // group, x.shape[1]
    for h in range(group):
        part = x[h * block : (h + 1) * block].astype(ref.dtype)
        if len(ref.shape) == 5:
            ref[0, 0, h] = part
        else:
            ref[0, :, h * depth : (h + 1) * depth] = part


def _for_each_block(ref, body):
    def run(j, carry):
        body(j, pl.ds(pl.multiple_of(j * BLOCK, BLOCK), BLOCK))
        return carry

    lax.fori_loop(0, ref.shape[1] // BLOCK, run, 0)


def _sort(order, sources, ks, vs, rows, unroll):
    """Brings one head's keys and values into sorted order: sources [1, S, D] 32-bit -> ks, vs [1, nk * 128, D]."""

    def block(j, place):
        def row(x, carry):
            at = order[0, 0, j * BLOCK + x]
            for n, source in enumerate(sources):
                rows[n, pl.ds(x, 1)] = source[0, pl.ds(at, 1)]
            return carry

        lax.fori_loop(0, BLOCK, row, 0, unroll=unroll)
        if len(sources) == 2:
            k, v = rows[0], rows[1]
        else:  # bfloat16 is the upper half of float32
            k, v = rows[0] << 16, rows[0] & jnp.uint32(0xFFFF0000)
            k, v = (lax.bitcast_convert_type(x, F32) for x in (k, v))
        ks[0, place], vs[0, place] = k.astype(ks.dtype), v.astype(vs.dtype)

    _for_each_block(ks, block)


def _unsort(order, dk, dv, outs, rows, unroll):
    """Brings the sums back: dk, dv [1, nk * 128, D] float32 -> outs [1, S, D], one array of pairs or two."""
    length = outs[0].shape[1]

    def block(j, place):
        if len(outs) == 2:
            rows[0], rows[1] = dk[0, place], dv[0, place]
        else:
            bits = lambda x: lax.bitcast_convert_type(x[0, place].astype(jnp.bfloat16).astype(F32), jnp.uint32)
            rows[0] = (bits(dk) >> 16) | bits(dv)
        def row(t, carry):
            x = BLOCK - 1 - t
            at = order[0, 0, j * BLOCK + x]
            for n, out in enumerate(outs):
                out[0, pl.ds(at, 1)] = rows[n, pl.ds(x, 1)]
            return carry

        lax.fori_loop(0, BLOCK, row, 0, unroll=unroll)

    # Backwards: padding, which repeats the last key, stands behind all real keys and is overwritten by them.
    count = -(-length // BLOCK)
    back = lambda t: pl.ds(pl.multiple_of((count - 1 - t) * BLOCK, BLOCK), BLOCK)
    lax.fori_loop(0, count, lambda t, c: (block(count - 1 - t, back(t)), c)[1], 0)


def _begin(order, keys_in, ks, vs, rows, sort, sums=()):
    """References of sorted keys and values. With a head's first query block they are made, and its sums are zero."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        for x in sums:
            x[...] = jnp.zeros_like(x)
        if sort:
            _sort(order, keys_in, ks, vs, rows, sort)

    return (ks, vs) if sort else keys_in


def _forward_kernel(lists, order, keys, queries, q_ref, *refs, scale, block_q, group, parts, rule, since, sort):
    """One query block of all heads of one kv head. top, total [1, M], acc [D, M] with M = group * block_q."""
    *keys_in, out_ref, lse_ref, top_ref, total_ref, acc_ref, columns, ks, vs, rows = refs
    ks, vs = _begin(order, keys_in, ks, vs, rows, sort)
    tile = _read_tile(q_ref, group)
    top_ref[...] = jnp.full_like(top_ref, LOWEST)
    total_ref[...] = jnp.zeros_like(total_ref)
    acc_ref[...] = jnp.zeros_like(acc_ref)
    _columns(queries, since, rule, columns)
    index = pl.program_id(2) * block_q + lax.broadcasted_iota(jnp.int32, (block_q, BLOCK), 0)

    def step(first, n, masked):
        blocks, places = _places(lists, first, n)
        bias = [_hidden(index, keys, j, columns, since, rule) for j in blocks] if masked else None
        for c in _groups(group, block_q):
            scored = []
            size = n // min(parts, n)
            for at in range(0, n, size):
                scores = _dot(_stack(ks, places[at : at + size]), tile[c], 1, 1) * scale
                if masked:
                    hidden = jnp.concatenate(bias[at : at + size], 0)
                    scores = scores + jnp.concatenate([hidden] * ((c.stop - c.start) // block_q), 1)
                scored.append((scores, _stack(vs, places[at : at + size])))
            top, total = top_ref[:, c], total_ref[:, c]
            for scores, values in scored:
                new = jnp.maximum(top, jnp.max(scores, 0, keepdims=True))
                weights, shrink = jnp.exp2(scores - new), jnp.exp2(top - new)
                total = total * shrink + jnp.sum(weights, 0, keepdims=True)
                acc_ref[:, c] = acc_ref[:, c] * shrink + _dot(values, weights.astype(values.dtype), 0, 0)
                top = new
            top_ref[:, c], total_ref[:, c] = top, total

    _visit(lists, step)
    total = total_ref[...]
    some = total > 0
    _write_tile(out_ref, (acc_ref[...] * (1 / jnp.where(some, total, 1))).T, group)
    lse = jnp.where(some, top_ref[...] + jnp.log2(jnp.where(some, total, 1)), -HIDDEN)
    for h in range(group):
        lse_ref[0, 0, h : h + 1] = lse[:, h * block_q : (h + 1) * block_q]


def _backward_kernel(lists, order, keys, queries, q_ref, do_ref, o_ref, lse_ref, *refs, scale, block_q, group, parts,
                     rule, since, sort):  # fmt: skip
    """As `_forward_kernel`; dk and dv of the whole head stay in VMEM while its query blocks go by."""
    del parts  # there is no running maximum that would hold the scheduler up
    *refs, acc_ref, columns, ks, vs, rows, dk_ref, dv_ref = refs
    given = len(refs) // 2  # keys, dq, sums of keys: 1 + 1 + 1 or 2 + 1 + 2
    keys_in, dq_ref, sums = refs[:given], refs[given], refs[given + 1 :]
    if not sort:
        dk_ref, dv_ref = sums
    ks, vs = _begin(order, keys_in, ks, vs, rows, sort, (dk_ref, dv_ref))
    q, do = _read_tile(q_ref, group), _read_tile(do_ref, group)
    both = do.astype(F32) * _read_tile(o_ref, group).astype(F32)
    delta = jnp.sum(both.T, 0, keepdims=True)
    lse = jnp.concatenate([lse_ref[0, 0, h : h + 1] for h in range(group)], 1)
    acc_ref[...] = jnp.zeros_like(acc_ref)
    _columns(queries, since, rule, columns)
    index = pl.program_id(2) * block_q + lax.broadcasted_iota(jnp.int32, (block_q, BLOCK), 0)

    def step(first, n, masked):
        blocks, places = _places(lists, first, n)
        k, v = _stack(ks, places), _stack(vs, places)
        if masked:
            hidden = jnp.concatenate([_hidden(index, keys, j, columns, since, rule) for j in blocks], 0)
        dk = dv = 0.0
        for c in _groups(group, block_q):
            scores = _dot(k, q[c], 1, 1) * (scale * LOG2_E) - lse[:, c]
            if masked:
                scores = scores + jnp.concatenate([hidden] * ((c.stop - c.start) // block_q), 1)
            weights = jnp.exp2(scores)
            dscores = (weights * (_dot(v, do[c], 1, 1) - delta[:, c])).astype(q.dtype)
            dv = dv + _dot(weights.astype(q.dtype), do[c], 1, 0)
            dk = dk + _dot(dscores, q[c], 1, 0)
            acc_ref[c] = acc_ref[c] + _dot(dscores, k, 0, 0)
        for x, place in enumerate(places):
            part = slice(x * BLOCK, (x + 1) * BLOCK)
            dv_ref[0, place, :] = dv_ref[0, place, :] + dv[part]
            dk_ref[0, place, :] = dk_ref[0, place, :] + dk[part] * scale

    _visit(lists, step)
    _write_tile(dq_ref, acc_ref[...] * scale, group)
    if sort:

        @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
        def _():
            _unsort(order, dk_ref, dv_ref, sums, rows, sort)
