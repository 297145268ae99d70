"""Segmenters lose nothing and keep to their lengths."""

import itertools
import random
import time

import pytest

from lt_jax.errors import UserError
from lt_jax.layout.segment import merge, paragraphs, segment, sentences, token_chunks, without_break

TEXTS = [
    "",
    "\n\n",
    " \n ",
    "One.",
    "\n\nOne two.\n\n\nThree? Yes!\n\n",
    "1. First step. 2. Second.\nx = 3.5 and so on. Then \"quoted.\" End\n\n\n  code()\n\n",
    "漢字。日本語！ ok",
    "a" * 50,
    "a. \r\n\r\n b\r\rc!\r\n \t\r\nd\u2029e.\u2028\u2028f\x85\x0c\x85g\r\n\n",
]


def random_texts(count=60):
    rng = random.Random(0)
    weights = [6, 6, 4, 1, 1, 1, 3, 2]
    return ["".join(rng.choices("ab .!?\n\r", weights, k=rng.randint(1, 80))) for _ in range(count)]


@pytest.mark.parametrize("cut", [paragraphs, sentences])
def test_segments_joined_are_the_text(cut):
    for text in [*TEXTS, *random_texts()]:
        pieces = cut(text)
        assert "".join(pieces) == text
        assert all(pieces)
        assert not text.strip() or all(piece.strip() for piece in pieces)


@pytest.mark.parametrize("by", ["paragraph", "sentence"])
@pytest.mark.parametrize("minimum, maximum", [(0, None), (12, None), (0, 9), (5, 14), (7, 7)])
def test_lengths_are_kept_and_nothing_is_lost(by, minimum, maximum):
    for text in [*TEXTS, *random_texts()]:
        pieces = segment(text, by, minimum, maximum)
        assert "".join(pieces) == text
        assert maximum is None or all(len(piece) <= maximum for piece in pieces)
        for left, right in itertools.pairwise(pieces):  # short only where joining would break the maximum
            assert len(left) >= minimum or (maximum is not None and len(left) + len(right) > maximum)


def test_paragraphs_end_with_their_empty_line():
    assert paragraphs("a\nb\n\nc\n\n\nd") == ["a\nb\n\n", "c\n\n\n", "d"]
    assert paragraphs("\n\na\n\n") == ["\n\na\n\n"]


EMPTY = [
    "\n\n", "\r\n\r\n", "\r\r", "\n \n", "\r\n\t \r\n", "\n\r\n", "\n\x0c\n", "\n\xa0\n\n",
    "\x85\x85", "\u2028\u2028", "\u2029",
]  # fmt: skip


@pytest.mark.parametrize("empty", EMPTY)
def test_an_empty_line_is_one_however_lines_end(empty):
    assert paragraphs(f"a{empty}b{empty}") == [f"a{empty}", f"b{empty}"]
    assert sentences(f"So.{empty}b") == [f"So.{empty}", "b"]
    assert without_break(f"a {empty}") == "a " and without_break("a  ") == "a  "


def test_the_end_of_a_line_is_no_empty_line():
    for text in ("a\r\nb", "a\nb", "a\rb", "a\u2028b", "a \r\n b"):
        assert paragraphs(text) == [text] and len(sentences(text)) == 2


def test_long_runs_take_no_longer_than_their_length():
    for text in ("." * 200_000 + "x", " " * 200_000, "\n" + " " * 200_000 + "x", "a" + "\n " * 100_000):
        began = time.perf_counter()
        assert "".join(sentences(text)) == "".join(paragraphs(text)) == text and without_break(text) is not None
        segment("a" + " " * 50_000, maximum=40_000)
        assert time.perf_counter() - began < 10


def test_sentences_know_lists_numbers_and_short_forms():
    assert sentences("So x = 3.5. It holds, e.g. here! Fine") == ["So x = 3.5.", " It holds, e.g. here!", " Fine"]
    assert sentences("1. Add.\n2. Take it.") == ["1. Add.\n", "2. Take it."]
    assert sentences("1.\r\nAdd. \r\nSee e.g.\r\nhere") == ["1.\r\nAdd. \r\n", "See e.g.\r\nhere"]
    assert sentences("The answer is B. Next") == ["The answer is B.", " Next"]
    assert sentences('He said "no." Then') == ['He said "no."', " Then"]


def test_a_long_piece_is_cut_at_sentences_then_words_then_characters():
    assert segment("Aa bb. Cc dd.", maximum=7) == ["Aa bb.", " Cc dd."]
    assert segment("Aa bb cc", maximum=6) == ["Aa bb", " cc"]
    assert segment("abcdef", maximum=4) == ["abcd", "ef"]


def test_the_last_short_piece_joins_the_one_before():
    assert merge(["aaaa", "b"], minimum=3) == ["aaaab"]
    assert merge(["aaaa", "b"], minimum=3, maximum=4) == ["aaaa", "b"]


def test_lengths_may_be_measured_in_tokens():
    words = lambda text: len(text.split())
    assert segment("a b c\n\nd\n\ne f g h", minimum=2, measure=words) == ["a b c\n\n", "d\n\ne f g h"]


@pytest.mark.parametrize(
    "minimum, maximum, last", [(1, None, [6]), (2, None, [3, 4, 5, 6]), (2, 3, [5, 6]), (3, 3, [6])]
)
def test_token_chunks(minimum, maximum, last):
    chunks = token_chunks(range(7), 3, minimum, maximum)
    assert [token for chunk in chunks for token in chunk] == list(range(7))
    assert chunks[0] == [0, 1, 2] and chunks[-1] == last


@pytest.mark.parametrize(
    "call",
    [
        lambda: segment("a", "page"),
        lambda: segment("a", minimum=3, maximum=2),
        lambda: segment("a", maximum=0),
        lambda: token_chunks([1], 0),
        lambda: token_chunks([1], 2, maximum=1),
        lambda: token_chunks([1], 2, minimum=3),
    ],
)
def test_lengths_that_cannot_be_kept_are_refused(call):
    with pytest.raises(UserError):
        call()
