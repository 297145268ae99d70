"""Attention over the cache on an NVIDIA GPU: what the device does.

    write       a program takes some tokens' part of one head: turns it, and puts it where it belongs
    attend      a program takes a tile of the queries that share a kv head, and a part of their row's slots; the last of
                those parts to be done adds them up
    received    a program takes a block of slots of a kv head, and all queries of the row that share it

Queries lie as they come, [R, T, H, D]: row m of a tile's product is token m // G, and head m % G of the group. A slot's
K and V are loaded if any query of its row sees it, so that what the others hold never matters. What is seen is a mask;
scores and what is known of them (`line`) are logarithms to the base 2.
"""

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1e30)  # the score of a key that is not seen: whatever is the largest, exp2 of the distance is 0,
LOWEST = tl.constexpr(-1e29)  # and this is the largest of a query that sees nothing
UNIT = tl.constexpr(64)  # slots that a capacity is a multiple of


@triton.jit
def write(fresh, cos, sin, q_norm, k_norm, keys_in, values_in, rows, start, q, keys, values, count, first, blocks, eps,
          N, T: tl.constexpr, H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
          TOKENS: tl.constexpr, COUNTS: tl.constexpr):  # fmt: skip
    """grid (tiles of `TOKENS` of the N = R * T tokens, H + 2 HKV).

    fresh [N, H + 2 HKV, D] as projected; cos, sin [N, D / 2] or None; norms [D] or None; q [N, H, D]; count [COUNTS].
    Norm and rotation are in float32, rounded to the type of `fresh` after each, as the rest of the library does.
    """
    head = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    d = tl.arange(0, HALF)
    inside = (token[:, None] < N) & (d[None, :] < D // 2)
    at = fresh + (token[:, None] * (H + 2 * HKV) + head).to(tl.int64) * D + d[None, :]
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + D // 2, mask=inside, other=0.0).to(tl.float32)
    kind = fresh.dtype.element_ty
    if head < H + HKV:
        if q_norm is not None:
            norm = k_norm
            if head < H:
                norm = q_norm
            scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
            of_a = tl.load(norm + d, mask=d < D // 2, other=0.0).to(tl.float32)[None, :]
            of_b = tl.load(norm + D // 2 + d, mask=d < D // 2, other=0.0).to(tl.float32)[None, :]
            a, b = (a * scale * of_a).to(kind).to(tl.float32), (b * scale * of_b).to(kind).to(tl.float32)
        if cos is not None:
            turn = token[:, None] * (D // 2) + d[None, :]
            c, s = tl.load(cos + turn, mask=inside, other=0.0), tl.load(sin + turn, mask=inside, other=0.0)
            a, b = (a * c - b * s).to(kind).to(tl.float32), (b * c + a * s).to(kind).to(tl.float32)
    if head < H:
        at_q = (token[:, None] * H + head).to(tl.int64) * D + d[None, :]
        tl.store(q + at_q, a.to(kind), mask=inside)
        tl.store(q + at_q + D // 2, b.to(kind), mask=inside)
    else:
        r = token // T
        row = r
        if rows is not None:
            row = tl.load(rows + r, mask=token < N, other=0)
        slot = tl.load(start + r, mask=token < N, other=0) + token % T
        place = ((first + row) * HKV + (head - H) % HKV).to(tl.int64) * (blocks * UNIT) + slot
        to = place[:, None] * D + d[None, :]
        stored = keys.dtype.element_ty
        if head < H + HKV:
            tl.store(keys + to, a.to(stored), mask=inside)
            tl.store(keys + to + D // 2, b.to(stored), mask=inside)
        else:
            tl.store(values + to, a.to(stored), mask=inside)
            tl.store(values + to + D // 2, b.to(stored), mask=inside)
    if count is not None:
        if (tl.program_id(0) == 0) & (head == 0):
            tl.store(count + tl.arange(0, COUNTS), tl.zeros((COUNTS,), tl.int32))


@triton.jit
def attend(q, keys, values, rows, shown, mask, bound, count, out, part, line, lse, done, first, blocks, R, parts,
           T: tl.constexpr, G: tl.constexpr, HKV: tl.constexpr, KB: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
           BM: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr, TOGETHER: tl.constexpr, FACTOR: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """grid (parts, HKV * tiles of BM queries, rows of `out`); rows from R on see nothing.

    shown [R, KB, C]: slots that any query of the row sees; mask [R, KB, T, C], or None for one token, where they are
    the same. lse [R, HKV, T * G] or None. Of every program part [.., ROWS, D] and line [.., ROWS], normed sums and the
    logarithm of what they were divided by; count, which is done, [HKV * tiles * R], zeros. All None for one part.
    """
    split, own, r = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    TILES: tl.constexpr = (G * T + BM - 1) // BM
    g, tile = own // TILES, own % TILES
    there = tl.minimum(r, R - 1)
    n = tl.where(r < R, tl.load(bound + there), 0)
    chunks = tl.cdiv(n, BN)
    per = tl.maximum(tl.cdiv(chunks, parts), 1)
    used = tl.maximum(tl.cdiv(chunks, per), 1)  # programs that have something to do
    if split >= used:
        return
    C = blocks * UNIT
    i = tl.arange(0, BM)
    m = tile * BM + i
    d = tl.arange(0, DP)
    real = m < G * T
    whole = real[:, None] & (d[None, :] < D)
    x = tl.load(q + _query(there, g, m, T, G, HKV)[:, None] * D + d[None, :], mask=whole, other=0.0)
    row = there
    if rows is not None:
        row = tl.load(rows + there)
    base = ((first + row) * HKV + g).to(tl.int64) * C * D
    books = (r * KB + (g if KB > 1 else 0)).to(tl.int64) * C
    acc = tl.zeros((BM, DP), tl.float32)
    top = tl.full((BM,), LOWEST, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for chunk in tl.range(split * per, tl.minimum(split * per + per, chunks)):
        slot = chunk * BN + tl.arange(0, BN)
        show = tl.load(shown + books + slot, mask=slot < n, other=0) != 0
        s = _scores(x, keys + base, slot, show, mask, books, m, real, T, G, C, D, DP, FACTOR, PRECISION)
        v = tl.load(values + base + slot[:, None] * D + d[None, :], mask=show[:, None] & (d[None, :] < D), other=0.0)
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.math.exp2(s - new[:, None])
        fade = tl.math.exp2(top - new)
        total = total * fade + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
        top = new
    some = total > 0
    acc = acc / tl.where(some, total, 1.0)[:, None]
    found = tl.where(some, top + tl.math.log2(tl.where(some, total, 1.0)), LOWEST)
    if used == 1:
        at = _query(r, g, m, T, G, HKV)[:, None] * D + d[None, :]
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=whole)
        if lse is not None:
            tl.store(lse + (r * HKV + g) * (G * T) + m, found, mask=m < tl.where(r < R, G * T, 0))
    if done is not None:
        if used > 1:
            group = (r * HKV + g) * TILES + tile
            to = (group * parts + split) * ROWS + i
            tl.store(line + to, found, mask=real)
            tl.store(part + to.to(tl.int64)[:, None] * D + d[None, :], acc, mask=whole)
            # All threads' stores are before the barrier, the barrier before the atom, which releases them to the whole
            # GPU; the program that finds all others done has acquired theirs, and its threads read after the atom,
            # past the first cache.
            tl.debug_barrier()
            before = tl.atomic_add(done + group, 1, sem="acq_rel", scope="gpu")
            tl.debug_barrier()
            if before == used - 1:
                _merge(part, line, out, lse, group * parts, used, r, g, tile * BM, T, G, HKV, D, DP, ROWS, TOGETHER)


@triton.jit
def _query(r, g, m, T: tl.constexpr, G: tl.constexpr, HKV: tl.constexpr):
    """Place in [R, T, H] of the query that is row m of its kv head's product."""
    return (r * T + m // G) * (HKV * G) + g * G + m % G


@triton.jit
def _scores(x, keys, slot, show, mask, books, m, real, T: tl.constexpr, G: tl.constexpr, C, D: tl.constexpr,
            DP: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Queries x [BM, DP] by the keys of some slots [BN], `HIDDEN` where they are not seen."""
    d = tl.arange(0, DP)
    k = tl.load(keys + slot[None, :] * D + d[:, None], mask=show[None, :] & (d[:, None] < D), other=0.0)
    s = tl.dot(x.to(k.dtype), k, input_precision=PRECISION) * FACTOR
    if mask is None:
        seen = show[None, :]
    else:
        places = (books * T + (m // G) * C)[:, None] + slot[None, :]
        seen = tl.load(mask + places, mask=real[:, None] & show[None, :], other=0) != 0
    return tl.where(seen, s, HIDDEN)


@triton.jit
def _merge(part, line, out, lse, first, used, r, g, begin, T: tl.constexpr, G: tl.constexpr, HKV: tl.constexpr,
           D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, TOGETHER: tl.constexpr):  # fmt: skip
    """Adds up what the parts `first`.. of a tile found, `TOGETHER` at once, always in the same order."""
    m = begin + tl.arange(0, ROWS)
    real = m < G * T
    d = tl.arange(0, DP)
    whole = real[:, None] & (d[None, :] < D)
    acc = tl.zeros((ROWS, DP), tl.float32)
    top = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for begun in tl.range(0, used, TOGETHER):
        split = begun + tl.arange(0, TOGETHER)
        there = (split < used)[:, None] & real[None, :]
        at = (first + split)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        own = tl.load(line + at, mask=there, other=HIDDEN, cache_modifier=".cg")
        x = tl.load(part + at.to(tl.int64)[:, :, None] * D + d[None, None, :],
                    mask=there[:, :, None] & (d[None, None, :] < D), other=0.0, cache_modifier=".cg")  # fmt: skip
        new = tl.maximum(top, tl.max(own, 0))
        w = tl.math.exp2(own - new[None, :])
        fade = tl.math.exp2(top - new)
        total = total * fade + tl.sum(w, 0)
        acc = acc * fade[:, None] + tl.sum(x * w[:, :, None], 0)
        top = new
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + _query(r, g, m, T, G, HKV)[:, None] * D + d[None, :], acc.to(out.dtype.element_ty), mask=whole)
    if lse is not None:
        found = tl.where(top > LOWEST, top + tl.math.log2(tl.where(total > 0, total, 1.0)), LOWEST)
        tl.store(lse + (r * HKV + g) * (G * T) + m, found, mask=real)


@triton.jit
def received(q, keys, rows, shown, mask, bound, lse, sums, first, blocks, T: tl.constexpr, G: tl.constexpr,
             HKV: tl.constexpr, KB: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
             BN: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """grid (blocks of BN slots, HKV, R). As `attend`; sums [R, HKV, C], zeros where a slot is not seen."""
    block, g, r = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    C = blocks * UNIT
    n = tl.load(bound + r)
    slot = block * BN + tl.arange(0, BN)
    d = tl.arange(0, DP)
    books = (r * KB + (g if KB > 1 else 0)).to(tl.int64) * C
    show = tl.load(shown + books + slot, mask=slot < n, other=0) != 0
    row = r
    if rows is not None:
        row = tl.load(rows + r)
    base = ((first + row) * HKV + g).to(tl.int64) * C * D
    found = tl.zeros((BN,), tl.float32)
    queries = tl.where(block * BN < n, G * T, 0)
    for begin in tl.range(0, queries, BM):
        m = begin + tl.arange(0, BM)
        real = m < G * T
        at = _query(r, g, m, T, G, HKV)[:, None] * D + d[None, :]
        x = tl.load(q + at, mask=real[:, None] & (d[None, :] < D), other=0.0)
        s = _scores(x, keys + base, slot, show, mask, books, m, real, T, G, C, D, DP, FACTOR, PRECISION)
        whole = tl.load(lse + (r * HKV + g) * (G * T) + m, mask=real, other=-HIDDEN)
        found += tl.sum(tl.math.exp2(s - whole[:, None]), 0)
    tl.store(sums + (r * HKV + g).to(tl.int64) * C + slot, found, mask=slot < C)
