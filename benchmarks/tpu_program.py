"""Cycles of a whole XLA program on a TPU, operation by operation, from the compiled text and the compiler's schedules.

An operation takes the larger of two times, and the program their sum:

    its bundles, each as often as the loops around it run      a loop whose count is not a constant counts once
    its bytes from and to the main memory                      operands and results that are not in vector memory

Of an operand that is only sliced the slices count, of a result that is updated in place the update. Copies that run
beside other operations count as memory time of their own, so programs that prefetch well are a little faster than this.
"""

from __future__ import annotations

import dataclasses
import math
import re

import tpu_schedule as schedule

SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional", "copy-done",
        "slice-done")  # fmt: skip
IN_VECTOR_MEMORY = "S(1)"


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a program.

    Attributes:
        times: how often it runs. bundles: of its schedule, loops unrolled, each time. moved: bytes, each time.
        spills: of vector registers in its schedule.
    """

    name: str
    times: int
    bundles: int
    moved: float
    spills: int

    def cycles(self, rate: float) -> float:
        """With a main memory of `rate` bytes a cycle."""
        return self.times * max(self.bundles, self.moved / rate)


def compile_for(function, shapes, chip, donate=(), trips=None, moved=None):
    """Compiles and reads.

    Args:
        donate: arguments.
        trips: for kernels by name, how often their loops run whose count is no constant, in order.
        moved: for kernels by name, bytes that a call moves.

    Returns:
        `jax.stages.Compiled`, and the operations with a schedule or with traffic.
    """
    compiled, _ = schedule.compile_for(function, shapes, chip, donate)
    text = compiled.as_text()
    return compiled, _Reader(text, trips or {}, moved or {}).operations()


class _Reader:
    def __init__(self, text, trips, moved):
        self.trips, self.moved = trips, moved
        self.parts, self.entry = _computations(text)
        self.paths = dict(schedule.final_bundles())
        self.costs = {}
        # Operations that are the same are scheduled once, under the name of one of them.
        self.same = {self._shape(line): name for lines in self.parts.values() for line in lines
                     if (name := _name(line)) in self.paths}  # fmt: skip

    def operations(self) -> list[Operation]:
        return list(self._walk(self.entry, 1))

    def _walk(self, part, times):
        for line in self.parts[part]:
            kind = _kind(line)
            if kind == "while":
                yield from self._walk(re.search(r"body=%([\w.\-]+)", line).group(1), times * self._count(line))
            elif kind == "conditional":
                for branch in re.findall(r"%([\w.\-]+)", re.search(r"branch_computations=\{([^}]*)\}", line).group(1)):
                    yield from self._walk(branch, times)
            elif kind not in FREE:
                name = _name(line)
                base = re.sub(r"\.\d+$", "", name)
                bundles, spills = self._cost(self.paths.get(name) or self.paths.get(self.same.get(self._shape(line))),
                                             self.trips.get(base, ()))  # fmt: skip
                yield Operation(name, times, bundles, self.moved.get(base, self._bytes(part, line)), spills)

    def _count(self, line) -> int:
        """Trips of a counting loop: the largest constant that its condition knows."""
        condition = re.search(r"condition=%([\w.\-]+)", line).group(1)
        constants = [int(x) for x in re.findall(r"constant\((\d+)\)", "\n".join(self.parts[condition]))]
        if not constants:  # it was moved into the loop's carry
            start = re.search(r" while\(%([\w.\-]+)\)", line).group(1)
            constants = [self._largest_constant(start)]
        return max(constants)

    def _largest_constant(self, name) -> int:
        lines = {_name(line): line for part in self.parts.values() for line in part}
        found, left = [0], re.findall(r"%([\w.\-]+)", lines[name].split("tuple(")[-1])
        while left:
            line = lines.get(left.pop(), "")
            if _kind(line) == "copy":
                left += re.findall(r"copy\(%([\w.\-]+)", line)
            found += [int(x) for x in re.findall(r"= s32\[\]\S* constant\((\d+)\)", line)]
        return max(found)

    def _shape(self, line) -> str:
        """What makes two operations the same: types, and what they compute."""
        called = re.search(r"calls=%([\w.\-]+)", line)
        body = "\n".join(self.parts[called.group(1)]) if called else ""
        strip = lambda text: re.sub(r"metadata=\{[^}]*\}|, backend_config=.*|calls=%[\w.\-]+", "", text)
        text = strip(line) + "\n".join(map(strip, body.splitlines()))
        numbers = {}
        return re.sub(r"%[\w.\-]+", lambda m: numbers.setdefault(m.group(), f"%{len(numbers)}"), text)

    def _cost(self, path, trips) -> tuple[int, int]:
        if path is None:
            return 0, 0
        if (path, trips) not in self.costs:
            self.costs[path, trips] = schedule.unrolled(path, trips), schedule.spills(path)
        return self.costs[path, trips]

    def _bytes(self, part, line) -> float:
        """Traffic with the main memory."""
        lines = {_name(x): x for x in self.parts[part]}
        called = re.search(r"calls=%([\w.\-]+)", line)
        inside = self.parts[called.group(1)] if called else []
        operands = re.findall(r"%([\w.\-]+)", _arguments(line))
        total, in_place = 0.0, False
        for number, name in enumerate(operands):
            kind = _type(lines.get(name, ""))
            if IN_VECTOR_MEMORY in kind or not kind:
                continue
            total += (share := _read_of(inside, number, kind))[0]
            in_place |= share[1]
        result = _type(line)
        if not in_place and IN_VECTOR_MEMORY not in result:
            total += _size(result)
        return total


def _computations(text):
    parts, entry, here = {}, None, None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            here = head.group(2)
            parts[here] = []
            entry = here if head.group(1) else entry
        elif line.startswith("}"):
            here = None
        elif here:
            parts[here].append(line)
    return parts, entry


def _name(line) -> str:
    found = re.match(r"^\s*(?:ROOT )?%([\w.\-]+) = ", line)
    return found.group(1) if found else ""


def _type(line) -> str:
    found = re.match(r"^\s*(?:ROOT )?%[\w.\-]+ = (\(.*?\)|\S+) [\w\-]+\(", line)
    return found.group(1) if found else ""


def _kind(line) -> str:
    found = re.match(r"^\s*(?:ROOT )?%[\w.\-]+ = (?:\(.*?\)|\S+) ([\w\-]+)\(", line)
    return found.group(1) if found else ""


def _arguments(line) -> str:
    found = re.search(r" [\w\-]+\((%.*?)\)(?:,|$)", line)
    return found.group(1) if found else ""


def _size(kind: str) -> int:
    """Bytes of all arrays of a type."""
    each = re.findall(r"(\w+)\[([\d,]*)\]", kind)
    return sum(SIZES.get(name, 0) * math.prod(int(n) for n in dims.split(",") if n) for name, dims in each)


def _read_of(inside, number, kind) -> tuple[float, bool]:
    """Bytes of an operand that a fusion reads, and whether it writes back into it."""
    name = next((_name(x) for x in inside if re.search(rf" parameter\({number}\)", x)), None)
    users = [x for x in inside if name and re.search(rf"%{re.escape(name)}[,)]", _arguments(x) + ")")]
    first = lambda x: re.match(rf"%{re.escape(name)}[,)]", _arguments(x) + ")")
    if users and all(_kind(x) in ("dynamic-slice", "gather", "slice") for x in users):
        return sum(_size(_type(x)) for x in users), False
    if users and all(_kind(x) in ("dynamic-update-slice", "scatter") and first(x) for x in users):
        types = {_name(x): _type(x) for x in inside}
        which = {"dynamic-update-slice": 1, "scatter": 2}
        updates = [re.findall(r"%([\w.\-]+)", _arguments(x))[which[_kind(x)]] for x in users]
        return sum(_size(types.get(x, "")) for x in updates), True
    return _size(kind), False
