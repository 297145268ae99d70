"""Numbers about synthesised trajectories: the length of steps, actions by difficulty, and what is left of them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from lt_jax.memory.log import Log
from lt_jax.memory.prune import Verdicts
from lt_jax.memory.syntax import ACTIONS
from lt_jax.memory.trajectories import ILLEGAL, MALFORMED

BINS = {"tokens": 32, "characters": 128}  # width of a bin of step lengths
MOST_BINS = 64  # the last one has all that is longer


@dataclasses.dataclass
class Group:
    """Sums over trajectories.

    Attributes:
        asked, answered, correct, kept: trajectories; kept by the pruning rules.
        actions: {name: how often it was taken}. malformed, illegal: turns that were not possible.
        read, written, cost, attempts: of the teacher, as `extra` says.
    """

    asked: int = 0
    answered: int = 0
    correct: int = 0
    kept: int = 0
    actions: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(ACTIONS, 0))
    malformed: int = 0
    illegal: int = 0
    read: int = 0
    written: int = 0
    cost: float = 0.0
    attempts: int = 0

    def add(self, log: Log, kept: bool) -> None:
        self.asked += 1
        self.answered += log.finish == "answered"
        self.correct += log.correct is True
        self.kept += bool(kept)
        counts = log.counts
        self.malformed += counts.pop(MALFORMED)
        self.illegal += counts.pop(ILLEGAL)
        self.actions = {name: self.actions[name] + count for name, count in counts.items()}
        tokens = log.extra.get("tokens", {})
        self.read += tokens.get("read", 0)
        self.written += tokens.get("written", 0)
        self.cost += log.extra.get("cost", 0.0)
        self.attempts += log.extra.get("attempts", 0)

    @property
    def edits(self) -> float:
        """Share of expands and folds among the actions on the memory."""
        memory = [self.actions[name] for name in ("commit", "expand", "fold")]
        return sum(memory[1:]) / max(sum(memory), 1)

    def to_json(self) -> dict:
        return {**dataclasses.asdict(self), "cost": round(self.cost, 6), "edits": self.edits,
                "yield": self.kept / max(self.asked, 1)}  # fmt: skip


def difficulty(log: Log) -> str:
    """What a trajectory is grouped by: `extra.difficulty` if it has one, else the family of its problem."""
    return str(log.extra.get("difficulty", log.extra.get("family", "all")))


def steps(log: Log, unit: str) -> list[int]:
    """Lengths of what was written before each commit since the one before.

    Args:
        unit: "tokens", as the teacher counted them, the action with its marks and impossible turns included; or
            "characters", of the text before the actions.
    """
    found, length = [], 0
    for turn in log.turns:
        length += turn.written if unit == "tokens" else len(turn.text)
        if turn.action == "commit" and not turn.why:
            found.append(length)
            length = 0
    return found


def statistics(logs: Iterable[Log], verdicts: Verdicts) -> dict[str, Any]:
    """All numbers, as JSON values; logs are looked at one by one."""
    whole, groups = Group(), collections.defaultdict(Group)
    finishes, lengths = collections.Counter(), {unit: collections.Counter() for unit in BINS}
    counted = True
    for log, kept in zip(logs, verdicts.kept, strict=True):
        for group in (whole, groups[difficulty(log)]):
            group.add(log, kept)
        finishes[log.finish] += 1
        counted &= all(turn.written for turn in log.turns)
        for unit, width in BINS.items():
            lengths[unit].update(min(each // width, MOST_BINS - 1) for each in steps(log, unit))
    unit = "tokens" if counted else "characters"  # scripts count no tokens
    counts = [lengths[unit][place] for place in range(max(lengths[unit], default=-1) + 1)]
    return {
        "all": whole.to_json(),
        "finishes": dict(sorted(finishes.items())),
        "removed": verdicts.removed,
        "removed_by_itself": verdicts.told,
        "difficulties": {name: groups[name].to_json() for name in _in_order(groups)},
        "steps": {"unit": unit, "width": BINS[unit], "counts": counts},
    }


def _in_order(names: Iterable[str]) -> Sequence[str]:
    """Numbers by their size, also where they end a name ("lookback 10"), then names."""
    def key(name: str):
        head = name.rstrip("0123456789")
        return head, int(name[len(head) :] or 0)

    return sorted(names, key=key)


def described(found: dict[str, Any]) -> str:
    """Some lines for a terminal."""
    whole = found["all"]
    removed = ", ".join(f"{name} {count:,}" for name, count in found["removed"].items()) or "no rule is on"
    ends = ", ".join(f"{name} {count:,}" for name, count in found["finishes"].items())
    taken = ", ".join(f"{name} {count:,}" for name, count in whole["actions"].items())
    return (
        f"{whole['asked']:,} trajectories ({ends}); {whole['correct']:,} right; {whole['kept']:,} kept, a yield of "
        f"{100 * whole['yield']:.1f} %\nremoved: {removed}\nactions: {taken}; malformed {whole['malformed']:,}, "
        f"illegal {whole['illegal']:,}; {100 * whole['edits']:.1f} % of the memory's are expands and folds\n"
        f"teacher: {whole['read']:,} tokens read, {whole['written']:,} written, cost {whole['cost']:.4f}, "
        f"{whole['attempts']:,} attempts"
    )
