"""Attention for training on TPUs: cycles by the compiler's own schedule, beside splash attention.

    python benchmarks/tpu_static.py [--chips=v5e,v5p,v6e,tpu7x] [--sweep] [--out=results/tpu_static.json]

Needs libtpu (`pip install -e ".[tpu]"`), no TPU. Two tables. The first has the bundles of a chunk of key blocks and of
splash's block of the same size, and which share of them the matrix units must be busy (100: they are the limit). The
second has whole attention, forward and backward: bundles of the schedule times how often the lists of real layouts run
them, the kernels' own sorting and every grid step included, over the same for splash with a causal mask. What XLA does
around either (layout changes, splash's sum of out x dout, our lists, made once for all layers) is left out.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import tpu_schedule as schedule  # noqa: E402
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash  # noqa: E402
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks  # noqa: E402
from machine import provenance, table, write  # noqa: E402
from tpu_layouts import layouts  # noqa: E402

from lt_jax.attention import pallas_train as kernels  # noqa: E402
from lt_jax.attention import planned  # noqa: E402
from lt_jax.lifetimes import Lifetimes  # noqa: E402

HEADS, KV_HEADS, DEPTH = 32, 8, 128
TOKENS = 65536  # of a batch: more than the compiler would put into vector memory as a whole
LENGTHS = (2048, 4096, 16384, 32768)
SPLASH_SIDES = ((512, 512), (1024, 1024))  # splash takes the better of them


def products(chip, pairs) -> float:
    """Cycles of the matrix units for products [m, k] x [k, n], whichever side they hold."""
    return sum(min(chip.product(m, k, n), chip.product(n, k, m)) for m, k, n in pairs)


def ours(chip, parts, length, heads, kv_heads, block_q, directions=2):
    """The two kernels compiled: (forward, backward), `_Cost` each, or the forward one alone."""
    rows = TOKENS // length
    shape = lambda n: jax.ShapeDtypeStruct((rows, length, n, DEPTH), jnp.bfloat16)
    q, k = shape(heads), shape(kv_heads)
    lines = jax.ShapeDtypeStruct((rows, heads, length), jnp.float32)
    death = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    plan = jax.eval_shape(functools.partial(planned, implementation="pallas", block_q=block_q), Lifetimes(death))
    run = dict(scale=DEPTH**-0.5, parts=parts)
    tile = heads // kv_heads * block_q
    keys = lambda n: n * kernels.BLOCK
    work = (
        lambda n: [(keys(n), DEPTH, tile), (DEPTH, keys(n), tile)],
        lambda n: [(keys(n), DEPTH, tile)] * 2 + [(keys(n), tile, DEPTH)] * 2 + [(tile, keys(n), DEPTH)],
    )
    calls = (
        ("lt_attention_forward", kernels.forward, (q, k, k, plan)),
        ("lt_attention_backward", kernels.backward, (q, k, k, plan, q, lines, q)),
    )
    costs = []
    for (name, call, operands), products_of in list(zip(calls, work, strict=True))[:directions]:
        compiled, made = schedule.compile_for(functools.partial(call, **run), operands, chip)
        costs.append(_Cost.of(chip, made[name], products_of, compiled.memory_analysis().temp_size_in_bytes))
    return costs


class _Cost:
    """Cycles of a kernel's parts: a chunk of full blocks, of partial ones, half a chunk, a grid step, a head."""

    @classmethod
    def of(cls, chip, kernel, work, temporaries):
        self = cls()
        loops = kernel.inner()
        visits = [x for x in loops if x.products]
        once = [x for x in loops if not x.products]  # sorting, a pass a key block
        around = [kernel.around(x) for x in once]
        zeroing = () if once else kernel.apart(visits, 1000)  # of sums that are the output
        sizes = kernels.CHUNK, kernels.CHUNK, kernels.CHUNK // 2
        self.ideal = [products(chip, work(n)) for n in sizes]
        self.bundles = [x.bundles for x in visits]
        self.cycles = [max(a, b) for a, b in zip(self.bundles, self.ideal, strict=True)]
        self.step = kernel.grid().bundles - sum(x.bundles for x in (*visits, *around, *zeroing))
        self.head = sum(x.bundles for x in (*around, *zeroing)) - sum(x.bundles for x in once)
        self.block = sum(x.bundles for x in once)
        self.spills, self.temporaries = kernel.spills, temporaries
        return self

    def total(self, full, active, blocks: int) -> float:
        """Cycles of one kv head, from the counts of each of its query blocks."""
        chunk = kernels.CHUNK
        whole = full // chunk
        masked = (active - whole * chunk + chunk // 2 - 1) // chunk
        half = active > (whole + masked) * chunk
        visits = whole * self.cycles[0] + masked * self.cycles[1] + half * self.cycles[2]
        return np.sum(visits + self.step) + self.head + blocks * self.block


def splash_cost(chip, length, heads, kv_heads):
    """Cycles of splash attention, causal, of one row: (forward, forward and backward), its blocks and their shares."""
    best = None
    for side_q, side_k in SPLASH_SIDES:
        if side_q > length:
            continue
        sizes = {name: side_q if "_q" in name else side_k for name in (
            "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute",
            "block_q_dq", "block_kv_dq")}  # fmt: skip
        made = _splash_kernels(chip.topology, tuple(sizes.items()), heads, kv_heads)
        n, parts = length // side_q, {}
        for name, kernel in made.items():
            m, k = side_q, side_k
            work = {"fwd": [(m, DEPTH, k), (m, k, DEPTH)], "dq": [(m, DEPTH, k)] * 2 + [(m, k, DEPTH)],
                    "dkv": [(m, DEPTH, k)] * 2 + [(k, m, DEPTH)] * 2}[name]  # fmt: skip
            ideal = products(chip, work)
            body = min((x for x in kernel.regions if x.products == kernel.grid().products), key=lambda x: x.bundles)
            ends = sum(x.bundles for x in kernel.apart([body]))
            step = kernel.grid().bundles - body.bundles - ends
            visits = n * (n + 1) / 2 * max(body.bundles, ideal)
            parts[name] = (heads * (visits + n * n * step + n * ends), body.bundles, ideal, kernel.spills)
        total = sum(x[0] for x in parts.values())
        if best is None or total < best[1]:
            best = parts["fwd"][0], total, parts, (side_q, side_k)
    return best


@functools.cache
def _splash_kernels(topology, sizes, heads, kv_heads):
    """Compiled at 4,096 tokens: bundles of a block do not depend on the length."""
    length = 4096
    mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
    kernel = splash.make_splash_mha(mask, block_sizes=splash.BlockSizes(**dict(sizes)), head_shards=1, q_seq_shards=1)
    run = jax.vmap(kernel)

    def both(q, k, v, dout):
        out, back = jax.vjp(run, q, k, v)
        return out, back(dout)

    shape = lambda n: jax.ShapeDtypeStruct((TOKENS // length, n, length, DEPTH), jnp.bfloat16)
    chip = next(x for x in schedule.CHIPS.values() if x.topology == topology)
    _, made = schedule.compile_for(both, (shape(heads), shape(kv_heads), shape(kv_heads), shape(heads)), chip)
    found = lambda part: next(kernel for name, kernel in made.items() if part in name)
    return {"fwd": found("splash_mha_fwd"), "dq": found("splash_mha_dq"), "dkv": found("splash_mha_dkv")}


def counts(life, block_q):
    """(full, active) blocks of every query block, [R, nq] each, and how many key blocks there are."""
    plan = jax.jit(functools.partial(planned, implementation="pallas", block_q=block_q))(life)
    return np.asarray(plan.n_full), np.asarray(plan.n_active), plan.blocks.shape[-1]


def share(ideal, bundles) -> float:
    return 100 * min(1.0, ideal / bundles)


def blocks_table(name, chip, cost, peer) -> list[dict]:
    """First table: a chunk of 4 x 128 keys by a tile of queries, and splash's block."""
    rows = []
    for direction, own, theirs in (("forward", cost[0], ("fwd",)), ("backward", cost[1], ("dq", "dkv"))):
        side, parts = peer[3], peer[2]
        bundles, ideal = (sum(parts[x][i] for x in theirs) for i in (1, 2))
        rows.append({
            "chip": name, "pass": direction, "full": own.bundles[0], "matrix units": round(own.ideal[0]),
            "full %": share(own.ideal[0], own.bundles[0]), "partial": own.bundles[1],
            "partial %": share(own.ideal[1], own.bundles[1]), "half": own.bundles[2], "step": own.step,
            "head": own.head, "sort a block": own.block, "spills": own.spills,
            "splash": bundles, "splash block": f"{side[0]} x {side[1]}", "splash %": share(ideal, bundles),
            "splash spills": sum(parts[x][3] for x in theirs),
        })  # fmt: skip
    return rows


def whole_table(name, chip, costs, peers, heads, kv_heads, block_q, chosen) -> list[dict]:
    rows = []
    for length in LENGTHS:
        forward, backward = costs[length > kernels.INSIDE]
        for label, life in chosen(length, kv_heads):
            full, active, blocks = counts(life, block_q)
            per_head = [[cost.total(f, a, blocks) for cost in (forward, backward)]
                        for f, a in zip(full, active, strict=True)]  # fmt: skip
            own = np.mean(per_head, 0) * kv_heads
            peer = peers[length]
            area = active.mean(0).sum() * block_q * kernels.BLOCK
            n = length // 512
            rows.append({
                "chip": name, "layout": label, "length": length, "blocks": float(active.mean()),
                "full": float(full.mean()), "area of causal 512": area / (n * (n + 1) / 2 * 512 * 512),
                "forward Mcycles": own[0] / 1e6, "splash": peer[0] / 1e6, "forward x": own[0] / peer[0],
                "both Mcycles": own.sum() / 1e6, "splash both": peer[1] / 1e6, "both x": own.sum() / peer[1],
                "temporaries MB": (forward.temporaries + backward.temporaries) / 1e6,
            })  # fmt: skip
    return rows


def sweep(name, chip, heads, kv_heads) -> list[dict]:
    """The figures that choose `pallas_train.PARTS`: cycles of the 40-token layout at 4,096 by steps of the softmax."""
    life = next(iter(layouts(4096, kv_heads)))[1]
    rows = []
    for block_q in (128, 256):
        for parts in (1, 2, 4):
            (forward,) = ours(chip, parts, 4096, heads, kv_heads, block_q, 1)
            full, active, blocks = counts(life, block_q)
            total = np.mean([forward.total(f, a, blocks) for f, a in zip(full, active, strict=True)]) * kv_heads
            rows.append({"chip": name, "heads": f"{heads}/{kv_heads}", "block_q": block_q, "parts": parts,
                         "full": forward.bundles[0], "partial": forward.bundles[1], "half": forward.bundles[2],
                         "step": forward.step, "spills": forward.spills, "Mcycles": total / 1e6})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", default=",".join(schedule.CHIPS))
    parser.add_argument("--heads", type=int, default=HEADS)
    parser.add_argument("--kv_heads", type=int, default=KV_HEADS)
    parser.add_argument("--block_q", type=int, default=kernels.BLOCK)
    parser.add_argument("--sweep", action="store_true", help="the figures behind the tuning instead")
    parser.add_argument("--out", type=Path, default=Path("results/tpu_static.json"))
    options = parser.parse_args()
    heads, kv_heads, block_q = options.heads, options.kv_heads, options.block_q
    result = provenance(0, ("jax", "jaxlib", "libtpu"))
    blocks, whole = [], []
    chosen = functools.cache(layouts)
    for name in options.chips.split(","):
        chip = schedule.CHIPS[name]
        if options.sweep:
            blocks += sweep(name, chip, heads, kv_heads)
            print(table(blocks), flush=True)
            continue
        parts = kernels.PARTS[name]
        costs = [ours(chip, parts, n, heads, kv_heads, block_q) for n in (4096, 32768)]
        peers = {length: splash_cost(chip, length, heads, kv_heads) for length in LENGTHS}
        blocks += blocks_table(name, chip, costs[0], peers[4096])
        whole += whole_table(name, chip, costs, peers, heads, kv_heads, block_q, chosen)
        print(table(blocks), table(whole), sep="\n\n", flush=True)
    shape = dict(tokens=TOKENS, heads=heads, kv_heads=kv_heads, head_size=DEPTH, block_q=block_q)
    write(options.out, result | dict(shape=shape, blocks=blocks, whole=whole))


if __name__ == "__main__":
    main()
