"""Multiple choices as the public sets write them."""

import json

import pytest

from lt_jax.data import answers, choices
from lt_jax.data.suites import from_files
from lt_jax.data.traces import convert
from lt_jax.errors import UserError

NUMBERS = ["1", "2", "3", "4"]
ARC = {"text": ["ice", "fog", "sun"], "label": ["A", "B", "C"]}


@pytest.mark.parametrize(
    "record, place",
    [
        ({"choices": NUMBERS, "answer": 1}, 1),
        ({"choices": NUMBERS, "answer": 0}, 0),
        ({"choices": NUMBERS, "answer": "1"}, 0),
        ({"choices": [1, 2, 3], "answer": "3"}, 2),
        ({"choices": NUMBERS, "answer": "B"}, 1),
        ({"choices": NUMBERS, "answer": "(d)"}, 3),
        ({"choices": ["Rome", "Paris"], "answer": "paris"}, 1),
        ({"choices": ["Rome", "Paris"], "answer": "B. Paris"}, 1),
        ({"choices": ["Rome", "Paris"], "answer": "so\n#### B"}, 1),
        ({"choices": ["B", "A", "C"], "answer": 0}, 0),
        ({"choices": ARC, "answerKey": "B"}, 1),
        ({"choices": {"text": ["2", "1", "3"], "label": ["1", "2", "3"]}, "answerKey": "1"}, 0),
        ({"choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answer": "2"}, 1),
        ({"options": {"A": "ice", "B": "fog"}, "answer": "fog", "answer_idx": "B"}, 1),
        ({"options": ["ice", "fog"], "answer": "B", "answer_index": 1}, 1),
        ({"endings": ["runs", "sits", "eats"], "label": "2"}, 2),
        ({"endings": ["runs", "sits", "eats"], "label": 1, "answer": None}, 1),
    ],
)
def test_the_right_option_is_found(record, place):
    answer, options = choices.read(record, "f:1")
    assert answers.choice(answer, tuple(options)) == place


@pytest.mark.parametrize(
    "record, why",
    [
        ({"choices": NUMBERS, "answer": 4}, "'answer' is 4, a number and so a place counted from 0, and there are 4"),
        ({"choices": ["cat", "dog"], "answer": "1"}, "the answer '1' is none of the 2 choices"),
        ({"choices": ["B", "A"], "answer": "B"}, "'answer' is 'B', which may be option A and B"),
        ({"choices": {"text": ["2", "1"], "label": ["1", "2"]}, "answer": "1"}, "which may be option A and B"),
        ({"choices": ARC, "answer": "A", "answer_index": 1}, "'answer' is 'A' and 'answer_index' is 1, which are diff"),
        ({"choices": {"text": ["x"], "label": []}, "answer": "y"}, "is none of the 1 choices"),
        ({"choices": {"text": ["x", "y"], "label": ["A"]}, "answer": "A"}, "field 'choices' must be a list"),
        ({"choices": ["a", "b"], "answer": True}, "must be a place counted from 0, a letter"),
        ({"choices": ["x", "x"], "answer": 1}, None),
    ],
)
def test_what_would_have_to_be_guessed_is_refused(record, why):
    if why is None:  # two options of one text: the letter tells them apart
        assert choices.read(record, "f:1")[0] == "B"
        return
    with pytest.raises(UserError) as error:
        choices.read(record, "f:1")
    assert str(error.value).startswith("f:1: ") and why in str(error.value)


def test_suites_of_all_these_kinds(tmp_path):
    records = [
        {"question": "1+1?", "choices": NUMBERS, "answer": 1, "subject": "sums"},
        {"question": "cold?", "choices": ARC, "answerKey": "A"},
        {"question_stem": "warm?", "choices": ARC, "answerKey": "C"},
        {"ctx": "The dog", "endings": ["runs", "sits"], "label": "1"},
    ]
    for number, record in enumerate(records):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(record))
        (problem,) = from_files(path, name="suite").problems
        place = answers.choice(problem.answer, problem.choices)
        assert (problem.question, place) == [("1+1?", 1), ("cold?", 0), ("warm?", 2), ("The dog", 1)][number]
    path.write_text(json.dumps({"question": "1+1?", "choices": NUMBERS, "answer": 7}))
    with pytest.raises(UserError, match=r"3.jsonl:1: 'answer' is 7"):
        from_files(path, name="suite")


def test_problems_of_several_exchanges_are_refused(tmp_path):
    turns = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns, "answer": "4"}))
    with pytest.raises(UserError, match="a.jsonl:1: a conversation of several exchanges, or with tools"):
        from_files(tmp_path / "a.jsonl", name="suite")


def test_choices_are_of_no_concern_to_training():
    assert convert({"question": "q", "response": "r", "choices": "any", "answer": 1}).extra == {"choices": "any"}
