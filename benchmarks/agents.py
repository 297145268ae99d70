"""Agents with a memory beside one without, under the same limit of context: success, and context by round.

    python benchmarks/agents.py [--longer] [--arms=vanilla,...] [--steps=1200] [--questions=100] [--out=DIR]

Small models, all from the base model that comes with the library. First this learns to find a name's number in what
summaries say (lt_jax/memory/multihop_look_ups.py), which trails alone do not teach it; its rotary base is raised for
that, as is done for long contexts. From there every arm learns from the scripted expert of the embedded world
(lt_jax/memory/multihop_expert.py) for equally many steps of equally many tokens: without a memory, and with one in each
of the two semantics. All then work on the same questions, about worlds that training has not seen, through the same
tools. A question ends where a turn would begin with more than `--context` keys. The questions are worked on by
`evaluation.agent_run`, as by launch/agent.py.

It may be stopped at any time; the same command goes on. The file of --results is written after every arm.
"""

from __future__ import annotations

import argparse
import collections
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
from lt_jax.demo import BASE  # noqa: E402
from lt_jax.evaluation import agent_run, agents  # noqa: E402
from lt_jax.evaluation.metrics import plain  # noqa: E402
from lt_jax.evaluation.results import write_whole  # noqa: E402
from lt_jax.memory import multihop  # noqa: E402
from lt_jax.memory.counted import counted, pass_tokens  # noqa: E402
from lt_jax.memory.multihop import TOOLS, TrailConfig, worlds  # noqa: E402
from lt_jax.memory.multihop_expert import solved  # noqa: E402
from lt_jax.memory.multihop_look_ups import FURTHER, GROWING, Drills, LookUps  # noqa: E402
from lt_jax.memory.rows import ROWS  # noqa: E402
from lt_jax.memory.sft import lessons  # noqa: E402
from lt_jax.memory.syntax import syntax_of  # noqa: E402
from lt_jax.memory.tools import tools  # noqa: E402
from lt_jax.memory.trajectories import Limits  # noqa: E402
from lt_jax.model import load  # noqa: E402
from lt_jax.training.sft import Lessons, sft, told  # noqa: E402

ARMS = ("vanilla", "++ lifetimes", "++ rebuild")
EXPERT = "an agent without a mistake,"
TRAIN, TEST = 1, 2  # seeds of the worlds
TRAILS = TrailConfig(hops=(12, 22), recalls=(1, 3), letters=True, distractors=0)
LONGER = TrailConfig(hops=(40, 48), recalls=(2, 6), letters=True, distractors=0, searches=0.3)
ROTARY, POSITIONS = 100_000.0, 8192  # the rotary base and the longest row, in place of 10,000 and 4,096
DRILL = 2560  # tokens of a step of look-ups
DRILLS = {"look_ups": (TRAILS, GROWING, 2e-2), "look_ups_further": (LONGER, FURTHER, 1e-2)}  # with learning rates
BETWEEN = 3  # look-ups for every trail, about a quarter of the tokens, a fifth with --longer
SHOWN = (10, 20, 40, 60, 80, 100)  # rounds of the tables


def expert_file(path: Path, trails: TrailConfig, count: int, memory: bool) -> None:
    """The expert's trajectories of `count` questions, a line each."""
    if path.is_file():
        return
    lines = []
    for place in worlds(trails, count, TRAIN):
        with tools(TOOLS, place.corpus) as named:
            lines += [json.dumps(solved(each, named, memory).to_json()) + "\n" for each in place.problems]
    write_whole(path, "".join(lines))


def raised(options) -> str:
    """The folder of the base model with a higher rotary base and more positions."""
    folder = Path(options.out) / "base"
    if not folder.is_dir():
        base = load(BASE)
        config = dataclasses.replace(base.config, rope_theta=ROTARY, max_positions=POSITIONS)
        dataclasses.replace(base, config=config).save(folder)
    return str(folder)


def looked_up(options) -> str:
    """The folder of the model that all arms start from: it finds a name's number in what summaries say."""
    start = raised(options)
    for name, (trails, stages, rate) in list(DRILLS.items())[: 1 + options.longer]:
        final = Path(options.out) / name / "final"
        if not final.is_dir():
            drill(start, final.parent, Drills(trails.names, stages), rate)
        start = str(final)
    return start


def drill(start: str, folder: Path, drills: Drills, rate: float) -> None:
    """Trains a model on look-ups alone, one pass."""
    config = memory_tiny.get_config()
    config.folder, config.model.path = str(folder), start
    config.batches.update(length=DRILL, batch=1, bins=4, shuffle=False)  # the easy ones come first
    config.optim.update(learning_rate=rate, warmup=30, end_fraction=0.2)
    config.train.update(steps=0, epochs=1.0, log_every=50, save_every=250)
    config.log.tensorboard = False

    def taught(config, tokenizer, special) -> Lessons:
        syntax = syntax_of(special, tokenizer)
        return Lessons(drills, {"look-ups": told(drills)}, lambda each: each.row(syntax))

    print(f"\n{folder.name}")
    if sft(sft_config(config), lessons=taught) is None:
        sys.exit(3)


def folder_of(arm: str, options) -> Path:
    """Where an arm is trained and works."""
    return Path(options.out) / ("longer" if options.longer else "") / arm.replace("++ ", "pp_")


