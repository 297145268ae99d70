"""The pruning rules: each has a trajectory that it alone removes."""

import dataclasses
import difflib
import random

import pytest

from lt_jax.errors import UserError
from lt_jax.memory.log import Log, LoggedTurn
from lt_jax.memory.prune import DUPLICATES, RULES, PruneConfig, common, reasons, symmetry, taken, verdicts
from lt_jax.memory.statistics import described, statistics, steps

T = LoggedTurn


def commit(summary, text="text "):
    return T(text, "commit", summary)


def log(*turns, correct=True, question="q", **extra) -> Log:
    return Log("1", question, (*turns, T("so ", "final_answer", "4")), gold="4", correct=correct, extra=extra)


PAIR = (T("", "expand", number=1), T("", "fold", number=1))
GOOD = log(commit("red is 4"), *PAIR, commit("blue"))
CALL = T("look ", "call", "search: red", observation="it is four")
REMOVED = {
    "correct": [
        log(*GOOD.turns[:-1], correct=False), log(*GOOD.turns[:-1], correct=None),
        dataclasses.replace(GOOD, turns=GOOD.turns[:-1], correct=False, finish="turns"),
    ],
    "suite": [log(), log(commit("a"), T("", "expand", number=1))],
    "symmetry": [
        log(CALL, PAIR[1], commit("a"), T("", "expand", number=2), T("", "fold", number=2), commit("b")),
    ],
    "expands": [log(commit("a"), commit("b"), PAIR[0], T("", "expand", number=2), PAIR[1], PAIR[0])],
    "repeated": [
        log(*GOOD.turns[:-1], CALL, CALL),
        log(commit("a"), PAIR[0], T("<expand>1</expand>", "expand", why="entity 1 is shown in full already"), PAIR[1]),
        log(commit("a"), *PAIR, T("again <fold>1</fold>", "fold", why="entity 1 is not expanded")),
    ],
    "similar": [log(commit("the sum is 123456 so far"), *PAIR, commit("the sum is 123457 so far"))],
}  # fmt: skip


def alone(name: str, **off) -> PruneConfig:
    """With one rule on, or with all but one off."""
    return PruneConfig(**{rule: rule == name for rule in (*RULES, DUPLICATES)} | off)


def test_a_good_trajectory_is_kept():
    assert GOOD.states() and reasons(GOOD, PruneConfig()) == {}
    assert reasons(log(commit("a"), commit("b"), *PAIR), PruneConfig()) == {}, "an expand may come much later"
    assert reasons(log(commit("a"), *PAIR, commit("b"), PAIR[0]), PruneConfig()) == {}, "one may stay open"


@pytest.mark.parametrize("name", REMOVED)
def test_each_rule_has_trajectories_that_it_alone_removes(name):
    for each in REMOVED[name]:
        assert each.states()
        assert list(reasons(each, PruneConfig())) == [name]
        assert list(reasons(each, alone(name))) == [name]
        found = verdicts([GOOD, each, GOOD], PruneConfig(duplicates=False))
        assert found.kept.tolist() == [True, False, True] and found.removed == {
            rule: int(rule == name) for rule in RULES
        }
        assert verdicts([each], PruneConfig(**{name: False})).kept.all(), "its switch turns it off"


def test_more_edits_than_two_of_each_commit_are_removed_by_symmetry_too():
    """As N_fold <= N_expand where all folds have an expand of their own; without that switch, this rule alone does."""
    calls = [dataclasses.replace(CALL, content=f"search: {number}") for number in range(3)]
    folds = [T("", "fold", number=number) for number in (1, 2, 3)]
    jittery = log(*calls, *folds, commit("a"), T("", "expand", number=4))
    assert jittery.states() and list(reasons(jittery, PruneConfig())) == ["symmetry", "edits"]
    assert list(reasons(jittery, PruneConfig(symmetry=False))) == ["edits"]
    assert reasons(jittery, PruneConfig(symmetry=False, edits=False)) == {}
    assert reasons(jittery, alone("edits"))["edits"] == "1 expands and 3 folds of 1 commits"
    draw, met = random.Random(0), 0
    for _ in range(300):
        each = at_random(draw)
        if symmetry(each) is None:
            count = taken(each)
            assert count["fold"] <= count["expand"]
            met += count["fold"] > 0
    assert met > 50


