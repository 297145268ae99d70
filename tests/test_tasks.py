"""The embedded problems: right, checkable at every column, seeded, and never in both train and test."""

import hashlib
import itertools
import re

import pytest
import reasoning_gym

from lt_jax.data.tasks import FAMILIES, Problems, columns
from lt_jax.errors import UserError
from lt_jax.evaluation.job import SuiteConfig


@pytest.fixture(scope="module")
def problems():
    return [Problems(120, seed=3)[i] for i in range(120)]


def test_answers_score_full_marks_with_reasoning_gym(problems):
    for problem in problems:
        given = re.fullmatch(r"Answer \\boxed\{(.*)\}", problem.thoughts[-1])[1]
        scorer = reasoning_gym.get_score_answer_fn(problem.family)
        assert scorer(given, {"answer": problem.answer, "metadata": {"source_dataset": problem.family}}) == 1.0


STEP = re.compile(r"(\d{4})([+/-])(\d{3}) (?:(\d\d) )?(\S+=\S+ \S+=\S+ \S+=\S+ \S+=\S+) (.*?)(\d{4}) (\d{3})")
SIGNS = {"<": -1, "=": 0, ">": 1}


def test_every_column_is_true(problems):
    """Reads each thought back and redoes every column with plain arithmetic."""
    for problem in problems:
        for thought in problem.thoughts[:-1]:
            a, sign, b, _, work, notes, after, _ = STEP.fullmatch(thought).groups()
            a, b, digits = int(a), int(b), ""
            result = {"+": a + b, "-": a - b, "/": a // b if sign == "/" else 0}[sign]
            for column in work.split():
                left, right = column.split("=")
                if sign == "/":
                    assert divmod(int(left), b) == (int(right[0]), int(right[1]))
                    digits += right[0]
                else:
                    x, y, carry = map(int, left)
                    assert {"+": x + y + carry, "-": x - y - carry + 20 * int(right[0])}[sign] == int(right)
                    digits = right[1] + digits
            assert int(digits) == result
            if problem.family == "gcd":
                found, signs = re.fullmatch(r"=(\d{4}) (...) ", notes).groups()
                assert int(found) == result and columns.compare(result, b) == signs
                pairs = zip(found[1:], f"{b:03d}", strict=True)
                assert [SIGNS[s] for s in signs] == [(x > y) - (x < y) for x, y in pairs]
            elif problem.family != "lcm" or sign == "+":
                assert int(after) == result


def test_every_thought_takes_up_what_the_last_one_left(problems):
    for problem in problems:
        steps = [STEP.fullmatch(thought).groups() for thought in problem.thoughts[:-1]]
        for before, after in itertools.pairwise(steps):
            assert before[6:] == (after[0], after[2]), problem
            assert after[3] is None or before[5].split()[-1] == after[3]


def test_columns_as_drawn():
    for text in (columns.add(336, 98), columns.subtract(988, 891), columns.divide(473, 2)):
        assert text in columns.__doc__
    assert f"{columns.wide(336)}+{columns.slim(98)} 24 {columns.add(336, 98)} 34 0434 098" in columns.__doc__


def test_all_families_have_long_solutions(problems):
    assert len(FAMILIES) >= 5
    for family in FAMILIES:
        lengths = [len(p.thoughts) for p in problems if p.family == family]
        assert len(lengths) == 24 and min(lengths) > 6 and max(lengths) <= 14


def test_an_early_number_is_needed_late(problems):
    """The first thought of an lcm finds how many multiples it takes; the last but one stops there."""
    for problem in problems:
        if problem.family == "lcm":
            times = STEP.fullmatch(problem.thoughts[0])[6].split()[-1][1]
            assert int(times) == len(problem.thoughts) - 2
            assert STEP.fullmatch(problem.thoughts[-2])[6] == f"{times}{times} "


def test_items_depend_on_seed_and_index_alone():
    again = Problems(10**9, seed=3)
    assert again[77] == Problems(120, seed=3)[77] != Problems(120, seed=4)[77]


def test_train_and_test_never_share_a_question():
    train, test = Problems(300, seed=0), Problems(300, seed=0, held_out=True)
    assert not any(train[i].held_out for i in range(300)) and all(test[i].held_out for i in range(300))


def test_steps_are_respected():
    for family in ("gcd", "products", "simple_equations"):
        longer = Problems(12, seed=1, steps=(15, 18), families=(family,))
        assert all(16 <= len(longer[i].thoughts) <= 20 for i in range(12))


@pytest.mark.parametrize(
    "steps, families, said",
    [
        ((15, 18), tuple(FAMILIES), "lcm has no problems of 15 to 18 steps: it can do 2 to 9; choose other steps"),
        ((15, 18), ("count_bits",), "count_bits has no problems of 15 to 18 steps: it can do 1 to 14"),
        ((19, 30), ("products",), "products has no problems of 19 to 30 steps: it can do 1 to 18"),
        ((0, 3), ("count_bits",), "steps 0 to 3: the least must be at least 1"),
        ((9, 6), ("gcd",), "steps 9 to 6: the least must be at least 1 and no more than the most"),
    ],
)
def test_steps_that_cannot_be_name_the_family_and_what_it_can_do(steps, families, said):
    with pytest.raises(UserError, match=said):
        Problems(5, steps=steps, families=families)
    with pytest.raises(UserError, match=said):
        SuiteConfig(embedded=5, steps=steps, families=families).open()


def test_steps_at_the_edge_are_done_as_far_as_they_go():
    many = Problems(8, seed=1, steps=(90, 150), families=("simple_equations",))
    assert all(91 <= len(many[i].thoughts) - 1 <= 100 for i in range(8))
    nine = Problems(4, seed=1, steps=(8, 30), families=("lcm", "count_bits"))
    assert [8 <= len(nine[i].thoughts) - 2 <= 9 for i in (0, 2)] == [True, True]
    assert all(8 <= len(nine[i].thoughts) - 1 <= 14 for i in (1, 3))
    with pytest.raises(UserError, match="problems of count_bits with 1 to 1 steps are too rare: none in 32,768 tries"):
        [Problems(2, steps=(1, 1), held_out=out, families=("count_bits",))[0] for out in (True, False)]


def test_the_training_stream_is_the_one_the_base_model_was_trained_on():
    stream = Problems(10, seed=0, steps=(3, 14))
    text = "\n".join("\n".join((stream[i].question, *stream[i].thoughts)) for i in range(10))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "38940d0736c64007"


def test_an_unknown_family_is_named():
    with pytest.raises(UserError, match="no family of problems 'sums'; there are gcd, lcm"):
        Problems(5, families=("gcd", "sums"))
