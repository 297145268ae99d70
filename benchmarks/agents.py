"""Agents with a memory beside one without, under the same limit of context: success, and context by round.

    python benchmarks/agents.py [--arms=vanilla,...] [--steps=1000] [--questions=100] [--out=DIR]

Small models, all from one that has learned to look things up in pages, learn from the scripted expert of the embedded
world (lt_jax/memory/multihop_expert.py) for equally many steps of equally many tokens: without a memory, and with one
in each of the two semantics. All then work on the same questions, about worlds that training has not seen, through the
same tools. A question ends where a turn would begin with more than `--context` keys. The questions are worked on by
`evaluation.agent_run`, as by launch/agent.py.

It may be stopped at any time; the same command goes on. RESULTS is written after every arm with what is there.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import provenance, table, write  # noqa: E402

from configs import defaults, memory_tiny  # noqa: E402
from launch.main import compile_cache  # noqa: E402
from launch.settings import sft_config  # noqa: E402
from lt_jax.data.sources import Mapped  # noqa: E402
from lt_jax.data.traces import Trace  # noqa: E402
from lt_jax.demo import BASE  # noqa: E402
from lt_jax.evaluation import agent_run, agents  # noqa: E402
from lt_jax.evaluation.metrics import plain  # noqa: E402
from lt_jax.evaluation.results import write_whole  # noqa: E402
from lt_jax.memory import multihop  # noqa: E402
from lt_jax.memory.corpus import Page  # noqa: E402
from lt_jax.memory.counted import counted, pass_tokens  # noqa: E402
from lt_jax.memory.multihop import TOOLS, TrailConfig, worlds  # noqa: E402
from lt_jax.memory.multihop_expert import solved  # noqa: E402
from lt_jax.memory.rows import ROWS  # noqa: E402
from lt_jax.memory.sft import lessons  # noqa: E402
from lt_jax.memory.syntax import syntax_of  # noqa: E402
from lt_jax.memory.tools import tools  # noqa: E402
from lt_jax.memory.trajectories import Limits  # noqa: E402
from lt_jax.model import load  # noqa: E402
from lt_jax.training.sft import Lessons, row_maker, sft, told  # noqa: E402

ARMS = ("vanilla", "++ lifetimes", "++ rebuild")
TRAIN, TEST = 1, 2  # seeds of the worlds
WORLD = {"recalls": (1, 3), "letters": True, "distractors": 0}  # see `TrailConfig`
SHOWN = (10, 20, 40, 60, 80, 100)  # rounds of the tables
POSITIONS = 16384  # of the models: a row under lifetimes has a position for each of its tokens


def expert_file(path: Path, trails: TrailConfig, count: int, memory: bool) -> None:
    """The expert's trajectories of `count` questions, a line each."""
    if path.is_file():
        return
    lines = []
    for place in worlds(trails, count, TRAIN):
        with tools(TOOLS, place.corpus) as named:
            lines += [json.dumps(solved(each, named, memory).to_json()) + "\n" for each in place.problems]
    write_whole(path, "".join(lines))


def start(folder: Path) -> str:
    """The base model that comes with the library, with room for long rows. Returns its folder."""
    if not folder.is_dir():
        shutil.copytree(BASE, folder)
        config = json.loads((folder / "config.json").read_text())
        write(folder / "config.json", config | {"max_position_embeddings": POSITIONS})
    return str(folder)


@functools.cache
def some_pages(trails: TrailConfig) -> tuple[Sequence[Page], ...]:
    return tuple(place.corpus.pages for place in worlds(trails, 400, TRAIN))


def look_ups(trails: TrailConfig, index: int) -> Trace:
    """Pages with numbers, a list of whose number is whose, and then what these say of one page or another."""
    draw = random.Random(f"look-ups/{index}")
    pages = draw.choice(some_pages(trails))
    pages = draw.sample(pages, min(round(2 * 15 ** draw.random()), len(pages)))  # few as often as many
    numbers = sorted(draw.sample(range(1, 2 * len(pages) + 1), len(pages)))
    shown = [f"visit: {page.title}\n{number}:{page.text}" for page, number in zip(pages, numbers, strict=True)]
    listed = " ".join(f"{page.title}:{number}" for page, number in zip(pages, numbers, strict=True))
    said = []
    for _ in range(2 * len(pages) + 8):
        at = draw.randrange(len(pages))
        facts = pages[at].text.split()[:6]  # title and what is said of it, three times
        said.append(draw.choice((f"{pages[at].title}:{numbers[at]}", *(" ".join(facts[i : i + 2]) for i in (0, 2, 4)))))
    return Trace("\n".join([*shown, listed]), "\n".join(said), segments=tuple(said), source="look-ups")


def looked_up(options, trails: TrailConfig) -> str:
    """The folder of the model that all arms start from: it can look things up in pages."""
    out = Path(options.out)
    final = out / "look_ups" / "final"
    if final.is_dir():
        return str(final)
    config = defaults.get_config()
    config.folder, config.model.path = str(final.parent), start(out / "start")
    config.data.embedded = 1_000_000
    config.batches.update(length=options.length, batch=1, bins=8, over_length="drop", seed=1)
    config.scheme.update(method="vanilla", n_gist=0)
    config.train.update(steps=options.look_ups, log_every=50, save_every=250)
    config.optim = memory_tiny.get_config().optim
    config.log.tensorboard = False

    def taught(config, tokenizer, special) -> Lessons:
        samples = Mapped(range(config.source.embedded), lambda index: look_ups(trails, index))
        return Lessons(samples, {"look-ups": told(samples)}, row_maker(config, tokenizer, special))

    print("\nlook-ups")
    if sft(sft_config(config), lessons=taught) is None:
        sys.exit(3)
    return str(final)