def at_random(draw: random.Random) -> Log:
    turns = []
    for _ in range(draw.randint(1, 12)):
        memory = log(*turns).states()[-2] if turns else None
        entities = memory.entities if memory else ()
        choices = [commit("z"), CALL]
        choices += [T("t", "fold" if each.active else "expand", number=each.number) for each in entities] * 2
        turns.append(draw.choice(choices))
    return log(*turns)


def test_duplicates_are_kept_once_and_only_among_what_is_kept():
    wrong, other = log(*GOOD.turns[:-1], correct=False), dataclasses.replace(GOOD, question="another")
    logs = [wrong, GOOD, other, GOOD, dataclasses.replace(GOOD, id="9", extra={"cost": 1.0}), other]
    found = verdicts(logs, PruneConfig())
    assert found.kept.tolist() == [False, True, True, False, False, False]
    assert found.removed == {**dict.fromkeys(RULES, 0), "correct": 1, DUPLICATES: 3}
    assert verdicts(logs, PruneConfig(duplicates=False)).kept.tolist() == [False] + [True] * 5
    assert verdicts([], PruneConfig()).kept.tolist() == []


def test_the_first_rule_counts_and_each_by_itself_is_told():
    both = log(commit("the sum is 123456 so far"), commit("the sum is 123457 so far"), correct=False)
    found = verdicts([both, both], PruneConfig())
    assert found.removed["correct"] == 2 and sum(found.removed.values()) == 2
    assert {name for name, count in found.told.items() if count} == {"correct", "suite", "similar"}


def test_common_subsequences_are_those_of_the_definition():
    def plain(a, b):
        row = [0] * (len(b) + 1)
        for x in a:
            before = row[:]
            for place, y in enumerate(b):
                row[place + 1] = before[place] + 1 if x == y else max(before[place + 1], row[place])
        return row[-1]

    draw = random.Random(1)
    for _ in range(200):
        a, b = ("".join(draw.choices("abcé", k=draw.randint(0, 40))) for _ in range(2))
        assert common(a, b) == plain(a, b)
    assert common("abc", "abc") == 3 and difflib.SequenceMatcher(None, "abc", "abc").ratio() == 1
    assert reasons(REMOVED["similar"][0], PruneConfig(similarity=0.99)) == {}
    with pytest.raises(UserError, match="prune.similarity is 2"):
        PruneConfig(similarity=2)


def test_statistics_say_how_long_steps_are_and_what_was_done_where():
    counted = dataclasses.replace(
        log(T("abcdef", "malformed", why="no action was taken"), commit("a", "12345"), *PAIR, commit("b", "1"),
            T("<fold>9</fold>", "fold", why="there is no entity 9"), difficulty=10, tokens={"read": 5, "written": 7},
            cost=0.5, attempts=3)
    )  # fmt: skip
    written = dataclasses.replace(counted, turns=tuple(dataclasses.replace(t, written=20) for t in counted.turns))
    easy = log(commit("a"), difficulty=2)
    assert steps(written, "tokens") == [40, 60] and steps(written, "characters") == [11, 1]
    numbers = statistics([written, easy, written], verdicts([written, easy, written], PruneConfig()))
    assert list(numbers["difficulties"]) == ["2", "10"], "by their size"
    hard = numbers["difficulties"]["10"]
    assert hard["actions"] == {"commit": 4, "expand": 2, "fold": 2, "call": 0, "final_answer": 2}
    assert (hard["malformed"], hard["illegal"], hard["edits"], hard["asked"], hard["kept"]) == (2, 2, 0.5, 2, 1)
    assert (hard["read"], hard["written"], hard["cost"], hard["attempts"]) == (10, 14, 1.0, 6)
    assert numbers["steps"] == {"unit": "characters", "width": 128, "counts": [5]}, "one of them has no counts"
    assert statistics([written], verdicts([written], PruneConfig()))["steps"] == {
        "unit": "tokens", "width": 32, "counts": [0, 2]
    }  # fmt: skip
    assert "3 trajectories (answered 3); 3 right; 1 kept, a yield of 33.3 %" in described(numbers)
    assert "suite 1" in described(numbers) and "duplicates 1" in described(numbers)
