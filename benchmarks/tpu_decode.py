"""Decoding attention on TPUs: bundles by the compiler's schedule against what HBM takes, and bytes moved.

    python benchmarks/tpu_decode.py [--chips=v5e,v5p,v6e,tpu7x] [--sweep] [--out=results/tpu_decode.json]

Needs libtpu (`pip install -e ".[tpu]"`), no TPU. The first table has the bundles of everything that is done for a row
of full length, over its blocks of 256 slots of one kv head, beside the cycles in which HBM delivers such a block: where
these are more (`bound` above 1), the kernel waits for memory and for nothing else. A row that is not full pays `tail`
more for every tile behind its length, one whose heads have holes pays `holes` more a block. Heads of 64 and 80 lie in
HBM padded to 128, which `HBM` leaves out and the second table counts: it has the bytes that a call moves over those of
the visible keys and values.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import tpu_schedule as schedule  # noqa: E402
from machine import provenance, table, write  # noqa: E402

from lt_jax.attention import pallas_decode as kernel  # noqa: E402

ROWS, LAYERS, DEPTH, SIDE = 512, 2, 128, 256  # enough rows that the compiler leaves the cache in HBM
BASE = dict(kv_heads=8, share=4, capacity=640)
VARIANTS = {
    "bfloat16": {},
    "received": dict(received=True),
    "masks": dict(masks=8),
    "lengths per head": dict(lengths=8),
    "received, masks": dict(received=True, masks=8),
    "int8": dict(dtype="int8"),
    "int8, received": dict(dtype="int8", received=True),
    "4 kv heads of 7": dict(kv_heads=4, share=7),
    "2 kv heads of 6": dict(kv_heads=2, share=6),
    "2304 slots": dict(capacity=2304),
    "2304 slots, received": dict(capacity=2304, received=True),
    "heads of 64": dict(size=64),
    "heads of 80": dict(size=80),
    "float32": dict(dtype="float32"),
}
SWEEP = {
    f"{block} of {capacity}, {heads}": dict(block=block, capacity=capacity, kv_heads=heads, share=4)
    for block, capacity in ((256, 2304), (384, 2304), (512, 2560), (768, 2304), (640, 640), (768, 768))
    for heads in (8, 4, 2, 1)
}


def operands(kv_heads=8, share=4, capacity=640, size=DEPTH, dtype="bfloat16", lengths=1, masks=0, received=False,
             block=None):  # fmt: skip
    """(shapes by name, options) for `pallas_decode.decode`."""
    shape = jax.ShapeDtypeStruct
    cache = shape((LAYERS, ROWS, kv_heads, capacity, size), dtype)
    kept = "float32" if dtype == "float32" else "bfloat16"
    shapes = dict(q=shape((ROWS, kv_heads * share, size), kept), keys=cache, values=cache)
    shapes |= dict(lengths=shape((ROWS, lengths), jnp.int32))
    if masks:
        shapes |= dict(visible=shape((ROWS, masks, capacity), jnp.bool_))
    if dtype == "int8":
        shapes |= dict(scales=(shape(cache.shape[:4], jnp.float32),) * 2)
    return shapes, dict(received=received, block=block)


def form_of(shapes, options) -> kernel.Form:
    given = [shapes.get(name) for name in ("q", "keys", "lengths", "visible")]
    return kernel.form_of(*given, options["received"], False, options["block"])


def moved(form: kernel.Form, lengths) -> float:
    """Bytes that a call moves for lengths [R, 1 or Hkv], the lanes that pad a head included."""
    wide = -(-form.size // 128) * 128
    tiles = -(-np.asarray(lengths) // form.granule) * form.granule * (form.kv_heads // form.lengths)
    cache = 2 * tiles.sum() * wide * form.dtype.itemsize
    if form.quantised:
        cache += 2 * 4 * form.kv_heads * (-(-np.asarray(lengths).max(1) // 128) * 128).sum()
    tile = 2 * form.kv_heads * form.tile * wide * (4 if form.dtype == jnp.float32 else 2)
    slots = 4 * form.slots * (form.masks + form.kv_heads * form.received)
    return cache + form.padded * (tile + slots + 4 * (3 + form.lengths))


def needed(form: kernel.Form, lengths) -> float:
    """Bytes of the visible keys and values, and of their scales."""
    line = form.size * form.dtype.itemsize + 4 * form.quantised
    return 2.0 * np.sum(lengths) * (form.kv_heads // form.lengths) * line


class Loop:
    """A loop's body: bundles, those of inner loops included; whether the matrix units work in it; the loops in it."""

    def __init__(self, start: int, end: int, products: bool):
        self.start, self.end, self.products, self.inner = start, end, products, []

    @property
    def bundles(self) -> int:
        return self.end - self.start

    @property
    def own(self) -> int:
        return self.bundles - sum(x.bundles for x in self.inner)


