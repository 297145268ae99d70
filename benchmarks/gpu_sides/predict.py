"""What the work of `benchmarks/gpu.py` must move and compute at least, beside published limits of cards.

A time here is a floor: the greater of bytes over bandwidth and operations over the matrix rate, nothing else counted.
Attention is counted by the tiles that the kernels visit.
"""

from __future__ import annotations

from benchmarks.deaths import NEVER, thoughts, visited
from benchmarks.gpu_sides.sizes import FULL, Sizes

# Bytes/s of memory and FLOP/s of dense bfloat16 products, as published.
CARDS = {"H100": (3.35e12, 989e12), "H200": (4.8e12, 989e12)}
SIDES = (128, 64)  # queries and keys of a tile of the kernels
FORWARD, BACKWARD, AGAIN = 4, 10, 4  # operations for each pair, head and number; what the backward pass computes twice


def lines(sizes: Sizes = FULL) -> list[dict]:
    """A line for each work: bytes, operations, and the least time on each card in milliseconds, with what limits it."""
    out, shape, mean = [], sizes.model, sizes.prompt + sizes.new / 2

    def line(work: str, moved: float, flops: float, tokens: float = 0) -> None:
        times = {card: max(moved / bandwidth, flops / rate) for card, (bandwidth, rate) in CARDS.items()}
        least = {f"{card}, ms": f"{took * 1e3:.3g}" for card, took in times.items()}
        most = {f"{card}, tokens/s": f"{tokens / took:,.0f}" if tokens else "" for card, took in times.items()}
        bandwidth, rate = CARDS["H100"]
        waits = "memory" if moved / bandwidth > flops / rate else "products"
        needs = {"GB": f"{moved / 1e9:.3g}", "GFLOP": f"{flops / 1e9:,.0f}", "limit": waits}
        out.append({"work": work} | needs | least | most)

    for rows in sorted(sizes.rows):
        line(f"decode step of 1.5B, {rows} row{'s' * (rows > 1)} of {mean:.0f} keys", shape.step_bytes(rows, mean),
             shape.step_flops(rows, mean), rows)  # fmt: skip
    rows, length, _ = sizes.train[0]
    tokens = rows * length
    line(f"SFT step of 1.5B, {rows} x {length:,}", shape.train_bytes(), shape.train_flops(tokens), tokens)
    line("the same, layers computed again", shape.train_bytes(), shape.train_flops(tokens) * 4 / 3, tokens)
    for rows, length in sizes.attention:
        for layout in ("thoughts of 40", "causal"):
            blocks, pairs = pairs_of(rows, length, layout)
            each = rows * sizes.heads * sizes.head_dim
            moved = 2 * rows * length * sizes.head_dim * (2 * sizes.heads + 2 * sizes.kv_heads)
            work = f"attention, {layout}, {rows} x {length:,} ({100 * pairs / blocks:.0f} % of its pairs visible)"
            line(f"{work}, forward", moved, FORWARD * each * blocks)
            line(f"{work}, forward + backward", 3 * moved, (FORWARD + BACKWARD + AGAIN) * each * blocks)
    return out


def pairs_of(rows: int, length: int, layout: str) -> tuple[float, float]:
    """(query, key) pairs of a row that are in tiles visited, and that are visible."""
    death = thoughts(rows, length)
    if layout == "causal":
        death[:] = NEVER
    blocks, pairs = visited(death, *SIDES)
    return blocks * SIDES[0] * SIDES[1], pairs


def markdown() -> str:
    """The lines as a table for docs/performance.md."""
    rows = lines()
    show = lambda cells: "| " + " | ".join(cells) + " |"
    return "\n".join([show(rows[0]), "|" + "---|" * len(rows[0]), *(show(row.values()) for row in rows)])
