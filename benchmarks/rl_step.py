"""Seconds per step of GRPO, and tokens/s of its rollouts: lt_jax beside TRL and tunix.

    python benchmarks/rl_step.py --against=trl,tunix [--steps=5] [--warmup=2] [--out=results/rl_step.json]

A step is all that a trainer's loop does from one step to the next: 8 responses of exactly 128 tokens to each of 8
prompts of 64, sampled at temperature 1, their rewards, and one update of all weights by AdamW, in float32 and without a
reference. Every side loads the same random model, the small one of `decode.py`, and asks the same problems. Each runs
in a process of its own with the same number of threads, a peer in a virtual environment of its own in build/peers,
which is made by the first run and kept. The sides take turns, step by step; the first steps, in which things are
compiled, are left out, and the median of the others counts. What was chosen for a peer stands in benchmarks/peers. A
peer that cannot be installed or fails has a row that says so, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers.side import PINS, Failed, Side
from benchmarks.peers.task import Task

PIECES = "lt_jax=4,trl=1,tunix=4"  # the fastest of those tried (1, 8; also 4 but for trl, and 2 for lt_jax)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", default="trl,tunix", help=f"of {', '.join(PINS)}, by commas; or nothing")
    parser.add_argument("--steps", type=int, default=5, help="steps that count")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pieces", default="", help=f"microbatches of the updates, as {PIECES}")
    parser.add_argument("--quick", action="store_true", help="a tiny model and a few tokens, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("results/rl_step.json"))
    options = parser.parse_args()
    options.against = () if options.against == "nothing" else tuple(options.against.split(","))
    if unknown := set(options.against) - set(PINS):
        parser.error(f"--against: no peer {', '.join(sorted(unknown))}; there are {', '.join(PINS)}")
    pairs = (each.split("=") for each in f"{PIECES},{options.pieces}".strip(",").split(","))
    options.pieces = {name: int(count) for name, count in pairs}
    return options


OPTIONS = arguments()
# Before JAX counts the processors; the sides inherit it.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: OPTIONS.threads])

import numpy as np  # noqa: E402
import small  # noqa: E402
from machine import provenance, table, write  # noqa: E402

PROBLEMS = 2048  # so that the steps of a run ask different ones
TINY = dataclasses.replace(small.SMALL, vocab_size=256, hidden=32, intermediate=64, layers=2, heads=2, kv_heads=1,
                           head_dim=16)  # fmt: skip


def prepare(folder: Path) -> Task:
    """Writes the model and its problems."""
    config, sizes = (TINY, (2, 4, 16, 8)) if OPTIONS.quick else (small.SMALL, (8, 8, 64, 128))
    prompts, group, prompt, new = sizes
    model = small.write(folder / "model", config)
    asked = np.random.default_rng(0).integers(0, config.vocab_size - 64, (PROBLEMS, prompt))
    lines = ({"question": " ".join(f"w{i}" for i in ids), "answer": "none"} for ids in asked)
    problems = folder / "problems.jsonl"
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Task(str(model), str(problems), str(folder), prompts, group, prompt, new, OPTIONS.threads)


def pieces(name: str) -> int:
    """Microbatches of a side's update."""
    return 1 if OPTIONS.quick else OPTIONS.pieces[name]


def measure(task: Task) -> tuple[dict[str, Side], dict[str, str]]:
    """The sides after their steps, and why others failed."""
    sides, failed = {}, {}

    def steps(name: str, count: int, counts: bool) -> None:
        try:
            if name not in sides:
                sides[name] = Side(name, dataclasses.replace(task, pieces=pieces(name)))
            for _ in range(count):
                sides[name].step(counts)
        except Failed as error:
            failed[name] = str(error)
            print(f"{name}: {error}", file=sys.stderr)

    try:
        for name in ("lt_jax", *OPTIONS.against):  # one after the other: compiling takes all processors
            steps(name, OPTIONS.warmup, False)
        for turn in range(OPTIONS.steps):
            for name in [name for name in sides if name not in failed]:
                steps(name, 1, True)
            took = {name: f"{side.steps[-1]['seconds']:.2f} s" for name, side in sides.items() if name not in failed}
            print(f"step {turn + 1} of {OPTIONS.steps}: {took}", file=sys.stderr)
    finally:
        for side in sides.values():
            side.close()
    return sides, failed


def main() -> int:
    result = provenance(OPTIONS.threads, ("jax", "jaxlib", "numpy"))
    with tempfile.TemporaryDirectory() as folder:
        task = prepare(Path(folder))
        sides, failed = measure(task)
    rows = []
    for name in ("lt_jax", *OPTIONS.against):
        row = {"what": name}
        if name in failed:
            row["failed"] = failed[name]
        else:
            steps = sides[name].steps
            row["seconds per step"] = statistics.median(step["seconds"] for step in steps)
            row["rollout tokens/s"] = statistics.median(step["tokens"] / step["rollout"] for step in steps)
            if "lt_jax" not in failed:
                row["times lt_jax"] = row["seconds per step"] / rows[0]["seconds per step"] if rows else 1.0
        rows.append(row)
    print(table(rows))
    sizes = {name: getattr(task, name) for name in ("prompts", "group", "prompt", "new")}
    told = lambda side: dict(versions=side.versions, pieces=side.task.pieces, steps=side.steps)
    details = {name: told(side) for name, side in sides.items()}
    write(OPTIONS.out, result | dict(sizes=sizes, warmup=OPTIONS.warmup, unit="seconds", rows=rows, sides=details))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
