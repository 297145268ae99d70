"""Traces as rows, sources put together, and the numbers of a data set."""

import re

import numpy as np
import pytest

from lt_jax.data.prompts import Prompter
from lt_jax.data.rows import RowMaker, ready_thoughts
from lt_jax.data.sources import Mapped, Part, hold_out, worked
from lt_jax.data.stats import measure
from lt_jax.data.tasks.worked import Worked
from lt_jax.data.traces import Trace, Turn
from lt_jax.errors import UserError
from lt_jax.layout.build import build_row
from lt_jax.layout.chat import HELPFUL, STEP_BY_STEP
from lt_jax.layout.row import Role
from lt_jax.layout.scheme import Scheme
from lt_jax.lifetimes import NEVER
from tests.layout_tools import TABLE, characters
from tests.test_data_traces import MARKED

TRACE = Trace("q?", "one\n\ntwo. three\n\nfour", "sys")


class Characters:
    """A tokenizer of single characters; Memento's markers are one token each."""

    def encode(self, text, add_special_tokens=False):
        ids = []
        for number, marker in enumerate(("<|block_start|>", "<|block_end|>", "<|summary_start|>", "<|summary_end|>")):
            text = text.replace(marker, chr(0xE000 + number))
        for character in text:
            number = ord(character) - 0xE000
            ids += [TABLE.memento[number]] if 0 <= number < 4 else characters(character)
        return ids


def maker(scheme=None, **more):
    scheme = scheme or Scheme(n_gist=2)
    return RowMaker(scheme=scheme, special=TABLE, tokenizer=Characters(), prompt=Prompter("plain"), **more)


def text(ids):
    return "".join(chr(token - 20) if token >= 20 else "#" for token in ids)


def test_a_trace_is_laid_out_as_build_row_does_with_its_paragraphs():
    row = maker()(TRACE)
    by_hand = build_row(
        Scheme(n_gist=2), TABLE, "sysq?", ["one\n\n", "two. three\n\n", "four"], characters, add_eos=True
    )
    for name in vars(row):
        np.testing.assert_array_equal(getattr(row, name), getattr(by_hand, name), err_msg=name)
    assert text(row.tokens[row.role == Role.THOUGHT]) == "onetwo. threefour"
    assert row.tokens[-1] == TABLE.eos and maker()(Trace("q", "r", add_eos=False)).tokens[-1] != TABLE.eos


@pytest.mark.parametrize(
    "scheme, more, pieces",
    [
        (None, {}, ["one\n\n", "two. three\n\n", "four"]),
        (None, {"segment": "sentence"}, ["one\n\n", "two.", " three\n\n", "four"]),
        (None, {"minimum": 6}, ["one\n\ntwo. three\n\nfour"]),
        (None, {"minimum": 4, "maximum": 8}, ["one\n\n", "two.", " three\n\n", "four"]),
        (Scheme(method="vanilla"), {}, ["one\n\ntwo. three\n\nfour"]),
        (Scheme(level="token", step=3, n_gist=1), {}, ["one\n\ntwo. three\n\nfour"]),
    ],
)
def test_how_a_response_is_cut(scheme, more, pieces):
    cut = maker(scheme, **more).segments(TRACE)
    assert "".join(cut) == TRACE.response
    assert cut == pieces


def test_thoughts_cut_in_the_data_are_taken_as_they_are_unless_told_otherwise():
    trace = Trace("q", "aa. b\n\nc", segments=("aa. b", "c"))
    assert maker().segments(trace) == ["aa. b\n\n", "c"]
    assert maker(segment="sentence").segments(trace) == ["aa.", " b\n\n", "c"]
    assert maker(Scheme(method="vanilla")).segments(trace) == ["aa. b\n\nc"]
    with pytest.raises(UserError, match="has neither thoughts nor blocks"):
        maker(segment="ready").segments(TRACE)


