"""One NVIDIA card for a quarter of an hour: everything that needs one, beside its peers and the card's limits.

    python benchmarks/gpu.py [--sections=graphs,attention,...] [--limit=540] [--cache=DIR] [--out=FILE] [--commit=HASH]
    python benchmarks/gpu.py --rehearse      the whole script with tiny sizes on a CPU; nothing is written to results/
    python benchmarks/gpu.py --predict       bytes and operations of the same work beside a card's limits; needs no card

This process imports neither JAX nor torch. It runs sections one after another, most important first, and every side of
a section as a process of its own, which is ended when its time is up; what it found until then is kept. The whole run
is cut off after 9 minutes (--limit). Seconds:

    section     what                                                                       lt_jax       torch
    graphs      decoding one row: blocks as graphs, and launched by the host               80 + 30
    numerics    on the card against dense; log-probs sampled against scored                35
    attention   forward and backward; FlexAttention, flash, cuDNN                          45           35
    decode      1 to 256 rows of a 1.5B model; transformers generate()                     75           25
    sft         training steps of the same; transformers                                   45           30
    budgets     64 rows under LightThinker and R-KV                                        90
    memory20    8,000 tokens a row, 20 GB of cache                                         50
    plain       one row as it was before the kernels; only if it is named                  60
    tuning      sizes of the kernels; only if it is named                                  240

540 in all without the last two. The sections of a call share its limit in these proportions, so fewer of them have more
time each, and a side may also use what those before it left over. The first call of an engine compiles for 16 to 41
seconds, so nine minutes are tight for everything. Two calls on one machine are better, with a folder for what they
compile, so that the second does not start cold:

    python benchmarks/gpu.py --limit=400 --cache=/tmp/gpu --sections=graphs,numerics,attention,decode
    python benchmarks/gpu.py --limit=400 --cache=/tmp/gpu --sections=sft,budgets,memory20 --out=results/gpu_more.json

All sides use one clock (`gpu_sides/side.py`); the limits are a large bfloat16 product and a copy on the device, which
the first side of each library measures. Programs that an earlier side has compiled come from the cache, so only a first
call that nothing preceded shows what compiling takes. Blocks are CUDA graphs in all other sections, unless the section
`graphs` finds that they fail (that its time was up before a first call had returned does not count as that).

There is no line of loops with a fixed number of turns: in a greedy step of full attention with the kernels, layers
follow one another without a loop, and the one loop there is, the block's over its steps, ends when its rows do. It is
inside the graph.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from machine import provenance, table, write  # noqa: E402

from benchmarks.gpu_sides import goals, predict  # noqa: E402
from benchmarks.gpu_sides.sizes import FULL, TINY  # noqa: E402

TOTAL = 540
PATIENCE = 300  # seconds for a side of a rehearsal
PACKAGES = ("jax", "jaxlib", "triton", "torch", "transformers", "numpy")


@dataclasses.dataclass(frozen=True)
class Side:
    """A process: what it is called, its module, the most seconds it takes, whether decode blocks are graphs (None:
    unless that has failed), and the packages without which it is left out, and said so."""

    name: str
    module: str
    limit: int
    graphs: bool | None = None
    needs: tuple[str, ...] = ("jax", "triton")


TORCH, HUGGINGFACE = ("torch",), ("torch", "transformers")
RECORD = Side("record", "recorded", 0)  # made on the CPU, beside the card's work
SECTIONS = {
    "graphs": (
        Side("lt_jax, graphs", "decode", 80, graphs=True),
        Side("lt_jax, launches", "decode", 30, graphs=False),
    ),
    "numerics": (Side("lt_jax", "numerics", 35),),
    "attention": (Side("lt_jax", "attention", 45), Side("torch", "torch_attention", 35, needs=TORCH)),
    "decode": (Side("lt_jax", "decode", 75), Side("torch", "torch_model", 25, needs=HUGGINGFACE)),
    "sft": (Side("lt_jax", "sft", 45), Side("torch", "torch_model", 30, needs=HUGGINGFACE)),
    "budgets": (Side("lt_jax", "budgets", 90),),
    "memory20": (Side("lt_jax", "budgets", 50),),
    "plain": (Side("lt_jax, no kernels", "decode", 60, graphs=False),),
    "tuning": (Side("lt_jax", "tuning", 240),),
}
DEFAULT = tuple(name for name in SECTIONS if name not in ("plain", "tuning"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", default=",".join(DEFAULT), help="which, by commas; also: plain, tuning")
    parser.add_argument("--limit", type=float, default=TOTAL, help="seconds until all of it is cut off")
    parser.add_argument("--cache", type=Path, help="folder of compiled programs that later calls use, too")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--predict", action="store_true", help="bytes and operations alone")
    parser.add_argument("--out", type=Path, default=Path("results/gpu.json"))
    parser.add_argument("--commit", help="of this working tree, where git does not know it")
    options = parser.parse_args()
    if unknown := set(options.sections.split(",")) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return options


class Run:
    """The sides' processes and what they found, `rows`."""

    def __init__(self, rehearse: bool, scratch: Path, cache: Path):
        self.rehearse, self.scratch, self.cache, self.rows = rehearse, scratch, cache.resolve(), []
        self.lines, self.spoilt = scratch / "lines.jsonl", False
        self.lines.touch()

    def environment(self) -> dict[str, str]:
        """Of a side's process."""
        found = {**os.environ, "HF_HUB_OFFLINE": "1"}
        found |= {"JAX_COMPILATION_CACHE_DIR": str(self.cache / "xla"), "TRITON_CACHE_DIR": str(self.cache / "triton")}
        found |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
        if self.rehearse:
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()  # compiles faster
            found |= {"JAX_PLATFORMS": "cpu", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "XLA_FLAGS": flags}
        return found

    def start(self, section: str, side: Side) -> tuple[subprocess.Popen, Path]:
        """Its process and its log."""
        limits = not any(row["work"] == "limits" and row["side"][:5] == side.name[:5] for row in self.rows)
        task = dict(section=section, side=side.name, lines=str(self.lines), scratch=str(self.scratch),
                    limits=limits, rehearse=self.rehearse,
                    graphs=not self.spoilt if side.graphs is None else side.graphs)  # fmt: skip
        log = self.scratch / f"{section}_{side.name.replace(' ', '_').replace(',', '')}.log"
        command = [sys.executable, "-m", f"benchmarks.gpu_sides.{side.module}", json.dumps(task)]
        with log.open("w") as out:
            return subprocess.Popen(command, cwd=ROOT, env=self.environment(), stdout=out, stderr=out,
                                    start_new_session=True), log  # fmt: skip

    def measure(self, section: str, side: Side, until: float) -> None:
        """Runs a side until it ends, or the clock says `until`; why something was not found is a row, too."""
        lacks = [name for name in side.needs if importlib.util.find_spec(name) is None]
        if lacks:
            return self._failed(section, side, f"{' and '.join(lacks)} is not installed")
        begun = time.perf_counter()
        process, log = self.start(section, side)
        try:
            process.wait(max(0.0, until - begun))
            cut = False
            why = f"ended with {process.returncode}: {_last_line(log)}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            cut, why = True, f"its time was up after {time.perf_counter() - begun:.0f} s"
        finally:  # also where somebody interrupts the run
            end(process)
        self._collect()
        if why:
            self._failed(section, side, why)
        if side.graphs:
            mine = [row for row in self.rows if row["section"] == section and row["side"] == side.name]
            self.spoilt = broken(mine, process.returncode, cut)
        print(f"{section}, {side.name}: {time.perf_counter() - begun:.0f} s{', ' + why if why else ''}", flush=True)

    def _collect(self) -> None:
        with self.lines.open() as lines:
            self.rows = [row for row in self.rows if row["work"] == "all"]
            self.rows += [json.loads(line) for line in lines if line.endswith("\n")]

    def _failed(self, section: str, side: Side, why: str) -> None:
        self.rows.append(dict(section=section, side=side.name, work="all", form="", failed=why))
        print(f"{section}, {side.name}: {why}", flush=True)


