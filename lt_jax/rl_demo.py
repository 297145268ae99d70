"""The arms of Sparse-RL side by side: the same start, the same problems in the same order, one arm after the other.

A half-trained model learns from its own responses with every key kept (dense), and within a KV budget without any
correction (naive), with that of the paper, of its release, or by one of the two ways that go beyond it. What each has
learned is measured on problems that no training stream contains, with every key kept and within the budget.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lt_jax.data import answers, suites
from lt_jax.data.problem import Problem
from lt_jax.decode import DecodeConfig, Request, Sampling
from lt_jax.decode.request import sample_seed
from lt_jax.errors import UserError
from lt_jax.evaluation import curves, results
from lt_jax.evaluation.metrics import Interval, mean
from lt_jax.model import Model, load
from lt_jax.rl.config import RlConfig
from lt_jax.rl.loop import learn
from lt_jax.training.sft import sft
from lt_jax.training.sft_config import SftConfig

TOGETHER = 64  # answers that are written side by side
SAMPLES = 2  # answers to each problem


@dataclasses.dataclass(frozen=True)
class ArmsConfig:
    """The comparison.

    Attributes:
        out: the folder of all runs and of the report.
        start: how the model is trained that all arms start from; its exported folder is `RlConfig.model` of all arms.
        arms: by name, in the order in which they are run. One named "dense" has no KV budget.
        problems: how many problems each result is measured on.
        eviction: the budget within which the start and dense arms are measured, as `RolloutConfig.eviction`; all others
            are within their own first one.
    """

    out: str
    start: SftConfig
    arms: Mapping[str, RlConfig]
    problems: int
    eviction: Mapping


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a model can do: which share of its answers to each problem is right.

    Attributes:
        dense, sparse: with every key kept, and within the budget.
        dense_tokens, sparse_tokens: mean length of an answer.
    """

    dense: tuple[float, ...]
    sparse: tuple[float, ...]
    dense_tokens: float
    sparse_tokens: float

    def share(self, name: str) -> Interval:
        """Of right answers, with its 95 % interval over the problems: answers to one problem are not independent."""
        return mean(getattr(self, name))


def compare(config: ArmsConfig, say: Callable[[str], None] = print) -> dict[str, Measured] | None:
    """Trains what is not trained yet, measures what is not measured yet, and writes the report.

    It may be stopped at any time: the same call goes on from there.

    Returns:
        {"start" and every arm: what it can do}, or None if it was asked to stop.

    Raises:
        UserError: a folder has a run with other settings; and as `loop.learn`.
    """
    found = {}
    if (start := started(config.start, say)) is None:
        return None
    asked = problems_of(config)
    found["start"] = measured(config, start, config.eviction, asked, say)
    for number, (name, arm) in enumerate(config.arms.items(), 1):
        final = Path(arm.folder) / "final"
        if not finished(arm):
            say(f"\narm {number} of {len(config.arms)}: {name}")
            if learn(arm, say) is None:
                return None
        found[name] = measured(config, final, arm.rollout.eviction or config.eviction, asked, say)
        report = Path(config.out) / "report.html"
        curves.write([config.arms[each].folder for each in found if each != "start"], report, seeds=True)
    return found


def started(config: SftConfig, say: Callable[[str], None]) -> Path | None:
    """The folder of the model that all arms start from, trained if it is not there."""
    final = Path(config.folder) / "final"
    if not final.is_dir():
        say("the model that all arms start from:")
        return sft(config, say)
    return final


def finished(arm: RlConfig) -> bool:
    """Whether an arm was trained to its end before. UserError if that was with other settings."""
    folder = Path(arm.folder)
    if not (folder / "final").is_dir():
        return False
    then = json.loads((folder / "config.json").read_text())
    if then != json.loads(json.dumps(dataclasses.asdict(arm))):
        raise UserError(f"{folder}: there is a run of other settings; remove it, or give another folder")
    return True


def problems_of(config: ArmsConfig) -> tuple[Problem, ...]:
    """The problems that results are measured on: of the kind that was learned from, but none of those."""
    of = next(iter(config.arms.values())).problems
    return suites.embedded(config.problems, seed=1, steps=of.steps, families=of.families).problems


def measured(
    config: ArmsConfig, folder: Path, eviction: Mapping, problems: tuple[Problem, ...], say: Callable[[str], None]
) -> Measured:
    """What the model in `folder` can do; kept beside it, so that it is not measured twice."""
    arm = next(iter(config.arms.values()))
    how = {"problems": len(problems), "samples": SAMPLES, "max_new": arm.rollout.max_new,
           "temperature": arm.rollout.temperature, "eviction": dict(eviction)}  # fmt: skip
    kept = folder.parent / "measured.json"
    if kept.is_file() and (known := json.loads(kept.read_text()))["how"] == json.loads(json.dumps(how)):
        shares = {name: tuple(known["found"][name]) for name in ("dense", "sparse")}
        return Measured(**known["found"] | shares)
    of = arm.problems
    model = load(folder, chat=of.chat, system=of.system, prefix=of.prefix, suffix=of.suffix)
    dense, dense_tokens = answered(model, arm, problems)
    sparse, sparse_tokens = answered(model, arm, problems, eviction)
    found = Measured(dense, sparse, dense_tokens, sparse_tokens)
    results.write_whole(kept, json.dumps({"how": how, "found": dataclasses.asdict(found)}) + "\n")
    shares = [100 * found.share(kind).value for kind in ("dense", "sparse")]
    say(f"{folder.parent.name}: {shares[0]:.1f} % of {SAMPLES * len(problems)} answers are right with every key kept, "
        f"{shares[1]:.1f} % within the budget")  # fmt: skip
    return found


def answered(model: Model, arm: RlConfig, problems: tuple[Problem, ...], eviction: Mapping | None = None):
    """The share of right answers to each problem, sampled as in training, and their mean length in tokens."""
    rollout = arm.rollout
    config = DecodeConfig(
        rows=TOGETHER, capacity=rollout.max_prompt + rollout.max_new + 1, sampling=Sampling(rollout.temperature),
        eviction=None if eviction is None else model.eviction(**eviction),
    )  # fmt: skip
    engine = model.engine(config)
    asked = [(number, sample) for number in range(len(problems)) for sample in range(SAMPLES)]
    prompts = [model.ask(problem.text, problem.system) for problem in problems]
    done = engine.complete(Request(prompts[number], rollout.max_new, sample_seed(number, sample))
                           for number, sample in asked)  # fmt: skip
    engine.close()
    right = np.zeros(len(problems))
    for (number, _), each in zip(asked, done, strict=True):
        right[number] += bool(answers.judge(problems[number], model.text(each.tokens[each.written]))[1])
    return tuple(right / SAMPLES), float(np.mean([len(each.tokens) for each in done]))


def table(found: Mapping[str, Measured]) -> str:
    """The results as lines of text, each arm with its 95 % intervals."""
    width = max(map(len, found))
    lines = [f"{'arm':{width}}  {'every key kept, %':>22}  {'within the budget, %':>22}  {'tokens':>6}"]
    for name, each in found.items():
        cells = []
        for kind in ("dense", "sparse"):
            share = each.share(kind)
            cells.append(f"{100 * share.value:5.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})")
        lines.append(f"{name:{width}}  {cells[0]:>22}  {cells[1]:>22}  {each.dense_tokens:6.0f}")
    return "\n".join(lines)
