"""What a side of `benchmarks/gpu.py` is given, how it says what it measured, and the clock of all sides. Needs NumPy.

A side is a process, `python -m benchmarks.gpu_sides.NAME TASK`. It appends a line of JSON to a file for each thing that
it measured, so that nothing is lost when it crashes or its time is up.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

from benchmarks.gpu_sides.sizes import FULL, TINY, Sizes

MOST = 1 if "TRITON_INTERPRET" in os.environ else 100  # calls and rounds of the clock: a rehearsal needs but one


@dataclasses.dataclass(frozen=True)
class Task:
    """What a side is to do.

    Attributes:
        section, side: what its lines are marked with.
        lines: the file that it appends to. scratch: a folder that all sides of the run share.
        limits: also measure the card's limits.
        rehearse: tiny sizes, on a CPU. graphs: decode blocks are CUDA graphs, as they are for users.
    """

    section: str
    side: str
    lines: str
    scratch: str
    limits: bool
    rehearse: bool
    graphs: bool

    @property
    def sizes(self) -> Sizes:
        return TINY if self.rehearse else FULL

    def note(self, work: str, form: str, **found) -> None:
        """Says what was found of `work` done in this `form`."""
        line = dict(section=self.section, side=self.side, work=work, form=form, **found)
        with open(self.lines, "a") as out:
            out.write(json.dumps(line) + "\n")
        print(line, flush=True)

    def attempt(self, work: str, form: str, measure: Callable[[], dict]) -> None:
        """Says what `measure` finds, or in one line why it finds nothing; then the side goes on."""
        try:
            found = measure()
        except Exception as error:  # whatever a library raises
            lines = str(error).strip().splitlines() or [""]
            found = dict(failed=f"{type(error).__name__}: {lines[0][:160]}")
        gc.collect()  # what it had on the device
        self.note(work, form, **found)


def given() -> Task:
    """The task that this process was started with."""
    return Task(**json.loads(sys.argv[1]))


def milliseconds(run: Callable, wait: Callable, calls: int = 5, rounds: int = 5) -> float:
    """Of one call: the median over `rounds` of so many calls sent off one after another, and then waited for. Two calls
    before are not counted."""
    calls, rounds = min(calls, MOST), min(rounds, MOST)
    wait(run())
    wait(run())
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            out = run()
        wait(out)
        found.append((time.perf_counter() - start) / calls)
    return statistics.median(found) * 1e3


def seconds(run: Callable, turns: int = 2) -> float:
    """Of the fastest call; `run` returns when all is done."""
    found = []
    for _ in range(turns):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)