def trained(arm: str, options, trails: TrailConfig) -> str:
    """The folder of the trained model."""
    out = Path(options.out)
    final = out / arm.replace("++ ", "pp_") / "final"
    if final.is_dir():
        return str(final)
    memory = arm != "vanilla"
    data = out / f"expert_{'memory' if memory else 'plain'}.jsonl"
    expert_file(data, trails, options.trajectories, memory)
    config = memory_tiny.get_config()
    config.folder, config.model.path = str(final.parent), looked_up(options, trails)
    config.data.update(path=str(data), embedded=0)
    config.scheme.semantics = arm.split()[-1] if memory else "lifetimes"
    config.batches.update(length=options.length, batch=1, bins=16)
    config.train.update(steps=options.steps, save_every=250)
    config.log.tensorboard = False
    print(f"\n{arm}")
    if sft(sft_config(config), lessons=lessons()) is None:
        sys.exit(3)
    return str(final)


def played(arm: str, options, trails: TrailConfig) -> agents.AgentResult:
    """What an arm's agent comes to."""
    return agent_run.run(agent_run.AgentConfig(
        model=trained(arm, options, trails), out=f"{options.out}/{arm.replace('++ ', 'pp_')}/questions",
        embedded=options.questions, trails=trails, seed=TEST, told=False, tools=TOOLS,
        limits=Limits(turn=64, turns=8 * trails.hops[1], context=options.context), rows=options.rows,
        capacity=options.context + 512,
    ))  # fmt: skip


def costs(folder: str, options) -> dict[str, dict[str, float]]:
    """What the expert's trajectories cost on long trails, without any model but its tokens: the mean tokens of a
    training pass for one trajectory, those read again in decoding it, and the mean context at some rounds."""
    model, tokens, logs = load(folder), collections.defaultdict(list), collections.defaultdict(list)
    syntax = syntax_of(model.special, model.tokenizer)
    for place in worlds(TrailConfig(hops=tuple(options.long_hops)), options.long, TEST):
        with tools(TOOLS, place.corpus) as named:
            for problem in place.problems:
                log, prompt = solved(problem, named), model.ask(problem.text).tokens.tolist()
                for name, count in pass_tokens(log, syntax, prompt).items():
                    tokens[f"training, {name}"].append(count)
                logs["vanilla"].append(counted(solved(problem, named, memory=False), syntax, prompt, "lifetimes"))
                for semantics in ROWS:
                    logs[f"++ {semantics}"].append(counted(log, syntax, prompt, semantics))
    found = {name: {"tokens": sum(each) / len(each)} for name, each in tokens.items()}
    for name, each in logs.items():
        result = agents.summarise(each)
        sizes = {f"at {size.round}": size.mean for size in result.sizes if size.round in SHOWN}
        found[name] = {"read again": result.tokens["again"] / len(each), **sizes}
    return found


def line(arm: str, result: agents.AgentResult) -> dict:
    """A line of the table."""
    size = {each.round: each.mean for each in result.sizes}
    share = lambda name: f"{100 * result.groups[name].accuracy.value:.1f}" if name in result.groups else None
    return {
        "agent": arm, **{f"{name} %": share(name) for name in (agents.ALL, multihop.EASY, multihop.HARD)},
        **{f"at {number}": size.get(number) for number in SHOWN},
        "out of context": result.groups[agents.ALL].finishes.get("context", 0),
        "reuse spared %": 100 * result.saved,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", default=",".join(ARMS), help="names, separated by commas: " + ", ".join(ARMS))
    parser.add_argument("--look-ups", type=int, default=300, help="steps of training before that of the arms")
    parser.add_argument("--steps", type=int, default=500, help="of training")
    parser.add_argument("--trajectories", type=int, default=3000, help="of the expert")
    parser.add_argument("--hops", type=int, nargs=2, default=(12, 22), help="stops of a trail")
    parser.add_argument("--long-hops", type=int, nargs=2, default=(100, 150), help="stops of the expert's long trails")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--long", type=int, default=10, help="how many of these")
    parser.add_argument("--length", type=int, default=5120, help="tokens of a row and of a step")
    parser.add_argument("--context", type=int, default=896, help="the most keys that a turn may begin with")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--out", default="runs/agents")
    parser.add_argument("--results", type=Path, default=Path("results/agents.json"))
    options = parser.parse_args()
    arms = options.arms.split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"there is no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    compile_cache(memory_tiny.get_config().compile_cache)
    found: dict[str, dict] = {}
    for arm in arms:
        trails = TrailConfig(hops=tuple(options.hops), **WORLD)
        result = played(arm, options, trails)
        found[arm] = {**line(arm, result), "whole": plain(result)}
        spent = costs(trained(arm, options, trails), options)
        sizes = {name: value for name, value in vars(options).items() if name not in ("results", "out", "arms")}
        write(options.results, provenance(2, ("jax", "jaxlib")) | {"sizes": sizes, "expert": spent, "agents": found})
    print("\nthe expert on long trails\n" + table([{"": name, **each} for name, each in spent.items()]))
    print("\n" + table([{key: value for key, value in each.items() if key != "whole"} for each in found.values()]))


if __name__ == "__main__":
    main()