def grid_of(path: str) -> Loop:
    """The grid's loop. Loops begin at a label LB and end behind the branch back to the region that begins there."""
    begins, loops, products, here, head = {}, [], [], 0, -1
    for line in open(path, errors="replace"):
        match = re.match(r"^\s*(0x[0-9a-f]+|0)\s+(\w\w)?\s*:", line)
        if match:
            here = int(match[1], 16)
            head = here if match[2] == "LB" else head
        if "vmatmul" in line:
            products.append(here)
        if here == head:
            begins.update((number, here) for number in re.findall(r"Start region (\d+)", line))
        back = re.search(r"target = \$region(\d+)", line)
        if match and back and back[1] in begins:
            loops.append((begins[back[1]], here + 4))  # branches take effect after three bundles
    made = [Loop(a, b, any(a <= x < b for x in products)) for a, b in loops]
    for loop in sorted(made, key=lambda x: (x.start, -x.end)):
        around = [x for x in made if x is not loop and x.start <= loop.start and loop.end <= x.end]
        if around:
            min(around, key=lambda x: x.bundles).inner.append(loop)
    return max(made, key=lambda x: x.bundles)


def cost(grid: Loop, form: kernel.Form) -> dict:
    """Bundles of a row of full length with its share of a grid step, of a tile of its tail, of the holes of a row."""
    stretches = form.kv_heads // form.together
    row = max((x for x in grid.inner if x.products), key=lambda x: x.bundles)
    found = dict(tail=0, holes=0)

    def piece(loop):
        total, rest = loop.own, []
        for part in loop.inner:
            if part.products:
                total += stretches * part.bundles
            else:
                rest.append(part)
        if form.lengths > 1:  # copies started, and waited for
            total += form.kv_heads * (rest.pop(0).bundles + rest.pop(0).bundles)
        if form.cleans and form.masks > 1:
            found["holes"] = form.kv_heads * rest.pop(0).bundles
        if rest and form.lengths > 1:
            total += form.kv_heads * rest[0].own
            rest = rest[0].inner
        found["tail"] = rest[0].bundles if rest else 0
        return total

    if form.pieces == 1:
        total = piece(row)
    else:
        work = max((x for x in row.inner if x.products), key=lambda x: x.bundles)
        total, rest = row.own + form.pieces * piece(work), [x for x in row.inner if x is not work]
        if stretches > 1:
            total += stretches * rest.pop(0).bundles  # the outputs
        for part in rest:  # what was received
            total += form.pieces * (part.own + stretches * sum(x.bundles for x in part.inner))
    return found | dict(row=total + grid.own / form.group)


def measure(name: str, variant: str, how: dict) -> dict:
    """One line of the first table."""
    chip = schedule.CHIPS[name]
    shapes, options = operands(**(BASE | how))
    names, form = list(shapes), form_of(shapes, options)
    run = lambda *x: kernel.decode(**dict(zip(names, x, strict=True)), layer=1, interpret=False, **options)
    schedule.compile_for(run, tuple(shapes.values()), chip)
    path = next(path for made, path in schedule.final_bundles() if "lt_decode" in made)
    found = cost(grid_of(path), form)
    bundles = found["row"] / (form.kv_heads * form.capacity / SIDE)
    hbm = needed(form, [[SIDE]] if form.lengths == 1 else [[SIDE] * form.lengths]) / form.kv_heads
    hbm /= chip.bytes_per_cycle()
    holes = found["holes"] / (form.kv_heads * form.block / SIDE)
    return {"chip": name, "variant": variant, "piece": form.block, "buffers": form.buffers, "bundles": bundles,
            "HBM": hbm, "bound": hbm / bundles, "tail": found["tail"], "holes": holes,
            "spills": schedule.spills(path)}  # fmt: skip


def bytes_table() -> list[dict]:
    """Second table: rows that are full, and ragged ones as under a budget of 512 with a buffer of 128."""
    rng = np.random.default_rng(0)
    ragged = rng.integers(512, 641, (ROWS, 8))
    short = rng.integers(1, 641, (ROWS, 8))
    rows = []
    for variant in ("bfloat16", "received, masks", "lengths per head", "int8", "int8, received", "4 kv heads of 7",
                    "2 kv heads of 6", "heads of 64"):  # fmt: skip
        form = form_of(*operands(**(BASE | VARIANTS[variant])))
        line = {"variant": variant}
        for label, lengths in (("640", np.full((ROWS, 8), 640)), ("512 to 640", ragged), ("1 to 640", short)):
            own = lengths[:, : form.lengths]
            line[label] = moved(form, own) / needed(form, own)
        rows.append(line)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", default=",".join(schedule.CHIPS))
    parser.add_argument("--variants", help="names of the first table, with ; between them")
    parser.add_argument("--sweep", action="store_true", help="the figures that choose the size of a piece")
    parser.add_argument("--out", type=Path, default=Path("results/tpu_decode.json"))
    options = parser.parse_args()
    every = SWEEP if options.sweep else VARIANTS
    chosen = options.variants.split(";") if options.variants else every
    rows = []
    for name in options.chips.split(","):
        rows += [measure(name, variant, every[variant]) for variant in chosen]
        print(table(rows), flush=True)
    moves = bytes_table()
    print(table(moves))
    shape = dict(rows=ROWS, head_size=DEPTH, **BASE)
    write(options.out, provenance(0, ("jax", "jaxlib", "libtpu")) | dict(shape=shape, bundles=rows, moved=moves))


if __name__ == "__main__":
    main()
