"""Agents: questions are worked on with tools, and what comes of it is judged and counted.

    problems ─ prompt ─ Trajectories (many rows, tools in threads) ─ Log with `correct` ─ AgentResult

A round is one call of a tool with all that was done since the call before it (commits, expands, folds). Its context is
the most that was visible when one of its turns began, so what a memory costs just before a commit is counted too. An
agent without memory actions is the same with a model that never commits; under `Limits.context` it ends as "context".

What differs from the paper: its judge is not public, and is a language model for open answers, perhaps. Here an answer
is compared as in an evaluation (`data.answers.same`: numbers, words, mathematics); an answer in other words is wrong.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lt_jax.data import answers
from lt_jax.data.problem import Problem
from lt_jax.memory.log import Log, LoggedTurn, log_of
from lt_jax.memory.tools import described
from lt_jax.memory.trajectories import Tool, Trajectories, Trajectory

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Group:
    """What became of some questions.

    Attributes:
        questions, right: how many. unjudged: of those that are not right, how many nobody could judge.
        rounds: mean over the questions.
        finishes: how many trajectories ended in which way.
        actions: how often each was taken; "malformed" and "illegal" are turns that were not possible.
    """

    questions: int
    right: int
    unjudged: int
    rounds: float
    finishes: dict[str, int]
    actions: dict[str, int]

    @property
    def success(self) -> float:
        """The share that is right."""
        return self.right / self.questions if self.questions else 0.0


@dataclasses.dataclass(frozen=True)
class Size:
    """The context of one round, in tokens, over the trajectories that came to it."""

    round: int
    trajectories: int
    mean: float
    p95: float


@dataclasses.dataclass(frozen=True)
class AgentResult:
    """Success and cost.

    Attributes:
        groups: `ALL`, and by difficulty.
        sizes: by round, from 1.
        tokens: over all trajectories: written; read before turns, of them again; reused, which were there.
    """

    groups: dict[str, Group]
    sizes: tuple[Size, ...]
    tokens: dict[str, int]

    @property
    def saved(self) -> float:
        """The share of what had been read again without prefix reuse that was not."""
        again = self.tokens["again"] + self.tokens["reused"]
        return self.tokens["reused"] / again if again else 0.0


def instructions(tools: Mapping[str, Tool], memory: bool = True) -> str:
    """What an agent is told in its system prompt, for models that were not trained for one task alone."""
    actions = [
        "<call>tool: argument</call> asks a tool; its answer is shown as an entity with a number.",
        "<final_answer>answer</final_answer> ends the work.",
    ]
    if memory:
        actions[1:1] = [
            "<commit>summary</commit> archives all since the last commit, observations too; the summary stays, so put "
            "into it what will be needed, and the numbers of what may have to be read again.",
            "<expand>3</expand> shows archived entity 3 in full again; <fold>3</fold> archives it again.",
        ]
    return "\n".join(["Answer the question with the tools. Every turn is a thought and then one action:", *actions,
                      "The tools:", described(tools)])  # fmt: skip


def play(
    runner: Trajectories, problems: Sequence[tuple[Problem, int]], prompt: Callable[[Problem], Sequence[int]]
) -> Iterator[Log]:
    """Works on questions side by side; yields the log of each as it ends.

    Args:
        problems: each with the seed of its sampling.
        prompt: the ids of a question.
    """
    asked = ((place, prompt(problem), seed) for place, (problem, seed) in enumerate(problems))
    for trajectory in runner.run(asked):
        problem, _ = problems[trajectory.id]
        log = log_of(trajectory, runner.syntax, problem.text, problem.system, problem.answer)
        id, correct = str((problem.metadata or {}).get("id", trajectory.id)), judged(problem, log.answer)
        yield dataclasses.replace(log, id=id, correct=correct, extra=_extra(problem, trajectory))


def judged(problem: Problem, answer: str) -> bool | None:
    """Whether a final answer is right; None if that cannot be said."""
    if not problem.answer.strip():
        return None
    if not answer.strip():
        return False
    if problem.choices:
        return answers.same_choice(answer, problem.answer, problem.choices)
    return answers.same(answers.stated(answer), problem.answer)


def rounds(log: Log) -> list[list[LoggedTurn]]:
    """The turns by round; what follows the last call is a round too."""
    found, turns = [], []
    for turn in log.turns:
        turns.append(turn)
        if turn.action == "call" and not turn.why:
            found.append(turns)
            turns = []
    return [*found, turns] if turns else found


def summarise(logs: Sequence[Log]) -> AgentResult:
    """Success and cost of trajectories that a model wrote, or whose turns were counted from their rows."""
    kinds = sorted({log.extra["difficulty"] for log in logs if "difficulty" in log.extra})
    groups = {ALL: _group(logs)}
    groups |= {kind: _group([log for log in logs if log.extra.get("difficulty") == kind]) for kind in kinds}
    by_round: dict[int, list[int]] = collections.defaultdict(list)
    for log in logs:
        for number, turns in enumerate(rounds(log), 1):
            by_round[number].append(max(turn.context for turn in turns))
    sizes = (Size(number, len(each), float(np.mean(each)), float(np.percentile(each, 95)))
             for number, each in sorted(by_round.items()))  # fmt: skip
    total = lambda name: sum(getattr(turn, name) for log in logs for turn in log.turns)
    tokens = {name: total(name) for name in ("written", "read", "again")}
    return AgentResult(groups, tuple(sizes), tokens | {"reused": sum(log.extra.get("reused", 0) for log in logs)})


def table(result: AgentResult, every: int = 10) -> str:
    """The result as lines of text; the context of every tenth round."""
    lines = []
    for name, each in result.groups.items():
        ends = ", ".join(f"{count} {finish}" for finish, count in each.finishes.items())
        taken = ", ".join(f"{count} {action}" for action, count in each.actions.items())
        unknown = f", {each.unjudged} not judged" if each.unjudged else ""
        lines.append(f"{name}: {each.right} of {each.questions} right ({each.success:.1%}{unknown}), "
                     f"{each.rounds:.1f} rounds; {ends}; {taken}")  # fmt: skip
    lines.append("round  trajectories  context: mean     P95")
    last = result.sizes[-1].round if result.sizes else 0
    shown = [each for each in result.sizes if each.round in (1, last) or each.round % every == 0]
    lines += [f"{each.round:5}  {each.trajectories:12,}  {each.mean:13,.0f} {each.p95:7,.0f}" for each in shown]
    tokens = ", ".join(f"{count:,} {name}" for name, count in result.tokens.items())
    lines.append(f"tokens: {tokens}; reuse spared {result.saved:.1%} of what had been read again")
    return "\n".join(lines)


def _extra(problem: Problem, trajectory: Trajectory) -> dict:
    metadata = {name: value for name, value in (problem.metadata or {}).items() if name != "id"}
    reused = sum(each.reused for each in trajectory.turns)
    counts = {"peak": trajectory.peak, "dependency": trajectory.dependency, "reused": reused, "seed": trajectory.seed}
    return {"family": problem.family, **metadata, **counts, **({"why": trajectory.why} if trajectory.why else {})}


def _group(logs: Sequence[Log]) -> Group:
    actions: collections.Counter[str] = collections.Counter()
    for turn in (turn for log in logs for turn in log.turns):
        actions["illegal" if turn.why and turn.action != "malformed" else turn.action] += 1
    length = float(np.mean([len(rounds(log)) for log in logs])) if logs else 0.0
    finishes = collections.Counter(log.finish for log in logs)
    return Group(
        len(logs), sum(log.correct is True for log in logs), sum(log.correct is None for log in logs), length,
        dict(finishes.most_common()), dict(actions.most_common()),
    )  # fmt: skip