def broken(rows: list[dict], ended: int, cut: bool) -> bool:
    """Whether graphs do not work, by the lines of the side that tries them first, its exit status, and whether its time
    was up. If it was, before the first call had returned, that says nothing of graphs: compiling takes long."""
    if not cut and ended or any("failed" in row for row in rows if row["work"] not in ("all", "limits")):
        return True
    return cut and any("first call s" in row for row in rows) and not any("tokens/s" in row for row in rows)


def end(process: subprocess.Popen) -> None:
    """Ends a side with all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _last_line(log: Path) -> str:
    found = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return found[-1][:200] if found else "no word"


def measured(options: argparse.Namespace, scratch: Path) -> list[dict]:
    """Runs the sections; all that was found."""
    run = Run(options.rehearse, scratch, options.cache or scratch)
    sections = [name for name in SECTIONS if name in options.sections.split(",")]
    stretch = options.limit / sum(side.limit for section in sections for side in SECTIONS[section])
    # The record begins after the section `graphs`, whose launches need the host's time.
    records = next((name for name in sections if name != "graphs"), "") if "attention" in sections else ""
    record, until = None, time.perf_counter()
    try:
        for section in sections:
            if section == records:
                record, _ = run.start("attention", RECORD)
            for side in SECTIONS[section]:
                until = time.perf_counter() + PATIENCE if options.rehearse else until + stretch * side.limit
                run.measure(section, side, until)
            if section == "attention":  # the next ones are timed on the host, too
                end(record)
                record = None
    finally:
        if record is not None:
            end(record)
    return run.rows


def report(rows: list[dict], found: list[dict], title: str) -> str:
    """The tables: each section's figures, then the goals."""
    parts = [title]
    for section in dict.fromkeys(row["section"] for row in rows):
        mine = [{k: v for k, v in row.items() if k != "section"} for row in rows if row["section"] == section]
        parts.append(f"{section}\n{table(mine)}")
    verdicts = [{name: line[name] for name in ("what", "figure", "goal", "verdict")} for line in found]
    return "\n\n".join([*parts, f"goals\n{table(verdicts)}"])


def main() -> None:
    options = arguments()
    if options.predict:
        print(predict.markdown())
        return
    result = provenance(0, PACKAGES)
    if options.commit:
        result |= dict(commit=options.commit)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gpu_") as scratch:
        rows = measured(options, Path(scratch))
    took = time.perf_counter() - begun
    found = goals.lines(rows, TINY if options.rehearse else FULL)
    card = next((row["card"] for row in rows if "card" in row), "no card was seen")
    title = f"{'REHEARSAL on a CPU: no figure here means anything' if options.rehearse else card}, {took:.0f} s"
    print(report(rows, found, title), flush=True)
    if options.rehearse:
        options.out = Path(tempfile.mkdtemp(prefix="gpu_rehearsal_")) / "gpu.json"
    write(options.out, result | dict(rehearsal=options.rehearse, card=card, seconds=took, goals=found, rows=rows))


if __name__ == "__main__":
    main()
