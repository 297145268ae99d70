"""LightThinker++ beside LightThinker and vanilla, on problems in which an early detail is needed late.

    python benchmarks/lightthinker_pp.py [--arms=vanilla,...] [--seeds=0,1,2] [--steps=800] [--out=DIR]

Small models, all from the base model that comes with the library, for equally many steps of equally many tokens on the
same problems (lt_jax/memory/tasks.py). One model of each semantics learns both modes and is asked in each of them;
another is taught without expand and fold. All solve the same problems, which no training stream contains. "Vanilla in
the budget" is vanilla with the answers counted as wrong whose context grew beyond that of the mode "budget".

It may be stopped at any time; the same command goes on. RESULTS is written after every run with what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import provenance, table, write  # noqa: E402

from configs import memory_tiny  # noqa: E402
from launch.main import compile_cache  # noqa: E402
from launch.settings import sft_config  # noqa: E402
from lt_jax.data.suites import Suite  # noqa: E402
from lt_jax.decode import DecodeConfig  # noqa: E402
from lt_jax.evaluation import memory as evaluation  # noqa: E402
from lt_jax.evaluation import metrics  # noqa: E402
from lt_jax.evaluation.contenders import contender  # noqa: E402
from lt_jax.evaluation.run import evaluate  # noqa: E402
from lt_jax.layout.scheme import SEMANTICS  # noqa: E402
from lt_jax.layout.tokenizer import load_tokenizer  # noqa: E402
from lt_jax.memory.counted import pass_tokens  # noqa: E402
from lt_jax.memory.modes import MODES  # noqa: E402
from lt_jax.memory.sft import MemoryConfig, lessons, plain_lessons  # noqa: E402
from lt_jax.memory.tasks import Lookbacks  # noqa: E402
from lt_jax.model import load  # noqa: E402
from lt_jax.training.sft import sft, special_tokens  # noqa: E402

PLAIN = ("vanilla", "lightthinker")
EDITED, PLAINLY = "++", "++ without expand and fold"
ARMS = (*PLAIN, *(f"{name} {semantics}" for semantics in reversed(SEMANTICS) for name in (EDITED, PLAINLY)))
TEST = 9  # seed of the problems that are solved
MEASURED = 200  # trajectories whose tokens are counted


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What all runs share.

    Attributes:
        steps: of training. problems: to solve. rows, capacity: of decoding.
        least, most: steps of a problem. looks: the most look-backs.
    """

    steps: int
    problems: int
    rows: int
    capacity: int
    least: int
    most: int
    looks: int


def settings(arm: str, seed: int, sizes: Sizes, out: str):
    """(`SftConfig`, `MemoryConfig`) of an arm."""
    config = memory_tiny.get_config()
    config.folder, config.train.steps, config.batches.seed = f"{out}/{folder_of(arm, seed)}", sizes.steps, seed + 1
    config.data.steps, config.train.seed, config.train.save_every = (sizes.least, sizes.most), seed, 250
    config.log.tensorboard = False
    memory = dict(budget=config.memory.budget, looks=(1, sizes.looks))
    if arm in PLAIN:
        config.data.turns = "last"
        config.scheme.update(method=arm, n_gist=9 if arm == "lightthinker" else 0)
        config.tokens.trigger = "\n\n" if arm == "lightthinker" else ""
        return sft_config(config), MemoryConfig(**memory)
    config.scheme.semantics = arm.split()[-1]
    edits = not arm.startswith(PLAINLY)
    return sft_config(config), MemoryConfig(**memory, edits=edits, modes=tuple(MODES) if edits else ("throughput",))


def folder_of(arm: str, seed: int) -> str:
    return f"{arm.replace('++', 'pp').replace(' ', '_')}-{seed}"


def run(arm: str, seed: int, sizes: Sizes, out: str) -> dict[str, dict] | None:
    """Trains and evaluates a run, or reads what it found before. {way of decoding: result}; None if it was stopped."""
    config, memory = settings(arm, seed, sizes, out)
    kept = Path(config.folder) / "found.json"
    asked = json.loads(json.dumps([dataclasses.asdict(sizes), dataclasses.asdict(memory)]))
    if kept.is_file() and (known := json.loads(kept.read_text()))["asked"] == asked:
        return known["found"]
    print(f"\n{arm}, seed {seed}")
    final = sft(config, lessons=(plain_lessons if arm in PLAIN else lessons)(memory))
    if final is None:
        return None
    problems = tuple(each.problem for each in test_problems(sizes))
    found = solve_plainly(arm, final, problems, sizes, memory.budget) if arm in PLAIN else solve(
        arm, final, problems, sizes, memory)  # fmt: skip
    write(kept, {"asked": asked, "found": found})
    return found


def test_problems(sizes: Sizes) -> Lookbacks:
    return Lookbacks(sizes.problems, TEST, (sizes.least, sizes.most), (1, sizes.looks), held_out=True)


