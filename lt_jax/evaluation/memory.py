"""Models that manage their memory, on problems: what they solve, what it costs, and which actions they take.

    found = solve(model, suite.problems, MODES["throughput"], rows=16, capacity=512)
    summarise(found).accuracy

It stands here and not in `lt_jax.memory`, because intervals and reports are above all methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from lt_jax.data import answers
from lt_jax.data.problem import Problem
from lt_jax.decode import DecodeConfig, Sampling
from lt_jax.errors import UserError
from lt_jax.evaluation.metrics import Interval, mean, wilson
from lt_jax.memory.agent import rounds
from lt_jax.memory.log import Log, log_of
from lt_jax.memory.modes import Mode, asked
from lt_jax.memory.syntax import syntax_of
from lt_jax.memory.trajectories import ILLEGAL, MALFORMED, Limits, Tool, Trajectories, tallied
from lt_jax.model import Model

EDITS = ("expand", "fold")
COST = ("peak", "dependency")  # what `extra` has of a trajectory


@dataclasses.dataclass(frozen=True)
class Summary:
    """Many trajectories.

    Attributes:
        accuracy: with its 95 % interval; what could not be judged counts as wrong. unjudged: how many that are.
        peak, dependency, again, written: means over the problems, see `trajectories.Trajectory`.
        rounds: calls of tools, and what follows the last, see `memory.agent.rounds`; a mean as well.
        parsed: the share of turns that could be read as an action. legal: of these, the share that was possible.
        edits: expands and folds, as a share of the actions that were taken.
        actions: {action: mean number a problem}.
        finishes: {finish: problems}.
    """

    problems: int
    accuracy: Interval
    unjudged: int
    peak: Interval
    dependency: Interval
    again: Interval
    written: Interval
    rounds: Interval
    parsed: Interval
    legal: Interval
    edits: Interval
    actions: Mapping[str, float]
    finishes: Mapping[str, int]


def solve(
    model: Model, problems: Sequence[Problem], mode: Mode | None = None, *, budget: int | None = None, rows: int = 16,
    capacity: int = 4096, block_steps: int = 32, sampling: Sampling | None = None, seed: int = 0,
    tools: Mapping[str, Tool] | None = None, **limits,
) -> list[Log]:  # fmt: skip
    """Lets a model solve problems, each in a trajectory of its own; `extra` has the name of the mode.

    Args:
        model: trained for method "memory", in the semantics that it was trained with.
        mode: whose cue is put before each question, and whose limits hold; None asks without a cue.
        budget: of the mode, see `Mode.limits`.
        rows, capacity, block_steps: see `DecodeConfig`.
        seed: of sampling; problem number i has seed + i.
        limits: other fields of `trajectories.Limits`.

    Raises:
        UserError: the model was not trained to manage a memory; answers in LaTeX cannot be compared on this machine.
    """
    semantics = model.scheme.memory_semantics
    if semantics is None:
        raise UserError(f"{model.origin}: trained for {model.scheme.method}; only method 'memory' has trajectories")
    answers.check()
    syntax = syntax_of(model.special, model.tokenizer)
    held = _limits(mode, semantics, budget, {**limits, "sampling": sampling})
    engine = model.engine(DecodeConfig(rows=rows, capacity=capacity, block_steps=block_steps))
    text = lambda problem: asked(mode.name if mode else None, problem.text)
    questions = [
        (number, model.ask(text(problem), problem.system).tokens.tolist(), seed + number)
        for number, problem in enumerate(problems)
    ]
    found = Trajectories(engine, syntax, held, tools).complete(questions)
    extra = {"mode": mode.name} if mode else {}
    return [log_of(each, syntax, problem, **extra) for problem, each in zip(problems, found, strict=True)]


def summarise(logs: Sequence[Log]) -> Summary:
    """What became of trajectories that a model wrote (`log.log_of`), or whose turns were counted (`counted`)."""
    counts = [log.counts for log in logs]
    total = {name: sum(each[name] for each in counts) for name in tallied(())}
    turns, possible = sum(total.values()), sum(total.values()) - total[MALFORMED] - total[ILLEGAL]
    finishes = [log.finish for log in logs]
    over = lambda name: [sum(getattr(turn, name) for turn in log.turns) for log in logs]
    return Summary(
        len(logs), wilson(sum(log.correct is True for log in logs), len(logs)),
        sum(log.correct is None for log in logs), **{name: mean([log.extra[name] for log in logs]) for name in COST},
        again=mean(over("again")), written=mean(over("written")), rounds=mean([len(rounds(log)) for log in logs]),
        parsed=wilson(turns - total[MALFORMED], turns), legal=wilson(possible, turns - total[MALFORMED]),
        edits=wilson(sum(total[name] for name in EDITS), possible),
        actions={name: count / max(len(logs), 1) for name, count in total.items()},
        finishes={name: finishes.count(name) for name in dict.fromkeys(finishes)},
    )  # fmt: skip


def by_family(logs: Sequence[Log]) -> dict[str, Summary]:
    """The summary of each family of problems, such as problems of one difficulty, in the order of their names."""
    families = sorted({log.extra["family"] for log in logs})
    return {name: summarise([log for log in logs if log.extra["family"] == name]) for name in families}


def _limits(mode: Mode | None, semantics: str, budget: int | None, more: dict) -> Limits:
    if mode is None:
        if budget is not None:
            raise UserError(f"budget is {budget}, which is for mode 'budget'; give the mode, or leave the budget out")
        return Limits(semantics, **more)
    return mode.limits(semantics, budget, **more)
