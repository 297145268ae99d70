"""Look-ups: every number can be found above and is trained, drills follow from their numbers and grow."""

import numpy as np
import pytest

from lt_jax.demo import BASE
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import default_table
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.lifetimes import NEVER
from lt_jax.memory.multihop import LETTERS, NAMES, TOOLS, TrailConfig, worlds
from lt_jax.memory.multihop_expert import solved
from lt_jax.memory.multihop_look_ups import FEW, MANY, Drills, LookUps
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
    row = LookUps({"c": 7, "k": 12, "m": 3, "q": 5, "z": 1}, ("k", "c")).row(syntax, framed=True)
    assert syntax.text(row.tokens.tolist()) == (
        "<commit>7c 12k 3m 5q next c</commit><memory>4</memory><commit>1z next c</commit><memory>8</memory>"
        "k12<expand>12</expand></memory>c7<expand>7</expand></memory>")  # fmt: skip
    assert syntax.text(row.tokens[row.trained].tolist()) == "12<expand>12</expand>7<expand>7</expand>"
    near, far = (LookUps({"c": 7, "k": 12}, ("k", "c"), gap).row(syntax, framed=True) for gap in (0, 100))
    asked = np.flatnonzero(near.trained)[0] - 1
    assert (far.position - near.position == 100 * (np.arange(len(far)) >= asked)).all()
    row = LookUps({"417": 7}, ("417",)).row(syntax)
    assert syntax.text(row.tokens.tolist()) == "417:7\n417:7 "
    assert syntax.text(row.tokens[row.trained].tolist()) == ":7 "


def test_drills_are_many_and_grow():
    drills = Drills(1000, LETTERS)
    assert [drills[number] for number in range(1000)] == list(Drills(1000, LETTERS)) and len(drills) == 1000
    sizes = [len(drill.entries) for drill in drills]
    assert set(sizes[:100]) == {FEW} and max(sizes[100:300]) < max(sizes[300:400]) < MANY == max(sizes)
    assert {FEW, 9, MANY} <= set(sizes[600:]), "small ones are not forgotten"
    for drill in drills:
        assert set(drill.asked) <= set(drill.entries) and len(set(drill.entries.values())) == len(drill.entries)
    numbers = [max(drill.entries.values()) for drill in drills]
    assert max(numbers[:100]) <= 9 and max(numbers) == 40
    gaps = [drill.gap for drill in drills]
    assert not any(gaps[:500]) and max(gaps[500:600]) < 100 < 1000 < max(gaps) < 1500 and 0 in gaps[900:]
    assert len({tuple(drill.entries.items()) for drill in drills}) > 980
    with pytest.raises(UserError, match="20 names or more, not 3"):
        Drills(10, NAMES[:3])


def test_the_expert_writes_as_the_drills_do():
    trails = TrailConfig(hops=(12, 22), recalls=(1, 3), distractors=0, letters=True)
    seen = 0
    for place in worlds(trails, 6, seed=4):
        with tools(TOOLS, place.corpus) as named:
            for problem in place.problems:
                listed = {}
                for turn in solved(problem, named).turns:
                    if turn.action == "commit":
                        entries = (each for each in turn.content.split(" next ")[0].split())
                        listed |= {each[-1]: int(each[:-1]) for each in entries}
                    if turn.action == "expand":
                        name, number = turn.text[-1 - len(str(turn.number))], turn.text[-len(str(turn.number)) :]
                        assert listed[name] == turn.number == int(number)
                        seen += 1
    assert seen >= 6