@pytest.mark.parametrize("minimum, sizes", [(0, [10, 10, 1]), (4, [10, 7, 4]), (9, [10, 10, 1])])
def test_thoughts_may_be_chunks_of_tokens(minimum, sizes):
    """21 characters; a remainder under the minimum takes from the chunk before if that is left with the minimum."""
    chunked = maker(segment="chunk", maximum=10, minimum=minimum)
    assert [len(piece) for piece in chunked.segments(TRACE)] == sizes
    row = chunked(TRACE)
    assert text(row.tokens[row.role == Role.THOUGHT]) == TRACE.response
    assert [int((row.thought == n).sum()) - 4 for n in range(3)] == sizes, "trigger, two gists, output token"


def test_memento_traces_serve_every_method():
    trace = Trace("q", MARKED)
    row = maker(Scheme(method="memento"))(trace)
    dying = (row.death != NEVER) & (row.role == Role.THOUGHT)
    assert text(row.tokens[dying]) == "#one two##three#" and row.trained[row.prompt_length :].all()
    vanilla = maker(Scheme(method="vanilla"))(trace)
    assert text(vanilla.tokens) == "q<think>\none twothree rest</think>\nfive#"
    assert ready_thoughts(trace) == ["<think>\none two", "three", " rest</think>\nfive"]
    assert maker(segment="ready").segments(trace) == ready_thoughts(trace)


def test_prompts_have_a_system_turn_a_prefix_a_suffix_and_a_history_only_where_they_can():
    assert Prompter("plain", system="S", prefix="P ", suffix=" U")("q", "", ()).text == "SP q U"
    assert Prompter("plain", system="S")("q", "own", ()).text == "ownq"
    assert "<|im_start|>user\nq<|im_end|>" in Prompter("qwen")("q", "", ()).text
    with pytest.raises(UserError, match="several exchanges .last question: 'q'. does not fit the chat template 'qwen'"):
        Prompter("qwen")("q", "", (Turn("user", "a"), Turn("assistant", "b")))
    with pytest.raises(UserError, match="chat template 'alpaca': it must be one of qwen, llama, plain, own"):
        Prompter("alpaca")
    with pytest.raises(UserError, match="needs the model's tokenizer"):
        Prompter("own")


def test_the_tokenizers_own_template_shows_the_history():
    class Templated:
        chat_template = "some"

        def apply_chat_template(self, messages, tokenize, add_generation_prompt):
            return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"

    history = Turn("user", "a"), Turn("assistant", "b")
    prompt = Prompter("own", Templated(), prefix="P ", suffix=" U")("q", "s", history)
    assert prompt.text == "<system>s<user>a<assistant>b<user>P q U<assistant>"
    release = Prompter("own", Templated(), HELPFUL, suffix=STEP_BY_STEP)("1 + 1?")  # Sparse-RL's prompts for Llama
    assert release.text == f"<system>You are a helpful assistant.<user>1 + 1?{STEP_BY_STEP}<assistant>"


def test_the_prompts_of_sparse_rl_for_qwen():
    assert Prompter("qwen", None, HELPFUL, suffix=STEP_BY_STEP)("1 + 1?").text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n1 + 1?\nPlease reason step by "
        "step, and put your final answer within \\boxed{{}}.<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "bad, said",
    [
        ({"segment": "line"}, "data.segment is 'line'"),
        ({"maximum": 3, "minimum": 4}, "data.maximum is 3"),
        ({"segment": "chunk"}, "data.segment is 'chunk' and needs data.maximum"),
        ({"segment": "ready", "scheme": Scheme("memento")}, "data.segment is 'ready', but scheme.method 'memento'"),
        ({"minimum": 2, "scheme": Scheme("vanilla")}, "data.minimum is 2, but scheme.method 'vanilla' does not cut"),
        ({"maximum": 9, "scheme": Scheme(level="token", step=3)}, "data.maximum is 9, but scheme.level 'token'"),
    ],
)
def test_settings_that_cannot_be(bad, said):
    with pytest.raises(UserError, match=said):
        maker(**bad)