def solve_plainly(arm: str, final: Path, problems, sizes: Sizes, budget: int) -> dict[str, dict]:
    """What a method without actions finds."""
    model = load(str(final))
    decode = DecodeConfig(rows=sizes.rows, capacity=sizes.capacity, max_thought=256 if arm == "lightthinker" else None)
    (method,) = evaluate([contender(arm, model, decode, max_new=sizes.capacity)], Suite("look-backs", problems)).methods
    one = metrics.summarise(method.records)
    result = dict(accuracy=one.accuracy, peak=one.peak, dependency=one.dependency, written=one.generated,
                  right=[record.correct for record in method.records])  # fmt: skip
    families = sorted({record.family for record in method.records})
    of = lambda name: metrics.summarise([record for record in method.records if record.family == name])
    result["families"] = {name: {"accuracy": of(name).accuracy.value} for name in families}
    found = {arm: result}
    if arm == "vanilla":
        within = [record.correct and record.counts.peak <= budget for record in method.records]
        found["vanilla in the budget"] = dict(accuracy=metrics.wilson(sum(within), len(within)), right=within)
    return metrics.plain(found)


def solve(arm: str, final: Path, problems, sizes: Sizes, memory: MemoryConfig) -> dict[str, dict]:
    """What a model that manages its memory finds, in each mode that it was taught."""
    model, found = load(str(final)), {}
    for name in memory.modes:
        mode = MODES[name]
        budget = memory.budget if mode.spends else None
        solved = evaluation.solve(model, problems, mode, budget=budget, rows=sizes.rows, capacity=sizes.capacity,
                                  turns=8 * sizes.most, tokens=4 * sizes.capacity)  # fmt: skip
        result = metrics.plain(evaluation.summarise(solved))
        result["right"] = [each.correct is True for each in solved]
        result["families"] = {
            family: {"accuracy": each.accuracy.value, "edits": each.edits.value, "actions": each.actions}
            for family, each in evaluation.by_family(solved).items()
        }
        way = arm if arm.startswith(PLAINLY) else f"{EDITED} {name} {arm.split()[-1]}"
        found[way] = result
    return metrics.plain(found)


def training_tokens(sizes: Sizes) -> dict[str, float]:
    """Tokens that a training pass needs for a trajectory, by mode, see `counted.pass_tokens`."""
    found = {}
    config, memory = settings(f"{EDITED} lifetimes", 0, sizes, "unused")
    tokenizer = load_tokenizer(config.model)
    special = special_tokens(tokenizer, config).special
    for mode in MODES:
        taught = lessons(dataclasses.replace(memory, modes=(mode,)))(config, tokenizer, special)
        row = taught.to_row
        each = [pass_tokens(log, row.syntax, row.asked(log)) for log in itertools.islice(taught.samples, MEASURED)]
        found |= {f"{mode}, {name}": sum(tokens[name] for tokens in each) / MEASURED for name in each[0]}
    return found


def line(way: str, runs: list[dict]) -> dict:
    """A line of the table: accuracy over the problems of all seeds, means over the seeds."""
    right = [each for found in runs for each in found["right"]]
    share = metrics.wilson(sum(right), len(right))

    def middle(name: str) -> float | None:
        known = [found[name]["value"] for found in runs if name in found and found[name]["value"] is not None]
        return sum(known) / len(known) if known else None

    percent = lambda name: None if middle(name) is None else 100 * middle(name)
    return {
        "method": way, "seeds": len(runs),
        "accuracy %": f"{100 * share.value:.1f} ({100 * share.low:.1f}-{100 * share.high:.1f})",
        "peak": middle("peak"), "dependency": middle("dependency"), "written": middle("written"),
        "read again": middle("again"), "edits %": percent("edits"), "parsed %": percent("parsed"),
        "legal %": percent("legal"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", default=",".join(ARMS), help="names, separated by commas: " + ", ".join(ARMS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=800, help="of training")
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--capacity", type=int, default=1024)
    parser.add_argument("--least", type=int, default=4, help="steps of a problem")
    parser.add_argument("--most", type=int, default=8)
    parser.add_argument("--looks", type=int, default=4)
    parser.add_argument("--out", default="runs/lightthinker_pp")
    parser.add_argument("--results", type=Path, default=Path("results/lightthinker_pp.json"))
    options = parser.parse_args()
    sizes = Sizes(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Sizes)})
    arms = options.arms.split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"there is no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    compile_cache(memory_tiny.get_config().compile_cache)
    tokens, found = training_tokens(sizes), {}
    for seed in map(int, options.seeds.split(",")):
        for arm in arms:
            one = run(arm, seed, sizes, options.out)
            if one is None:
                sys.exit(3)
            for way, result in one.items():
                found.setdefault(way, {})[seed] = result
            lines = [line(way, list(runs.values())) for way, runs in found.items()]
            result = dict(sizes=dataclasses.asdict(sizes), table=lines, pass_tokens=tokens, runs=found)
            write(options.results, provenance(2, ("jax", "jaxlib")) | result)
    print("\n" + table(lines))
    print("\n" + table([{"tokens of a training pass": name, "a trajectory": each} for name, each in tokens.items()]))


if __name__ == "__main__":
    main()
