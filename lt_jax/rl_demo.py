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

from lt_jax.data import answers, suites
from lt_jax.data.problem import Problem
from lt_jax.evaluation import curves, results
from lt_jax.evaluation.metrics import Interval, wilson
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
        eviction: the budget within which all arms are measured, as `RolloutConfig.eviction`.
    """

    out: str
    start: SftConfig
    arms: Mapping[str, RlConfig]
    problems: int
    eviction: Mapping


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a model can do: how many answers are right with every key kept, and within the budget.

    Attributes:
        dense, sparse: right answers. answers: of how many.
        dense_tokens, sparse_tokens: mean length of an answer.
    """

    dense: int
    sparse: int
    answers: int
    dense_tokens: float
    sparse_tokens: float

    def share(self, name: str) -> Interval:
        """Of right answers, with its 95 % interval."""
        return wilson(getattr(self, name), self.answers)


def compare(config: ArmsConfig, say: Callable[[str], None] = print) -> dict[str, Measured]:
    """Trains what is not trained yet, measures what is not measured yet, and writes the report.

    It may be stopped at any time: the same call goes on from there.

    Returns:
        {"start" and every arm: what it can do}.
    """
    out = Path(config.out)
    found = {}
    start = started(config.start, say)
    asked = problems_of(config)
    found["start"] = measured(config, start, asked, say)
    for number, (name, arm) in enumerate(config.arms.items(), 1):
        if not (Path(arm.folder) / "final").is_dir():
            say(f"\narm {number} of {len(config.arms)}: {name}")
            if learn(arm, say) is None:
                raise SystemExit(3)
        found[name] = measured(config, Path(arm.folder) / "final", asked, say)
        curves.write([config.arms[each].folder for each in found if each != "start"], out / "report.html", seeds=True)
    return found


def started(config: SftConfig, say: Callable[[str], None]) -> Path:
    """The folder of the model that all arms start from, trained if it is not there."""
    final = Path(config.folder) / "final"
    if not final.is_dir():
        say("the model that all arms start from:")
        if sft(config, say) is None:
            raise SystemExit(3)
    return final


def problems_of(config: ArmsConfig) -> tuple[Problem, ...]:
    """The problems that results are measured on: of the kind that was learned from, and none of the validation's."""
    of = next(iter(config.arms.values())).problems
    return suites.embedded(config.problems, seed=1, steps=of.steps, families=of.families).problems


def measured(config: ArmsConfig, folder: Path, problems: tuple[Problem, ...], say: Callable[[str], None]) -> Measured:
    """What the model in `folder` can do; kept beside it, so that it is not measured twice."""
    kept = folder.parent / f"measured_{len(problems)}.json"
    if kept.is_file():
        return Measured(**json.loads(kept.read_text()))
    arm = next(iter(config.arms.values()))
    of = arm.problems
    model = load(folder, chat=of.chat, system=of.system, prefix=of.prefix, suffix=of.suffix)
    how = dict(config.eviction)
    dense = answered(model, arm, problems)
    sparse = answered(model, arm, problems, kv=how["policy"], budget=how["budget"], buffer=how["buffer"])
    found = Measured(dense[0], sparse[0], SAMPLES * len(problems), dense[1], sparse[1])
    results.write_whole(kept, json.dumps(dataclasses.asdict(found)) + "\n")
    shares = [100 * found.share(kind).value for kind in ("dense", "sparse")]
    say(f"{folder.parent.name}: {shares[0]:.1f} % of {found.answers} answers are right with every key kept, "
        f"{shares[1]:.1f} % within the budget")  # fmt: skip
    return found


def answered(model: Model, arm: RlConfig, problems: tuple[Problem, ...], **kv) -> tuple[int, float]:
    """Right answers, sampled as in training, and their mean length in tokens."""
    rollout = arm.rollout
    found = model.answer([problem.text for problem in problems for _ in range(SAMPLES)], max_new=rollout.max_new,
                         rows=TOGETHER, temperature=rollout.temperature, seed=0, **kv)  # fmt: skip
    asked = [problem for problem in problems for _ in range(SAMPLES)]
    right = sum(bool(answers.judge(problem, each.text)[1]) for problem, each in zip(asked, found, strict=True))
    return right, sum(len(each.tokens) for each in found) / len(found)


def table(found: Mapping[str, Measured]) -> str:
    """The results as lines of text, each arm with its 95 % intervals."""
    width = max(map(len, found))
    lines = [f"{'arm':{width}}  {'every key kept, %':>22}  {'within the budget, %':>22}  {'tokens':>6}"]
    for name, each in found.items():
        cells = []
        for kind in ("dense", "sparse"):
            share = each.share(kind)
            cells.append(f"{100 * share.value:5.1f} ({100 * share.low:.1f}-{100 * share.high:.1f})")
        lines.append(f"{name:{width}}  {cells[0]:>22}  {cells[1]:>22}  {each.dense_tokens:6.0f}")
    return "\n".join(lines)
