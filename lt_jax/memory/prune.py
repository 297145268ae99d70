"""Which trajectories are worth learning from: the pruning rules of LightThinker++ (section 4.2; B4 of our notes).

    correct      the answer is known to be right
    suite        commit, expand and fold were all used
    symmetry     a fold of an entity comes after an expand of it
    expands      N_expand <= N_commit
    edits        N_expand + N_fold <= 2 N_commit
    repeated     no operation is written twice in a row
    similar      summaries of consecutive commits have no longest common subsequence above 0.9 of the longer
    duplicates   the same question with the same turns is kept once

Each is a pure function, Log -> reason or None, and has a switch of its own. A rule looks at the actions that were
taken; `repeated` looks at impossible ones too, as those are what is jittery.

`edits` removes nothing that `symmetry` and `expands` together would not: each fold then has an expand of its own. It is
there for sets where one of these is off. Of our machine's trajectories, `symmetry` removes those that fold an
observation which was shown since it came; the paper's observations are no entities.

What differs from the paper: how it reads equal operations, and whether its subsequences are of characters or tokens, is
not said. Here two operations are equal if action and content are, and characters count.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable

import numpy as np

from lt_jax.errors import UserError
from lt_jax.memory.log import Log, LoggedTurn
from lt_jax.memory.machine import Expand, Fold
from lt_jax.memory.syntax import spelt
from lt_jax.memory.trajectories import MALFORMED

SYNTAX = spelt()
DIGEST = 16  # bytes that tell trajectories apart


def taken(log: Log) -> collections.Counter:
    """How often each action was taken."""
    return collections.Counter(turn.action for turn in log.turns if not turn.why)


def correct(log: Log) -> str | None:
    if log.correct:
        return None
    if not log.answer:
        return "no answer"
    return "the answer is wrong" if log.correct is False else "the answer is not known to be right"


def suite(log: Log) -> str | None:
    missing = [name for name in ("commit", "expand", "fold") if not taken(log)[name]]
    return f"without {missing[0]}" if missing else None


def symmetry(log: Log) -> str | None:
    expanded = set()
    for turn in log.turns:
        if isinstance(turn.taken, Expand):
            expanded.add(turn.number)
        elif isinstance(turn.taken, Fold) and turn.number not in expanded:
            return f"entity {turn.number} was folded and never expanded"
    return None


def expands(log: Log) -> str | None:
    count = taken(log)
    more = count["expand"] > count["commit"]
    return f"{count['expand']} expands of {count['commit']} commits" if more else None


def edits(log: Log) -> str | None:
    count = taken(log)
    more = count["expand"] + count["fold"] > 2 * count["commit"]
    return f"{count['expand']} expands and {count['fold']} folds of {count['commit']} commits" if more else None


def repeated(log: Log) -> str | None:
    said = [_operation(turn) for turn in log.turns]
    again = next((a for a, b in itertools.pairwise(said) if a == b and a is not None), None)
    return f"{again[0]} was repeated" if again else None


def _operation(turn: LoggedTurn) -> tuple[str, object] | None:
    """(action, content or number) of a turn, possible or not; None of a malformed one."""
    if turn.action == MALFORMED:
        return None
    if not turn.why:
        return turn.action, turn.number or turn.content
    read = SYNTAX.read(SYNTAX.tokenize(turn.text))  # all that was written is in its text
    if isinstance(read.action, Expand | Fold):
        return turn.action, read.action.number
    return turn.action, SYNTAX.text(read.marked[1:-1])


def similar(log: Log, most: float = 0.9) -> str | None:
    said = [turn.content for turn in log.turns if turn.action == "commit" and not turn.why]
    for number, (a, b) in enumerate(itertools.pairwise(said), 1):
        share = common(a, b) / max(len(a), len(b))
        if share > most:
            return f"commits {number} and {number + 1} have {share:.2f} in common"
    return None


def common(a: str, b: str) -> int:
    """Length of the longest common subsequence, bit by bit (Hyyrö 2004): a big integer holds a column."""
    places: dict[str, int] = collections.defaultdict(int)
    for place, character in enumerate(a):
        places[character] |= 1 << place
    every = (1 << len(a)) - 1
    column = every
    for character in b:
        match = column & places.get(character, 0)
        column = ((column + match) | (column - match)) & every
    return len(a) - column.bit_count()


RULES: dict[str, Callable[[Log], str | None]] = {
    "correct": correct, "suite": suite, "symmetry": symmetry, "expands": expands, "edits": edits,
    "repeated": repeated, "similar": similar,
}  # fmt: skip
DUPLICATES = "duplicates"


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """Which rules are on, see the head of the file; `similarity` is the limit of `similar`."""

    correct: bool = True
    suite: bool = True
    symmetry: bool = True
    expands: bool = True
    edits: bool = True
    repeated: bool = True
    similar: bool = True
    duplicates: bool = True
    similarity: float = 0.9

    def __post_init__(self):
        if not 0 < self.similarity <= 1:
            raise UserError(f"prune.similarity is {self.similarity}; it must be above 0 and at most 1")

    @property
    def on(self) -> tuple[str, ...]:
        """Names of the rules that look at one trajectory."""
        return tuple(name for name in RULES if getattr(self, name))


def reasons(log: Log, config: PruneConfig) -> dict[str, str]:
    """{rule: reason} of all rules that would remove a trajectory; duplicates are told by `verdicts`."""
    rules = {**RULES, "similar": lambda log: similar(log, config.similarity)}
    found = {name: rules[name](log) for name in config.on}
    return {name: why for name, why in found.items() if why is not None}


def digest(log: Log) -> bytes:
    """What duplicates have in common: the question and the turns."""
    said = [[turn.text, turn.action, turn.content, turn.number, turn.observation] for turn in log.turns]
    return hashlib.sha256(json.dumps([log.system, log.question, said]).encode()).digest()[:DIGEST]


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """What becomes of each trajectory.

    Attributes:
        kept: [N] bool.
        removed: {rule: how many were removed by it}, each trajectory under the first rule that removes it.
        told: {rule: how many it would remove by itself}; for duplicates, of those that all other rules keep.
    """

    kept: np.ndarray
    removed: dict[str, int]
    told: dict[str, int]


def verdicts(logs: Iterable[Log], config: PruneConfig) -> Verdicts:
    """Looks at each trajectory once. Memory: 17 bytes for each."""
    names = [*config.on, *([DUPLICATES] if config.duplicates else [])]
    removed, told = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    kept, digests = bytearray(), bytearray()
    for log in logs:
        found = reasons(log, config)
        for name in found:
            told[name] += 1
        if found:
            removed[next(iter(found))] += 1
        kept.append(not found)
        digests += digest(log)
    whole = np.frombuffer(bytes(kept), bool).copy()
    if config.duplicates and whole.any():
        rows = np.frombuffer(bytes(digests), np.uint64).reshape(-1, DIGEST // 8)[whole]
        _, first = np.unique(rows, axis=0, return_index=True)
        again = np.ones(len(rows), bool)
        again[first] = False
        removed[DUPLICATES] = told[DUPLICATES] = int(again.sum())
        whole[np.flatnonzero(whole)[again]] = False
    return Verdicts(whole, removed, told)
