"""Agents: success by difficulty, and the context by round.

The context of a round is the most that was visible when one of its turns began, so what a memory costs just before a
commit is counted too.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from lt_jax.evaluation import memory
from lt_jax.evaluation.memory import Summary
from lt_jax.memory.agent import rounds
from lt_jax.memory.log import Log

ALL = "all"


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

    groups: dict[str, Summary]
    sizes: tuple[Size, ...]
    tokens: dict[str, int]

    @property
    def saved(self) -> float:
        """The share of what had been read again without prefix reuse that was not."""
        again = self.tokens["again"] + self.tokens["reused"]
        return self.tokens["reused"] / again if again else 0.0


def summarise(logs: Sequence[Log]) -> AgentResult:
    """Success and cost of trajectories that a model wrote, or whose turns were counted from their rows."""
    kinds = sorted({log.extra["difficulty"] for log in logs if "difficulty" in log.extra})
    groups = {ALL: memory.summarise(logs)}
    of = lambda kind: [log for log in logs if log.extra.get("difficulty") == kind]
    groups |= {kind: memory.summarise(of(kind)) for kind in kinds}
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
        taken = ", ".join(f"{mean:.1f} {action}" for action, mean in each.actions.items() if mean)
        unknown = f", {each.unjudged} not judged" if each.unjudged else ""
        lines.append(f"{name}: {each.accuracy.value:.1%} of {each.problems} right{unknown}; {ends}; a question has "
                     f"{each.rounds.value:.1f} rounds: {taken}")  # fmt: skip
    lines.append("round  trajectories  context: mean     P95")
    last = result.sizes[-1].round if result.sizes else 0
    shown = [each for each in result.sizes if each.round in (1, last) or each.round % every == 0]
    lines += [f"{each.round:5}  {each.trajectories:12,}  {each.mean:13,.0f} {each.p95:7,.0f}" for each in shown]
    tokens = ", ".join(f"{count:,} {name}" for name, count in result.tokens.items())
    lines.append(f"tokens: {tokens}; reuse spared {result.saved:.1%} of what had been read again")
    return "\n".join(lines)