def test_sources_are_read_by_index():
    assert list(Mapped([1, 2, 3], lambda number: number * 10)) == [10, 20, 30]
    train, held_out = hold_out(list(range(10)), 3)
    assert list(train) == list(range(7)) and list(held_out) == [7, 8, 9]
    assert list(Part(range(5), 1, 3)) == [1, 2]
    for wrong in (lambda: hold_out([1], 1), lambda: Part([1], 0, 2)):
        with pytest.raises(UserError):
            wrong()


def test_worked_problems_are_traces():
    trace = worked(Worked("sums", "1+2+3?", ("1) 1+2=3", "Answer \\boxed{6}"), "6"))
    assert maker().segments(trace) == ["1) 1+2=3\n\n", "Answer \\boxed{6}"]
    assert trace.answer == "6" and trace.source == "sums"


def test_statistics_of_a_small_set_by_hand():
    stats = measure([TRACE, Trace("q", "a\n\nb")], maker(), length=30)
    first, second = 5 + 17 + 3 * 4 + 1, 1 + 2 + 2 * 4 + 1
    assert (stats.samples, stats.longest, stats.tokens, stats.thoughts) == (2, first, (first + second) / 2, 2.5)
    assert stats.describe() == (
        "2 samples of 24 tokens on average, 35 at most, 2.5 thoughts each, 50.0 % longer than 30 tokens"
    )
    assert measure([TRACE], maker(Scheme(method="vanilla")), 30).thoughts == 0


@pytest.mark.parametrize(
    "scheme, more, trace, said",
    [
        (None, {}, Trace("q", "one and\r\nthe same"), "lightthinker finds next to nothing .*: 1.0 thoughts each"),
        (None, {}, Trace("q", "a\n\n" + "b" * 50), "2.0 thoughts each, and 2.0 % .* data.segment=sentence"),
        (None, {}, Trace("q", "one\r\n \r\ntwo\r\n\r\nthree"), ""),
        (Scheme("anllm"), {}, Trace("q", "a. b. c."), "anllm finds next to nothing"),
        (Scheme("anllm"), {"segment": "sentence"}, Trace("q", "So aa. bb. cc."), ""),
        (Scheme(level="token", step=30, n_gist=1), {}, Trace("q", "abc"), "a smaller scheme.step than 30"),
        (Scheme(level="token", step=2, n_gist=1), {}, Trace("q", "abcdefg"), ""),
        (Scheme("memento"), {}, Trace("q", "no blocks at all"), "memento finds next to nothing .*block_start"),
        (Scheme("memento"), {}, Trace("q", MARKED), ""),
        (Scheme("vanilla"), {}, Trace("q", "one"), ""),
    ],
)
def test_a_method_that_finds_nothing_to_compress_is_warned_of(scheme, more, trace, said):
    warning = measure([trace], maker(scheme, **more), 100).warning(scheme or Scheme(n_gist=2))
    assert re.search(said, warning) if said else not warning
    assert "\n" not in warning


def test_what_is_put_away_is_what_is_dead_before_the_end():
    assert measure([Trace("q", "aaa\n\nb")], maker(), 100).put_away == 3 / 4
    assert measure([Trace("q", "aaa")], maker(), 100).put_away == 0, "only an EOS follows the thought"
    assert measure([Trace("q", "aaa\n\nb")], maker(Scheme("vanilla")), 100).put_away == 0


def test_statistics_sample_evenly_and_need_data():
    stats = measure([Trace("q", "a" * size) for size in range(1, 101)], maker(), 1000, most=10)
    assert (stats.samples, stats.measured, stats.longest) == (100, 10, 1 + 91 + 4 + 1)
    assert stats.describe().startswith("100 samples (10 looked at) of")
    with pytest.raises(UserError, match="the data is empty"):
        measure([], maker(), 10)