def trained(arm: str, options, trails: TrailConfig) -> str:
    """The folder of the trained model."""
    out = folder_of(arm, options)
    final = out / "final"
    if final.is_dir():
        return str(final)
    memory = arm != "vanilla"
    data = out.parent / f"expert_{'memory' if memory else 'plain'}.jsonl"
    expert_file(data, trails, options.trajectories, memory)
    config = memory_tiny.get_config()
    config.folder, config.model.path = str(out), looked_up(options)
    config.data.update(path=str(data), embedded=0)
    config.scheme.semantics = arm.split()[-1] if memory else "lifetimes"
    config.batches.update(length=options.length, batch=1, bins=16)
    config.train.update(steps=options.steps, save_every=250)
    config.log.tensorboard = False
    config.optim.learning_rate = options.rate

    def taught(config, tokenizer, special) -> Lessons:
        """Trails, and between them look-ups, which are forgotten otherwise."""
        trailed, syntax = lessons()(config, tokenizer, special), syntax_of(special, tokenizer)
        last = (FURTHER if options.longer else GROWING)[-1]
        drills = Drills(trails.names, [dataclasses.replace(last, count=BETWEEN * len(trailed.samples))])
        mixed = [*trailed.samples, *drills]
        to_row = lambda each: each.row(syntax) if isinstance(each, LookUps) else trailed.to_row(each)
        return Lessons(mixed, trailed.named | {"look-ups": told(drills)}, to_row)

    print(f"\n{arm}")
    if sft(sft_config(config), lessons=taught) is None:
        sys.exit(3)
    return str(final)


def played(arm: str, options, trails: TrailConfig) -> agents.AgentResult:
    """What an arm's agent comes to."""
    return agent_run.run(agent_run.AgentConfig(
        model=trained(arm, options, trails), out=str(folder_of(arm, options) / "questions"),
        embedded=options.questions, trails=trails, seed=TEST, told=False, tools=TOOLS,
        limits=Limits(turn=64, turns=8 * trails.hops[1], context=options.context), rows=options.rows,
        capacity=options.context + 512,
    ))  # fmt: skip


def flawless(folder: str, options, trails: TrailConfig, memory: bool) -> agents.AgentResult:
    """What an agent would come to that does what the expert does, on the same questions and under the same limit. Of
    the model in `folder` only the tokens are used."""
    model, logs = load(folder), []
    syntax = syntax_of(model.special, model.tokenizer)
    for place in worlds(trails, options.questions, TEST):
        with tools(TOOLS, place.corpus) as named:
            for problem in place.problems:
                prompt = model.ask(problem.text).tokens.tolist()
                log = counted(solved(problem, named, memory), syntax, prompt, "lifetimes")
                within = list(itertools.takewhile(lambda turn: turn.context <= options.context, log.turns))
                if len(within) < len(log.turns):
                    log = dataclasses.replace(log, turns=tuple(within), finish="context", correct=False)
                logs.append(log)
    return agents.summarise(logs)


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
        "out of positions": result.groups[agents.ALL].finishes.get("positions", 0),
        "reuse spared %": 100 * result.saved,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", default=",".join(ARMS), help="names, separated by commas: " + ", ".join(ARMS))
    parser.add_argument("--steps", type=int, default=1200, help="of training an arm")
    parser.add_argument("--rate", type=float, default=8e-3, help="the learning rate of that")
    parser.add_argument("--trajectories", type=int, default=3000, help="of the expert")
    parser.add_argument("--longer", action="store_true", help="trails of 40 to 48 stops in place of 12 to 22")
    parser.add_argument("--long-hops", type=int, nargs=2, default=(100, 150), help="stops of the expert's long trails")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--long", type=int, default=10, help="how many of these")
    parser.add_argument("--length", type=int, default=5120, help="tokens of a row and of a step")
    parser.add_argument("--context", type=int, default=896, help="the most keys that a turn may begin with")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--out", default="runs/agents")
    parser.add_argument("--results", type=Path, help="default: results/agents.json or agents_longer.json")
    options = parser.parse_args()
    options.results = options.results or Path(f"results/agents{'_longer' * options.longer}.json")
    arms = options.arms.split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"there is no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    compile_cache(memory_tiny.get_config().compile_cache)
    trails, found = LONGER if options.longer else TRAILS, {}
    folder = trained(arms[0], options, trails)
    for memory in (False, True):
        name = f"{EXPERT} {'with' if memory else 'without'} a memory"
        best = flawless(folder, options, trails, memory)
        found[name] = {**line(name, best), "whole": plain(best)}
    spent = costs(folder, options)
    for arm in arms:
        result = played(arm, options, trails)
        found[arm] = {**line(arm, result), "whole": plain(result)}
        apart = ("results", "out", "arms")
        sizes = {name: value for name, value in vars(options).items() if name not in apart}
        sizes["trails"] = dataclasses.asdict(trails)
        write(options.results, provenance(2, ("jax", "jaxlib")) | {"sizes": sizes, "expert": spent, "agents": found})
    print("\nthe expert on long trails\n" + table([{"": name, **each} for name, each in spent.items()]))
    print("\n" + table([{key: value for key, value in each.items() if key != "whole"} for each in found.values()]))


if __name__ == "__main__":
    main()
