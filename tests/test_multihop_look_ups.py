"""Look-ups: every number can be found above and is trained, drills follow from their numbers and grow."""

import numpy as np
import pytest

from lt_jax.demo import BASE
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import default_table
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.lifetimes import NEVER
from lt_jax.memory.multihop import CAPITALS, LETTERS, NAMES, TOOLS, TrailConfig, worlds
from lt_jax.memory.multihop_expert import solved
from lt_jax.memory.multihop_look_ups import FURTHER, GROWING, Drills, LookUps, Stage
from lt_jax.memory.syntax import syntax_of
from lt_jax.memory.tools import tools


@pytest.fixture(scope="module")
def syntax():
    tokenizer = load_tokenizer(BASE)
    return syntax_of(default_table(tokenizer, Scheme("memory"), eos="<|end|>", pad="<|pad|>").special, tokenizer)


def test_of_what_is_asked_the_numbers_are_trained(syntax):
    row = LookUps({"c": 7, "k": 12}, ("k", "c")).row(syntax)
    assert syntax.text(row.tokens.tolist()) == "7c 12k\nk12 c7 "
    assert syntax.text(row.tokens[row.trained].tolist()) == "12 7 "
    assert (row.death == NEVER).all() and (row.position == np.arange(len(row))).all()
    row = LookUps({"417": 7}, ("417",)).row(syntax)
    assert syntax.text(row.tokens.tolist()) == "417:7\n417:7 "
    assert syntax.text(row.tokens[row.trained].tolist()) == ":7 "


def test_framed_drills_are_what_is_left_of_a_trail(syntax):
    entries = {"c": 7, "k": 12, "m": 3, "q": 5, "z": 1}
    near, far = (LookUps(entries, ("k", "c", "z"), gap, framed=True).row(syntax) for gap in (0, 100))
    assert syntax.text(near.tokens.tolist()) == (
        "<commit>7c 12k 3m 5q next z</commit><memory>4</memory><commit>1z next q</commit><memory>8</memory>"
        "next rk</memory>k12<expand>12</expand>end fc</memory>c7<expand>7</expand><fold>7</fold>z1<expand>1</expand>"
    )  # fmt: skip
    trained = syntax.text(near.tokens[near.trained].tolist())
    assert trained == "k12<expand>12</expand>c7<expand>7</expand>1<expand>1</expand>"
    second = np.flatnonzero(near.tokens == syntax.pair("commit")[0])[1]
    listed = np.flatnonzero(near.tokens == syntax.pair("memory")[1])[1]  # the end of the second summary
    moved = 50 * (np.arange(len(near)) >= second) + 50 * (np.arange(len(near)) > listed)
    assert (far.position - near.position == moved).all()


def test_drills_are_many_and_grow():
    far, framed = Stage(300, (20, 20), (4, 1500)), Stage(100, (20, 20), (9, 9), 0.5)
    stages = (Stage(300, (2, 9)), Stage(300, (12, 20)), far, framed)
    drills = Drills(LETTERS, stages)
    assert list(drills) == list(Drills(LETTERS, stages)) and len(drills) == 1000
    sizes = [len(drill.entries) for drill in drills]
    assert set(sizes[:20]) == {2} and max(sizes[20:300]) == 9 < max(sizes[300:400]) < max(sizes[500:600]) == 20
    assert {2, 9, 20} <= set(sizes[600:]), "small ones are not forgotten"
    for drill in drills:
        assert set(drill.asked) <= set(drill.entries) and len(set(drill.asked)) == len(drill.asked), "none twice"
        assert len(set(drill.entries.values())) == len(drill.entries)
        assert len(drill.asked) == (min(8, len(drill.entries)) if drill.framed else len(drill.entries))
    numbers = [max(drill.entries.values()) for drill in drills]
    assert max(numbers[:300]) <= 9 and max(numbers) == 40
    gaps = [drill.gap for drill in drills]
    assert not any(gaps[:600]) and max(gaps[600:640]) < 20 < 1000 < max(gaps[600:900]) < 1500 and max(gaps[900:]) < 9
    assert 30 < sum(drill.framed for drill in drills) == sum(drill.framed for drill in list(drills)[900:]) < 70
    assert len({tuple(drill.entries.items()) for drill in drills}) > 980
    with pytest.raises(UserError, match="20 names or more, not 3"):
        Drills(NAMES[:3])
    with pytest.raises(IndexError):
        drills[1000]


def test_what_is_trained_grows_from_stage_to_stage():
    stages = GROWING + FURTHER
    for first, then in zip(stages, stages[1:], strict=False):
        assert first.names[1] <= then.names[0] and first.gap[1] <= then.gap[0] and first.most <= then.most
    assert Drills(CAPITALS, FURTHER)[len(Drills(CAPITALS, FURTHER)) - 1].gap < 4500


@pytest.mark.parametrize("hops", [(12, 22), (40, 48)])
def test_the_expert_writes_as_the_drills_do(hops):
    trails = TrailConfig(hops=hops, recalls=(1, 3), distractors=0, letters=True)
    assert trails.names == (LETTERS if hops == (12, 22) else CAPITALS)
    seen = 0
    for place in worlds(trails, 6, seed=4):
        with tools(TOOLS, place.corpus) as named:
            for problem in place.problems:
                listed, log = {}, solved(problem, named)
                assert log.correct
                for turn in log.turns:
                    if turn.action == "commit":
                        entries = (each for each in turn.content.split(" next ")[0].split())
                        listed |= {each[-1]: int(each[:-1]) for each in entries}
                    if turn.action == "expand":
                        name, number = turn.text[-1 - len(str(turn.number))], turn.text[-len(str(turn.number)) :]
                        assert listed[name] == turn.number == int(number)
                        seen += 1
    assert seen >= 6
