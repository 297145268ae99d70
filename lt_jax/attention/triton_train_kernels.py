"""The device side of `triton_train.py`: three Triton kernels over the lists of a `BlockPlan`.

Keys lie in the row as they were born, and tiles of them are gathered by the plan's order. Queries past the end of a row
are the last one over again; what is made of them is not stored, and they weigh nothing in dk and dv.

Some arguments of the helpers are tuples: `plan` the pointers (order, birth, death, key_gist, since, query_gist), the
last three None where the rule has no use for them, and the places where a list's own keys and queries begin; `queries`
what a tile of queries is (index, since, query_gist); `keys` what a tile of keys is (birth, death, key_gist).

D is the head size, WIDTH the next power of two, STRIDE the numbers from one token to the next of the same head.
"""

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1e30)  # score of a hidden pair
LOWEST = tl.constexpr(-1e29)  # where the running maximum starts: hidden pairs weigh exp2(HIDDEN - LOWEST) = 0


@triton.jit
def forward(q, k, v, order, birth, death, key_gist, since, query_gist, blocks, n_full, n_active, out, lse, factor, S,
            NQ, NK, H: tl.constexpr, HKV: tl.constexpr, PER_HEAD: tl.constexpr, RULE: tl.constexpr, D: tl.constexpr,
            WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, QUERIES: tl.constexpr,
            KEYS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """out and lse of QUERIES queries of one head. Grid (H, B, tiles): under a causal rule the longest lists first."""
    h, b, tile = tl.program_id(0), tl.program_id(1), tl.num_programs(2) - 1 - tl.program_id(2)
    index = tile * QUERIES + tl.arange(0, QUERIES)
    unit = _list(b, h // (H // HKV), HKV, PER_HEAD)
    plan = (order, birth, death, key_gist, since, query_gist, unit * NK * BLOCK_K, unit * NQ * BLOCK_Q)
    queries = _queries(plan, index)
    row = tl.minimum(index, S - 1)
    own = b.to(tl.int64) * S * (H * D) + h * D
    keys_at = b.to(tl.int64) * S * (HKV * D) + (h // (H // HKV)) * D
    q_tile = _rows(q + own, row, H * D, D, WIDTH)
    at = unit * NQ + tile * QUERIES // BLOCK_Q
    full, active = tl.load(n_full + at), tl.load(n_active + at)
    acc = tl.zeros((QUERIES, WIDTH), tl.float32)
    top = tl.full((QUERIES,), LOWEST, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc, top, total = _forward_steps(
        acc, top, total, q_tile, k + keys_at, v + keys_at, plan, queries, blocks + at * NK, 0, full, factor, False,
        RULE, HKV * D, D, WIDTH, BLOCK_K, KEYS, PRECISION)  # fmt: skip
    acc, top, total = _forward_steps(
        acc, top, total, q_tile, k + keys_at, v + keys_at, plan, queries, blocks + at * NK, full, active, factor, True,
        RULE, HKV * D, D, WIDTH, BLOCK_K, KEYS, PRECISION)  # fmt: skip
    some = tl.where(total > 0, total, 1.0)
    _store_rows(out + own, index, acc / some[:, None], index < S, H * D, D, WIDTH)
    tl.store(lse + (b * H + h) * S + index, tl.where(total > 0, top + tl.math.log2(some), -HIDDEN), mask=index < S)


@triton.jit
def _forward_steps(acc, top, total, q, k, v, plan, queries, listed, begin, end, factor, MASKED: tl.constexpr,
                   RULE: tl.constexpr, STRIDE: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
                   BLOCK_K: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The softmax (sum of values, maximum, sum of weights) goes on over the listed blocks from `begin` to `end`."""
    PARTS: tl.constexpr = BLOCK_K // KEYS
    for t in tl.range(begin * PARTS, end * PARTS):
        place = tl.load(listed + t // PARTS) * BLOCK_K + (t % PARTS) * KEYS + tl.arange(0, KEYS)
        row = tl.load(plan[0] + plan[6] + place)
        scores = tl.dot(q, tl.trans(_rows(k, row, STRIDE, D, WIDTH)), input_precision=PRECISION) * factor
        if MASKED:
            scores = tl.where(_visible(queries, _keys(plan, place), RULE, plan[4] is not None, False), scores, HIDDEN)
        new = tl.maximum(top, tl.max(scores, 1))
        weights = tl.math.exp2(scores - new[:, None])
        shrink = tl.math.exp2(top - new)
        total = total * shrink + tl.sum(weights, 1)
        values = _rows(v, row, STRIDE, D, WIDTH)
        acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
        top = new
    return acc, top, total


@triton.jit
def backward_queries(q, k, v, out, dout, lse, order, birth, death, key_gist, since, query_gist, blocks, n_full,
                     n_active, dq, delta, factor, scale, S, NQ, NK, H: tl.constexpr, HKV: tl.constexpr,
                     PER_HEAD: tl.constexpr, RULE: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
                     BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
                     PRECISION: tl.constexpr):  # fmt: skip
    """dq of QUERIES queries of one head, and delta, the sum of out * dout of each, for `backward_keys`.

    Grid as that of `forward`.
    """
    h, b, tile = tl.program_id(0), tl.program_id(1), tl.num_programs(2) - 1 - tl.program_id(2)
    index = tile * QUERIES + tl.arange(0, QUERIES)
    unit = _list(b, h // (H // HKV), HKV, PER_HEAD)
    plan = (order, birth, death, key_gist, since, query_gist, unit * NK * BLOCK_K, unit * NQ * BLOCK_Q)
    queries = _queries(plan, index)
    row = tl.minimum(index, S - 1)
    own = b.to(tl.int64) * S * (H * D) + h * D
    line = (b * H + h) * S
    keys_at = b.to(tl.int64) * S * (HKV * D) + (h // (H // HKV)) * D
    q_tile, do = _rows(q + own, row, H * D, D, WIDTH), _rows(dout + own, row, H * D, D, WIDTH)
    sums = tl.sum(_rows(out + own, row, H * D, D, WIDTH).to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta + line + index, sums, mask=index < S)
    lse_tile = tl.load(lse + line + row)
    at = unit * NQ + tile * QUERIES // BLOCK_Q
    full, active = tl.load(n_full + at), tl.load(n_active + at)
    acc = tl.zeros((QUERIES, WIDTH), tl.float32)
    acc = _query_steps(
        acc, q_tile, do, lse_tile, sums, k + keys_at, v + keys_at, plan, queries, blocks + at * NK, 0, full, factor,
        False, RULE, HKV * D, D, WIDTH, BLOCK_K, KEYS, PRECISION)  # fmt: skip
    acc = _query_steps(
        acc, q_tile, do, lse_tile, sums, k + keys_at, v + keys_at, plan, queries, blocks + at * NK, full, active,
        factor, True, RULE, HKV * D, D, WIDTH, BLOCK_K, KEYS, PRECISION)  # fmt: skip
    _store_rows(dq + own, index, acc * scale, index < S, H * D, D, WIDTH)


@triton.jit
def _query_steps(acc, q, do, lse, delta, k, v, plan, queries, listed, begin, end, factor, MASKED: tl.constexpr,
                 RULE: tl.constexpr, STRIDE: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr,
                 KEYS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """dq / scale goes on over the listed key blocks from `begin` to `end`."""
    PARTS: tl.constexpr = BLOCK_K // KEYS
    for t in tl.range(begin * PARTS, end * PARTS):
        place = tl.load(listed + t // PARTS) * BLOCK_K + (t % PARTS) * KEYS + tl.arange(0, KEYS)
        row = tl.load(plan[0] + plan[6] + place)
        k_tile, v_tile = _rows(k, row, STRIDE, D, WIDTH), _rows(v, row, STRIDE, D, WIDTH)
        scores = tl.dot(q, tl.trans(k_tile), input_precision=PRECISION) * factor - lse[:, None]
        if MASKED:
            scores = tl.where(_visible(queries, _keys(plan, place), RULE, plan[4] is not None, False), scores, HIDDEN)
        dweights = tl.dot(do, tl.trans(v_tile), input_precision=PRECISION)
        dscores = tl.math.exp2(scores) * (dweights - delta[:, None])
        acc = tl.dot(dscores.to(k_tile.dtype), k_tile, acc, input_precision=PRECISION)
    return acc


@triton.jit
def backward_keys(q, k, v, dout, lse, delta, order, birth, death, key_gist, since, query_gist, queries, q_full,
                  q_active, dk, dv, factor, scale, S, NQ, NK, H: tl.constexpr, HKV: tl.constexpr,
                  PER_HEAD: tl.constexpr, RULE: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
                  BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
                  PRECISION: tl.constexpr):  # fmt: skip
    """dk and dv of KEYS sorted places of one kv head, each written to its place in the row.

    Grid (HKV, B, tiles): the keys that never die come first, and of them the oldest, which most queries see.
    """
    g, b, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    place = tile * KEYS + tl.arange(0, KEYS)
    unit = _list(b, g, HKV, PER_HEAD)
    plan = (order, birth, death, key_gist, since, query_gist, unit * NK * BLOCK_K, unit * NQ * BLOCK_Q)
    keys, row = _keys(plan, place), tl.load(plan[0] + plan[6] + place)
    own = b.to(tl.int64) * S * (HKV * D) + g * D
    first = g * (H // HKV)  # query head
    heads_at = b.to(tl.int64) * S * (H * D) + first * D
    line = (b * H + first) * S
    k_tile, v_tile = _rows(k + own, row, HKV * D, D, WIDTH), _rows(v + own, row, HKV * D, D, WIDTH)
    at = unit * NK + tile * KEYS // BLOCK_K
    full, active = tl.load(q_full + at), tl.load(q_active + at)
    dk_acc = tl.zeros((KEYS, WIDTH), tl.float32)
    dv_acc = tl.zeros((KEYS, WIDTH), tl.float32)
    dk_acc, dv_acc = _key_steps(
        dk_acc, dv_acc, k_tile, v_tile, q + heads_at, dout + heads_at, lse + line, delta + line, plan, keys,
        queries + at * NQ, 0, full, factor, S, False, RULE, H // HKV, H * D, D, WIDTH, BLOCK_Q, QUERIES,
        PRECISION)  # fmt: skip
    dk_acc, dv_acc = _key_steps(
        dk_acc, dv_acc, k_tile, v_tile, q + heads_at, dout + heads_at, lse + line, delta + line, plan, keys,
        queries + at * NQ, full, active, factor, S, True, RULE, H // HKV, H * D, D, WIDTH, BLOCK_Q, QUERIES,
        PRECISION)  # fmt: skip
    there = place < S  # padding has the place of the last key
    _store_rows(dk + own, row, dk_acc * scale, there, HKV * D, D, WIDTH)
    _store_rows(dv + own, row, dv_acc, there, HKV * D, D, WIDTH)


@triton.jit
def _key_steps(dk, dv, k, v, q, dout, lse, delta, plan, keys, listed, begin, end, factor, S, MASKED: tl.constexpr,
               RULE: tl.constexpr, GROUP: tl.constexpr, STRIDE: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
               BLOCK_Q: tl.constexpr, QUERIES: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """dk / scale and dv go on over the listed query blocks from `begin` to `end`: one step for each of GROUP heads."""
    STEPS: tl.constexpr = BLOCK_Q // QUERIES * GROUP
    for t in tl.range(begin * STEPS, end * STEPS):
        head = t % GROUP
        index = tl.load(listed + t // STEPS) * BLOCK_Q + (t % STEPS) // GROUP * QUERIES + tl.arange(0, QUERIES)
        row = tl.minimum(index, S - 1)
        q_tile, do = _rows(q + head * D, row, STRIDE, D, WIDTH), _rows(dout + head * D, row, STRIDE, D, WIDTH)
        lse_tile = tl.load(lse + head * S + index, mask=index < S, other=-HIDDEN)
        scores = tl.dot(k, tl.trans(q_tile), input_precision=PRECISION) * factor - lse_tile[None, :]
        if MASKED:
            scores = tl.where(_visible(_queries(plan, index), keys, RULE, plan[4] is not None, True), scores, HIDDEN)
        weights = tl.math.exp2(scores)
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
        dweights = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        dscores = weights * (dweights - tl.load(delta + head * S + row)[None, :])
        dk = tl.dot(dscores.to(q_tile.dtype), q_tile, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def _visible(queries, keys, RULE: tl.constexpr, SINCE: tl.constexpr, KEYS_FIRST: tl.constexpr):
    """`lifetimes.visible`. Padding keys are dead from 0 on, so that a birth below 0 need not be asked for."""
    index, since, query_gist = queries
    birth, death, key_gist = keys
    index = tl.expand_dims(index, 1 - KEYS_FIRST)
    birth, death = tl.expand_dims(birth, KEYS_FIRST), tl.expand_dims(death, KEYS_FIRST)
    seen = birth <= index
    if RULE != "causal":
        key_gist, query_gist = tl.expand_dims(key_gist, KEYS_FIRST), tl.expand_dims(query_gist, 1 - KEYS_FIRST)
        same = (key_gist == query_gist) & (query_gist >= 0)
        if RULE == "bidirectional":
            seen = seen | same
        else:
            seen = seen & ((birth == index) | (same == 0))
    seen = seen & (index < death)
    if SINCE:
        seen = seen & (birth >= tl.expand_dims(since, 1 - KEYS_FIRST))
    return seen


@triton.jit
def _list(b, g, HKV: tl.constexpr, PER_HEAD: tl.constexpr):
    """Which list the queries of a row and kv head follow."""
    unit = b
    if PER_HEAD:
        unit = b * HKV + g
    return unit


@triton.jit
def _keys(plan, place):
    at = plan[6] + place
    return tl.load(plan[1] + at), tl.load(plan[2] + at), _read(plan[3], at)


@triton.jit
def _queries(plan, index):
    at = plan[7] + index
    return index, _read(plan[4], at), _read(plan[5], at)


@triton.jit
def _read(pointer, at):
    """What a pointer has at these places; anything if it is None, because Triton 3.6 cannot return None."""
    if pointer is None:
        return at
    else:
        return tl.load(pointer + at)


@triton.jit
def _rows(pointer, index, STRIDE: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Tokens `index` of a head [len(index), WIDTH]; columns from D on are 0."""
    d = tl.arange(0, WIDTH)
    at = pointer + index[:, None] * STRIDE + d[None, :]
    if WIDTH == D:
        return tl.load(at)
    else:
        return tl.load(at, mask=d[None, :] < D, other=0.0)


@triton.jit
def _store_rows(pointer, index, rows, there, STRIDE: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """The way back from `_rows`, of tokens that are `there`."""
    d = tl.arange(0, WIDTH)
    mask = there[:, None] & (d[None, :] < D)
    tl.store(pointer + index[:, None] * STRIDE + d[None, :], rows.to(pointer.dtype.element_ty), mask=mask)
