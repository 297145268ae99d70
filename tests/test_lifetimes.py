"""The rule itself: the pictures of its docstring, the gist rules, and the written-out rule of the specification."""

from __future__ import annotations

import inspect
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.lifetimes import GIST_RULES, NEVER, Lifetimes, causal, dense_mask, draw, visible
from tests.attention_rows import THOUGHTS, lightthinker

TOKENS = "abgodeho"
DEATH = np.array([3, 3, NEVER, NEVER, 7, 7, NEVER, NEVER], np.int32)
PICTURE = """\
    a b g o d e h o
a   1 . . . . . . .
b   1 1 . . . . . .
g   1 1 1 . . . . .
o   . . 1 1 . . . .
d   . . 1 1 1 . . .
e   . . 1 1 1 1 . .
h   . . 1 1 1 1 1 .
o   . . 1 1 . . 1 1"""
# Two gists `g h` after a thought `a b`, then `o`; the rows of the two gists under each rule.
GIST_ROWS = {
    "causal": ["1 1 1 . .", "1 1 1 1 ."],
    "bidirectional": ["1 1 1 1 .", "1 1 1 1 ."],
    "diagonal": ["1 1 1 . .", "1 1 . 1 ."],
}


def test_picture_of_the_docstring():
    index = np.arange(8)
    assert draw(visible(index, DEATH, index), TOKENS) == PICTURE
    assert textwrap.indent(PICTURE, 8 * " ") in inspect.getdoc(visible)


def test_draw_without_labels():
    assert draw(np.eye(3)) == "1 . .\n. 1 .\n. . 1"


@pytest.mark.parametrize("rule", GIST_RULES)
def test_gist_rules(rule):
    death = jnp.array([[4, 4, NEVER, NEVER, NEVER]], jnp.int32)
    gist = jnp.array([[-1, -1, 7, 7, -1]], jnp.int32)
    drawn = draw(dense_mask(Lifetimes(death, gist=gist, gist_rule=rule))[0, 0]).splitlines()
    assert drawn[2:4] == GIST_ROWS[rule]
    assert [drawn[0], drawn[1], drawn[4]] == ["1 . . . .", "1 1 . . .", ". . 1 1 1"]


def test_since_hides_older_keys():
    since = jnp.array([[0, 0, 2, 1]], jnp.int32)
    assert draw(dense_mask(Lifetimes(causal(1, 4).death, since=since))[0, 0]).splitlines() == [
        "1 . . .",
        "1 1 . .",
        ". . 1 .",
        ". 1 1 1",
    ]


def test_heads_of_their_own_and_empty_slots():
    death = jnp.array([[[NEVER, NEVER, NEVER], [1, NEVER, NEVER]]], jnp.int32)
    mask = dense_mask(Lifetimes(death))
    assert mask.shape == (1, 2, 3, 3)
    assert draw(mask[0, 1]) == "1 . .\n. 1 .\n. 1 1"
    assert not visible(np.array([-1]), np.array([NEVER]), np.arange(3)).any()


def test_keys_first_is_the_same_rule_turned():
    life = lightthinker(60, rule="bidirectional", see_current=True)
    index = np.arange(60)
    args = index, np.asarray(life.death[0]), index, *(np.asarray(x[0]) for x in (life.since, life.gist, life.gist))
    assert np.array_equal(visible(*args, life.gist_rule, keys_first=True), visible(*args, life.gist_rule).T)


def _specification(length, see_current, rule, exclude_continue):
    """Section 2.1 of the LightThinker rules cell by cell, from segment names, without deaths: bool [T, S]."""
    prompt, thought, gists = THOUGHTS
    kind, block, k = ["X"] * prompt, [-1] * prompt, 0
    while len(kind) < length:
        kind += ["S"] * thought + ["C"] * gists + ["O"]
        block += [k] * (thought + gists + 1)
        k += 1
    kind, block = kind[:length], block[:length]
    mask = np.zeros((length, length), bool)
    for q in range(length):
        for key in range(length):
            same = block[q] == block[key]
            if kind[q] == kind[key] == "C" and same:
                mask[q, key] = {"causal": key <= q, "bidirectional": True, "diagonal": key == q}[rule]
                continue
            seen = key <= q
            if kind[key] == "S":
                seen &= same and kind[q] in "SC"
            if see_current and kind[q] == "C":
                seen &= kind[key] != "X" and same
            if exclude_continue and kind[key] == "O":  # from the next output token onward
                seen &= block[q] <= block[key] or (block[q] == block[key] + 1 and kind[q] != "O")
            mask[q, key] = seen
    return mask


@pytest.mark.parametrize("exclude_continue", [False, True])
@pytest.mark.parametrize("rule", GIST_RULES)
@pytest.mark.parametrize("see_current", [False, True])
def test_lightthinker_as_specified(see_current, rule, exclude_continue):
    length = THOUGHTS[0] + 3 * (THOUGHTS[1] + THOUGHTS[2] + 1) + 2
    mask = dense_mask(lightthinker(length, see_current, rule, exclude_continue))[0, 0]
    assert np.array_equal(mask, _specification(length, see_current, rule, exclude_continue))
