"""The arms of Sparse-RL side by side: what each learns, and what it then solves with every key kept and in the budget.

    python benchmarks/sparse_rl.py [--arms=dense,naive,...] [--seeds=0,1,2] [--steps=80] [--out=runs/sparse_rl]

All arms start from the same half-trained model and get the same problems in the same order (configs/rl_demo.py). It
takes hours on two cores and may be stopped at any time; the same command goes on. OUT/report.html has all curves.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import provenance, table, write  # noqa: E402

from configs import rl_demo as demo_config  # noqa: E402
from launch.main import compile_cache  # noqa: E402
from launch.settings import arms_config  # noqa: E402

ARMS = "dense,naive,paper,release,replay,adaptive"
CURVES = ("reward", "agreement_q05", "kl", "rejected", "response_tokens", "truncation_rate", "entropy", "budget")
WINDOW = 5  # rollouts that a point of a curve is the mean of


def curves(folder: Path) -> dict[str, list[float]]:
    """What was logged of a run, means of a few rollouts each."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "reward" in line]
    mean = lambda values: round(sum(values) / len(values), 5)
    cut = lambda name: [mean([line[name] for line in lines[i : i + WINDOW]]) for i in range(0, len(lines), WINDOW)]
    seconds = {"seconds": round(sum(line["seconds"] for line in lines))}
    sizes = {name: lines[-1][name] for name in ("cache_bytes", "cache_bytes_dense")}
    return {name: cut(name) for name in CURVES} | seconds | sizes


def row(name: str, found) -> dict:
    """A line of the table."""
    shown = lambda each: f"{100 * each.value:.1f} ({100 * each.low:.1f}-{100 * each.high:.1f})"
    return {"arm": name, "dense %": shown(found.share("dense")), "in the budget %": shown(found.share("sparse")),
            "tokens": found.dense_tokens}  # fmt: skip


def over_seeds(found: dict) -> dict:
    """Each arm over all of its seeds, {arm: Measured}: of each problem the mean over the seeds. So the intervals are
    over the problems; how much seeds differ is seen from the arms one by one."""
    seeds = {}
    for name, each in found.items():
        seeds.setdefault(name.rpartition("-")[0] or name, []).append(each)
    mean = lambda rows: tuple(sum(values) / len(values) for values in zip(*rows, strict=True))
    tokens = lambda sides: sum(sides) / len(sides)
    return {
        name: type(some[0])(
            mean([each.dense for each in some]), mean([each.sparse for each in some]),
            tokens([each.dense_tokens for each in some]), tokens([each.sparse_tokens for each in some]),
        )
        for name, some in seeds.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", default=ARMS, help='with a KV policy of its own as in "naive:snapkv"')
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=80, help="rollouts of each arm")
    parser.add_argument("--out", default="runs/sparse_rl")
    parser.add_argument("--results", type=Path, default=Path("results/sparse_rl.json"))
    options = parser.parse_args()
    config = demo_config.get_config()
    config.out, config.start.folder = options.out, f"{options.out}/start"
    config.arms, config.seeds = tuple(options.arms.split(",")), tuple(map(int, options.seeds.split(",")))
    config.run.train.steps = options.steps
    compile_cache(config.run.compile_cache)
    from lt_jax import rl_demo

    found = rl_demo.compare(arms_config(config))
    if found is None:
        sys.exit(3)
    print(table([row(name, each) for name, each in found.items()]))
    pooled = over_seeds(found)
    print("\nover the seeds\n" + table([row(name, each) for name, each in pooled.items()]))
    shares = lambda each: dict(dense=vars(each.share("dense")), sparse=vars(each.share("sparse")))
    arms = {name: row(name, each) | shares(each) for name, each in found.items()}
    together = {name: row(name, each) | shares(each) for name, each in pooled.items()}
    for name in arms.keys() - {"start"}:
        arms[name] |= curves(Path(options.out) / name)
    seconds = sum(arm.get("seconds", 0) for arm in arms.values())
    write(options.results, provenance(2, ("jax", "jaxlib")) | dict(seconds=seconds, over_seeds=together, arms=arms))


if __name__ == "__main__":
    main()
