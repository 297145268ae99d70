"""What the TPU compiler makes of a function, on a machine without a TPU: its static schedule, kernel by kernel.

Import this before anything that loads libtpu. A schedule counts instruction bundles, one a cycle; it is exact for its
compiler version and free of noise, but sees no stall: not of memory, and not of the matrix unit when products come
faster than it takes them. So a loop's cycles are the larger of its bundles and of what its products take, `Chip`.
"""

from __future__ import annotations

import atexit
import dataclasses
import glob
import os
import re
import shutil
import tempfile

_DUMP = tempfile.mkdtemp(prefix="tpu_schedule_")
atexit.register(shutil.rmtree, _DUMP, ignore_errors=True)
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ["LIBTPU_INIT_ARGS"] = " ".join(
    [os.environ.get("LIBTPU_INIT_ARGS", ""), f"--xla_jf_dump_to={_DUMP}", "--xla_jf_dump_llo_text=true"]
)

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

jax.config.update("jax_platforms", "cpu")


@dataclasses.dataclass(frozen=True)
class Chip:
    """One core of a TPU generation.

    Attributes:
        topology: for the compiler.
        side: rows and columns of a matrix unit; units: how many; rate: rows of bfloat16 that one takes in a cycle.
        clock: Hz. hbm: bytes/s of one core.
    """

    topology: str
    side: int
    units: int
    rate: int
    clock: float
    hbm: float

    def product(self, m: int, k: int, n: int) -> float:
        """Cycles of the matrix units for [m, k] x [k, n] in bfloat16. What does not fill a side takes as long."""
        tiles = -(-k // self.side) * -(-n // self.side)
        return m * tiles / (self.rate * self.units)

    def bytes_per_cycle(self) -> float:
        return self.hbm / self.clock


# Published peaks: 197, 459 / 2, 918, 2307 / 2 TFLOP/s a core, 819, 2765 / 2, 1640, 7380 / 2 GB/s. Clocks are those at
# which side^2 x units x rate makes the peak.
CHIPS = {
    "v5e": Chip("v5e:2x2", 128, 4, 1, 1.5e9, 819e9),
    "v5p": Chip("v5p:2x2x1", 128, 4, 1, 1.75e9, 2765e9 / 2),
    "v6e": Chip("v6e:2x2", 256, 2, 2, 1.75e9, 1640e9),
    "tpu7x": Chip("tpu7x:2x2x1", 256, 2, 2, 2.2e9, 7380e9 / 2),
}


@dataclasses.dataclass(frozen=True)
class Span:
    """A loop body, or a piece of code under one condition: bundles [start, end), inner ones included.

    Attributes:
        depth: loops around it, itself included. products: matrix-unit instructions in it. slots: use of each unit.
    """

    start: int
    end: int
    depth: int
    products: int
    slots: dict = dataclasses.field(compare=False, repr=False)

    @property
    def bundles(self) -> int:
        return self.end - self.start

    def holds(self, other: Span) -> bool:
        return self.start <= other.start and other.end <= self.end


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One scheduled kernel. loops and regions (code under a condition) by address; spills: vector ones."""

    name: str
    bundles: int
    spills: int
    loops: tuple[Span, ...]
    regions: tuple[Span, ...]

    def inner(self) -> tuple[Span, ...]:
        """The loops inside the grid's loop."""
        return tuple(x for x in self.loops if x.depth == 2)

    def grid(self) -> Span:
        """The body of the grid's loop."""
        return max((x for x in self.loops if x.depth == 1), key=lambda x: x.bundles)

    def around(self, loop: Span) -> Span:
        """The code under the same condition as an inner loop: the largest region that holds it and no other."""
        others = [x for x in self.inner() if x != loop]
        own = [x for x in self.regions if x.holds(loop) and not any(x.holds(y) for y in others)]
        return max(own, key=lambda x: x.bundles, default=loop)

    def apart(self, spans, least: int = 100) -> tuple[Span, ...]:
        """Conditional code of at least so many bundles that shares nothing with `spans`, the outermost of each."""
        free = [x for x in self.regions if x.bundles >= least and not any(x.holds(y) or y.holds(x) for y in spans)]
        return tuple(dict.fromkeys(x for x in free if not any(y.holds(x) and y != x for y in free)))


def compile_for(function, shapes, chip: Chip, donate=()):
    """Compiles for the first core of `chip`, some arguments donated; returns `jax.stages.Compiled` and the kernels by
    name."""
    for path in glob.glob(os.path.join(_DUMP, "*")):
        os.remove(path)
    device = topologies.get_topology_desc(platform="tpu", topology_name=chip.topology).devices[0]
    place = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    compiled = jax.jit(function, donate_argnums=donate).lower(*shapes).compile()
    return compiled, {kernel.name: kernel for _, path in final_bundles() if (kernel := _read(path))}


def final_bundles() -> list[tuple[str, str]]:
    """What was compiled last: (name, file with its schedule) of each operation that has one."""
    paths = sorted(glob.glob(os.path.join(_DUMP, "*-final_bundles.txt")))
    name = lambda path: re.sub(r"^\d+-", "", os.path.basename(path)).rsplit("-", 2)[0]
    return [(name(path), path) for path in paths if "schedule-analysis" not in path]


def unrolled(path: str, trips: tuple[int, ...] = ()) -> int:
    """Bundles of a schedule, each as often as the loops around it run.

    Args:
        trips: of the loops whose count is no constant, in order; what is missing counts as 1.
    """
    lines = []
    for line in open(path, errors="replace"):
        if _LINE.match(line):
            lines.append(line)
        elif lines:
            lines[-1] += line
    start, end, limit = {}, {}, {}
    for here, line in enumerate(lines):
        for number in re.findall(r"Start(?:/End empty)? region (\d+)", line):
            start.setdefault(number, here)
        end.update((number, here) for number in re.findall(r"End region (\d+)", line))
        limit.update(re.findall(r"(%p\w+) = scmp\.ge\.s32\.totalorder %s\w+, (\d+)", line))
    loops = []
    for here, line in enumerate(lines):
        for test, number in re.findall(r"sbr\.rel \(!(%p\w+)\) target = \$region(\d+)", line):
            first = start.get(number, here)
            if first < here and _LINE.match(lines[first]).group(2) == "LB":  # back to the loop's first bundle
                loops.append((first, max(end[number], here), limit.get(test)))
    times, left = [1] * len(lines), list(trips)
    for first, last, count in sorted(loops):
        count = int(count) if count else left.pop(0) if left else 1
        times[first : last + 1] = [n * count for n in times[first : last + 1]]
    return sum(times)


_LINE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(\w\w)?\s*:\s*((?:>\s*)*)")
_EDGE = re.compile(r"(Start|End) region (\d+)")


def _read(path: str) -> Kernel | None:
    name = re.sub(r"^\d+-", "", os.path.basename(path)).rsplit("-", 2)[0]
    if name.startswith("<") or name == "TLP" or ".init" in name:
        return None
    depth, labels, products, opened, found = [], [], [], {}, []
    for line in open(path, errors="replace"):
        match = _LINE.match(line)
        if not match:
            continue
        here, deep = len(depth), match.group(3).count(">")
        empty = not deep and match.group(2) != "LB" and depth and re.search(r":\s*{}|\sP[FB]\s|\sLE\s", line)
        depth.append(depth[-1] if empty else deep)
        labels.append(match.group(2))
        products.append(len(re.findall(r"vmatmul", line)))
        for edge, number in _EDGE.findall(line):
            if edge == "Start":
                opened[number] = here
            elif number in opened:
                found.append((opened.pop(number), here + 1))
    slots = _slots(path)

    def span(start, end, deep):
        used = {name: sum(row[i] for row in slots[start:end]) for i, name in enumerate(SLOTS)}
        return Span(start, end, deep, sum(products[start:end]), used)

    loops = []
    for start, label in enumerate(labels):
        if label == "LB":
            end = next((i for i in range(start, len(depth)) if depth[i] < depth[start]), len(depth))
            loops.append(span(start, end, depth[start]))
    regions = [span(a, b, depth[a]) for a, b in sorted(found) if b - a > 8]
    return Kernel(re.sub(r"\.\d+$", "", name), len(depth), spills(path), tuple(loops), tuple(regions))


def spills(path: str) -> int:
    """Vector registers that a schedule puts aside and takes back, counted once."""
    return sum(row[SLOTS.index("fill")] + row[SLOTS.index("spill")] for row in _slots(path))


SLOTS = ("matrix", "cross-lane", "vector", "pop", "transcendental", "load", "fill", "store", "spill", "scalar")


def _slots(path: str) -> list:
    prefix = path.rsplit("-", 2)[0]
    found = glob.glob(glob.escape(prefix) + "*final_hlo-static-per-bundle-utilization.txt")
    rows = [line.split() for line in open(found[0]).read().split("UTILIZATION:")[-1].splitlines()] if found else []
    return [[int(x) for x in row] for row in rows if len(row) == len(SLOTS) and all(x.isdigit() for x in row)]
