"""What a compiled program launches on a GPU, read from the schedule that XLA's compiler writes down.

    000: kCommandBuffer                      one CUDA graph, launched once
        003: kWhile                          a loop inside of it: the host takes no part
        condition:
            004: kCustomKernel ...
          body:
            006: kCustomKernel ...           a fusion or a product
            007: kCustomCall                 one of our kernels, or cuDNN's
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from pathlib import Path

import jax

_LINE = re.compile(r"^(\s*)\d+: (k\w+)")
LOOPS = ("kWhile", "kConditional")


@dataclasses.dataclass(frozen=True)
class Launch:
    """One line of the schedule: its kind, the kinds of what it is in (outermost first) and the line itself."""

    kind: str
    inside: tuple[str, ...]
    line: str


def schedule(lowered: jax.stages.Lowered, options: dict | None = None) -> tuple[jax.stages.Compiled, list[Launch]]:
    """Compiles a program that was lowered for a GPU, and reads its schedule.

    Args:
        options: of the compilation, for example `graphs.OPTIONS`.
    """
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={**(options or {}), "xla_dump_to": folder})
        found = sorted(Path(folder).glob("*.thunk_sequence_after_thunk_passes.txt"))
        found = found or sorted(Path(folder).glob("*.thunk_sequence.txt"))  # no pass had anything to do
        return compiled, parse(found[0].read_text())


def parse(text: str) -> list[Launch]:
    """The lines of a schedule, each with what it is inside of, by their indentation."""
    out, open_ = [], []
    for line in text.splitlines():
        if (found := _LINE.match(line)) is None:
            continue
        depth, kind = len(found[1]), found[2]
        while open_ and open_[-1][0] >= depth:
            open_.pop()
        out.append(Launch(kind, tuple(kind for _, kind in open_), line.strip()))
        open_.append((depth, kind))
    return out


def waits(launches: list[Launch]) -> list[Launch]:
    """Loops and conditions outside of any graph: at each turn of them XLA may wait for the host."""
    return [x for x in launches if x.kind in LOOPS and "kCommandBuffer" not in x.inside]


def within(launches: list[Launch], loops: int, conditions: int = 0) -> list[Launch]:
    """What is launched inside so many loops and conditions, and in no more; copies and kernels alike."""
    count = lambda x, kind: x.inside.count(kind)
    return [x for x in launches
            if x.kind not in (*LOOPS, "kCommandBuffer", "kSequential") and count(x, "kWhile") == loops
            and count(x, "kConditional") == conditions]  # fmt: skip
