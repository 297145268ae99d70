"""Cutting rows down to their budget on TPUs: what the compiler makes of the plain forms, and of the Pallas kernels.

    python benchmarks/tpu_cache.py [--chips=v5e,v5p,v6e,tpu7x] [--out=results/tpu_cache.json]

Needs libtpu (`pip install -e ".[tpu]"`), no TPU. R-KV, budget 512 and buffer 128, 8 rows of a cache of 64, 28 layers,
bfloat16, head size 128. Cycles are those of `tpu_program`: of every operation its scheduled bundles or its bytes,
whichever take longer; for the kernels the matrix units' time too. "compaction" moves the keys, "redundancy" is R-KV's
term for all layers, "eviction" all of it: scores, choice, books, records, keys. v5p: of a chip, whose two cores share
the work. Bytes of memory: those that the program moves.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import tpu_program as program  # noqa: E402
import tpu_schedule as schedule  # noqa: E402 - before anything that loads libtpu
from jax import lax  # noqa: E402
from machine import provenance, table, write  # noqa: E402

from lt_jax import cache as slots  # noqa: E402
from lt_jax.cache import kv_cache, pallas_compact  # noqa: E402
from lt_jax.cache.policies import pallas_redundancy, published, redundancy  # noqa: E402
from lt_jax.models.presets import PRESETS  # noqa: E402

LAYERS, BATCH, ROWS, SLOTS, SIZE, BUDGET = 28, 64, 8, 640, 128, 512
CORES = {"v5p": 2}


def compaction(heads: int, kernel: bool):
    k = jax.ShapeDtypeStruct((LAYERS, BATCH, heads, SLOTS, SIZE), jnp.bfloat16)
    whole = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    shapes = (k, k, whole(LAYERS, ROWS, heads, SLOTS), whole(LAYERS, ROWS, heads), whole(ROWS))
    return pallas_compact.moved if kernel else kv_cache.gathered, shapes, (0, 1)


def redundant(heads: int, kernel: bool):
    run = functools.partial((pallas_redundancy if kernel else redundancy).charges, threshold=0.5)
    k = jax.ShapeDtypeStruct((LAYERS, ROWS, heads, SLOTS, SIZE), jnp.bfloat16)
    return lambda k, alive: lax.map(lambda x: run(*x), (k, alive)), (k, jax.ShapeDtypeStruct(k.shape[:-1], bool)), ()


def eviction(heads: int, kernel: bool):
    how = published("rkv", BUDGET, SLOTS - BUDGET)
    model = PRESETS["qwen3-8b"].replace(dtype="bfloat16", layers=LAYERS, kv_heads=heads)
    cache = jax.eval_shape(lambda: slots.empty_evicting(model, BATCH, SLOTS, how, 4608, False))
    row = lambda dtype: jax.ShapeDtypeStruct((ROWS,), dtype)

    def run(cache, index, draw, due, rows):
        forms = kv_cache.pallas_compact.takes, redundancy.pallas_redundancy.takes
        if not kernel:
            pallas_compact.takes = pallas_redundancy.takes = lambda k: False
        try:
            return slots.evict(cache, how, index, draw, due, rows)
        finally:
            pallas_compact.takes, pallas_redundancy.takes = forms

    return run, (cache, row("int32"), row("uint32"), row("bool"), row("int32")), (0,)


WHAT = {"compaction": compaction, "redundancy": redundant, "eviction": eviction}


def kernels_of(heads: int) -> dict:
    """What only we know of our kernels: {name: (trips of open loops, bytes, matrix products)} of a call."""
    key = SLOTS * SIZE * 2
    chunks = BUDGET // pallas_compact.CHUNK, (SLOTS - BUDGET) // pallas_compact.CHUNK
    pairs = ROWS * heads * SLOTS * (-(-SLOTS // 128))  # rows through a matrix unit that holds 128 keys
    return {
        "lt_compact": (chunks, 4 * LAYERS * ROWS * heads * key, 0),
        "lt_redundancy": ((), ROWS * heads * (key + 8 * SLOTS), pairs * 128),
    }


def measure(name: str, chip, what: str, heads: int, kernel: bool) -> dict:
    cores, known = CORES.get(name, 1), kernels_of(heads)
    trips, moved = ({k: v[i] for k, v in known.items()} for i in (0, 1))
    compiled, operations = program.compile_for(*_first(WHAT[what](heads, kernel), chip), trips, moved)
    rate = chip.bytes_per_cycle() * cores
    floor = lambda x: known[x.name.split(".")[0]][2] / 128 * chip.product(1, SIZE, 128) / cores if (
        x.name.split(".")[0] in known) else 0  # fmt: skip
    cycles = sum(max(x.cycles(rate), x.times * floor(x)) for x in operations)
    scheduled = sum(x.times * x.bundles for x in operations)
    bytes_ = sum(x.times * x.moved for x in operations)
    memory = compiled.memory_analysis()
    return {
        "chip": name, "what": what, "kv heads": heads, "form": "kernel" if kernel else "plain",
        "Mcycles": cycles / 1e6, "ms": 1e3 * cycles / chip.clock, "scheduled": scheduled / 1e6, "GB": bytes_ / 1e9,
        "memory": bytes_ / rate / 1e6, "spills": sum(x.spills for x in operations if x.name.split(".")[0] in known),
        "temporaries MB": memory.temp_size_in_bytes / 1e6,
        "in place": "yes" if memory.alias_size_in_bytes else "",
    }  # fmt: skip


def _first(case, chip):
    function, shapes, donate = case
    return function, shapes, chip, donate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", default=",".join(schedule.CHIPS))
    parser.add_argument("--heads", default="4,8", help="kv heads")
    parser.add_argument("--out", type=Path, default=Path("results/tpu_cache.json"))
    options = parser.parse_args()
    rows = []
    for name in options.chips.split(","):
        for what in WHAT:
            for heads in map(int, options.heads.split(",")):
                pair = [measure(name, schedule.CHIPS[name], what, heads, kernel) for kernel in (False, True)]
                pair[1]["x"] = pair[0]["Mcycles"] / pair[1]["Mcycles"]
                rows += pair
                print(table(pair), flush=True)
    print(table(rows))
    settings = dict(layers=LAYERS, batch=BATCH, rows=ROWS, slots=SLOTS, budget=BUDGET, head_size=SIZE)
    write(options.out, provenance(0, ("jax", "jaxlib", "libtpu")) | dict(settings=settings, lines=rows))


if __name__ == "__main__":
    main()
