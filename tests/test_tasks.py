"""The embedded problems: right, checkable at every column, seeded, and never in both train and test."""

import re

import pytest
import reasoning_gym

from lt_jax.data.tasks import FAMILIES, Problems, columns


@pytest.fixture(scope="module")
def problems():
    return [Problems(120, seed=3)[i] for i in range(120)]


def test_answers_score_full_marks_with_reasoning_gym(problems):
    for problem in problems:
        given = re.fullmatch(r"Answer \\boxed\{(.*)\}", problem.thoughts[-1])[1]
        scorer = reasoning_gym.get_score_answer_fn(problem.family)
        assert scorer(given, {"answer": problem.answer, "metadata": {"source_dataset": problem.family}}) == 1.0


def test_every_column_is_true(problems):
    """Reads each thought back and redoes every column with plain arithmetic."""
    seen = 0
    for problem in problems:
        for thought in problem.thoughts[:-1]:
            if not (step := re.search(r"(\d{4})([+*/-])(\d+) (.*?) =(\d{4})(?:,(\d)| \d+\)(\d)$)?", thought)):
                assert problem.family == "base_conversion" and "/" not in thought
                continue
            a, sign, b, work, result, rest = *step.group(1, 2, 3, 4, 5), step[6] or step[7]
            a, b, result = int(a), int(b), int(result)
            want = {"+": a + b, "-": a - b, "*": a * b, "/": a // 2}[sign]
            assert result == want and (rest is None or int(rest) == a % 2)
            digits = "".join(column[-1] if sign != "/" else column.split("=")[1][0] for column in work.split())
            assert digits == (f"{result:04d}" if sign == "/" else f"{result:04d}"[::-1])
            for column in work.split():
                left, right = column.split("=")
                if sign == "/":
                    assert divmod(int(left), 2) == (int(right[0]), int(right[1]))
                else:
                    x, y, carry = map(int, left)
                    total = {"+": x + y + carry, "-": x - y - carry + 10 * int(right[0]), "*": x * y + carry}[sign]
                    assert total == (int(right) if sign != "-" else int(right[1]))
                seen += 1
    assert seen > 3000


def test_columns_as_drawn():
    drawn = columns.__doc__
    for text in (columns.subtract(988, 891), columns.times_digit(336, 4), columns.halve(473)):
        assert re.sub(r"\s+", " ", text) in re.sub(r"\s+", " ", drawn)


def test_all_families_have_long_solutions(problems):
    assert len(FAMILIES) >= 5
    for family in FAMILIES:
        lengths = [len(p.thoughts) for p in problems if p.family == family]
        assert len(lengths) == 20 and min(lengths) > 6 and max(lengths) <= 14


def test_an_early_number_is_needed_late(problems):
    for problem in problems:
        if problem.family == "base_conversion":
            bits = dict(part.split(")") for part in problem.thoughts[-2].split())
            for thought in problem.thoughts[:-2]:
                number = thought.split(")")[0]
                assert thought.endswith(f" {number}){bits[number]}")


def test_items_depend_on_seed_and_index_alone():
    again = Problems(10**9, seed=3)
    assert again[77] == Problems(120, seed=3)[77] != Problems(120, seed=4)[77]


def test_train_and_test_never_share_a_question():
    train, test = Problems(300, seed=0, shift=8), Problems(300, seed=0, held_out=True)
    assert not any(train[i].held_out for i in range(300)) and all(test[i].held_out for i in range(300))


def test_steps_are_respected():
    for family in FAMILIES:
        if family != "products":  # eight and more factors rarely stay below four digits
            longer = Problems(12, seed=1, steps=(13, 14), families=(family,))
            assert all(14 <= len(longer[i].thoughts) <= 16 for i in range(12))
