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
from lt_jax.memory.log import Log, log_of
from lt_jax.memory.modes import Mode, asked
from lt_jax.memory.syntax import syntax_of
from lt_jax.memory.trajectories import Limits, Tool, Trajectories, Trajectory
from lt_jax.model import Model

EDITS = ("expand", "fold")
WRONG = ("malformed", "illegal")


@dataclasses.dataclass(frozen=True)
class Solved:
    """A problem and the trajectory that it was given.

    Attributes:
        problem: what was asked.
        log: the trajectory as text; `correct` is None where the answers could not be compared in time.
        peak, dependency, again, written: see `trajectories.Trajectory`; written are its `tokens`.
        counts: how often each action was taken, see there.
    """

    problem: Problem
    log: Log
    peak: int
    dependency: int
    again: int
    written: int
    counts: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Many of them.

    Attributes:
        accuracy: with its 95 % interval; what could not be judged counts as wrong.
        peak, dependency, again, written: means over the problems.
        parsed: the share of turns that could be read as an action. legal: of these, the share that was possible.
        edits: expands and folds, as a share of the actions that were taken.
        actions: {action: mean number a problem}.
        finishes: {finish: problems}.
    """

    problems: int
    accuracy: Interval
    peak: Interval
    dependency: Interval
    again: Interval
    written: Interval
    parsed: Interval
    legal: Interval
    edits: Interval
    actions: Mapping[str, float]
    finishes: Mapping[str, int]


def solve(
    model: Model, problems: Sequence[Problem], mode: Mode | None = None, *, budget: int | None = None, rows: int = 16,
    capacity: int = 4096, block_steps: int = 32, sampling: Sampling | None = None, seed: int = 0,
    tools: Mapping[str, Tool] | None = None, **limits,
) -> list[Solved]:  # fmt: skip
    """Lets a model solve problems, each in a trajectory of its own.

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
    return [_judged(problem, each, syntax, mode) for problem, each in zip(problems, found, strict=True)]


def summarise(found: Sequence[Solved]) -> Summary:
    """The `Summary` of a list of `Solved`."""
    names = found[0].counts if found else ()
    total = {name: sum(each.counts[name] for each in found) for name in names}
    turns, wrong = sum(total.values()), {name: total.get(name, 0) for name in WRONG}
    read = turns - wrong["malformed"]
    finishes = [each.log.finish for each in found]
    means = {name: mean([getattr(each, name) for each in found]) for name in ("peak", "dependency", "again", "written")}
    return Summary(
        len(found), wilson(sum(each.log.correct is True for each in found), len(found)), **means,
        parsed=wilson(read, turns), legal=wilson(read - wrong["illegal"], read),
        edits=wilson(sum(total.get(name, 0) for name in EDITS), read - wrong["illegal"]),
        actions={name: count / len(found) for name, count in total.items()},
        finishes={name: finishes.count(name) for name in dict.fromkeys(finishes)},
    )  # fmt: skip


def by_family(found: Sequence[Solved]) -> dict[str, Summary]:
    """The summary of each family of problems, such as problems of one difficulty, in the order of their names."""
    families = sorted({each.problem.family for each in found})
    return {name: summarise([each for each in found if each.problem.family == name]) for name in families}


def _limits(mode: Mode | None, semantics: str, budget: int | None, more: dict) -> Limits:
    if mode is None:
        if budget is not None:
            raise UserError(f"budget is {budget}, which is for mode 'budget'; give the mode, or leave the budget out")
        return Limits(semantics, **more)
    return mode.limits(semantics, budget, **more)


def _judged(problem: Problem, each: Trajectory, syntax, mode: Mode | None) -> Solved:
    log = log_of(each, syntax, problem.text, problem.system, problem.answer, extra={"mode": mode.name} if mode else {})
    verdict = False
    if log.answer:
        given, verdict = answers.judge(problem, log.answer)
        if given is None:  # an answer that is nothing but itself
            verdict = answers.same(log.answer, problem.answer)
    log = dataclasses.replace(log, correct=verdict)
    return Solved(problem, log, each.peak, each.dependency, each.again, each.tokens, each.counts)
