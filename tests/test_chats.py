"""Conversations as rows: reasoning, think tags, tool calls, several trained turns, under templates of several kinds."""

import numpy as np
import pytest

from lt_jax.data.prompts import Prompter
from lt_jax.data.rows import RowMaker
from lt_jax.data.traces import Trace, convert
from lt_jax.errors import UserError
from lt_jax.layout import thinking
from lt_jax.layout.build import Exchange, build_row, build_turns
from lt_jax.layout.limit import fit
from lt_jax.layout.row import Role
from lt_jax.layout.scheme import Scheme
from lt_jax.lifetimes import dense_mask, draw
from tests.chat_templates import QWEN3, R1, SIMPLE, Templated, read
from tests.layout_tools import TABLE, assert_drawn

VANILLA = Scheme("vanilla")
ASKED = {"role": "user", "content": "2+2?"}
THOUGHT = "two\n\ntwo more"
SAID = {"role": "assistant", "content": "4", "reasoning_content": THOUGHT}
CALL = {"function": {"name": "add", "arguments": '{"a": 2}'}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
AGENT = [
    ASKED,
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "use it"},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "Yes.", "thinking": "hm"},
]


def maker(template=SIMPLE, scheme=VANILLA, **more):
    tokenizer = Templated(template) if template else Templated("none")
    chat = more.pop("chat", "own")  # a tokenizer of single characters has none of the tokens of the other templates
    prompt = Prompter(chat, tokenizer if chat == "own" else None, prefix=more.pop("prefix", ""))
    return RowMaker(scheme=scheme, special=TABLE, tokenizer=tokenizer, prompt=prompt, **more)


def laid(messages, template=SIMPLE, scheme=VANILLA, tools=(), **more):
    """(the row, its text with what is trained in brackets)."""
    row = maker(template, scheme, **more)(convert({"messages": list(messages), "tools": list(tools)}))
    return row, marked(row)


def marked(row):
    text, inside = "", False
    for token, trained in zip(row.tokens, row.trained, strict=True):
        text += ("[" if trained else "]") * int(trained != inside) + read([token])
        inside = bool(trained)
    return text + "]" * int(inside)


@pytest.mark.parametrize(
    "template, row",
    [
        (SIMPLE, "<user>2+2?$\n<assistant>[<think>\ntwo\n\ntwo more\n</think>\n\n4$]"),
        (QWEN3, "<user>2+2?$\n<assistant>[<think>\ntwo\n\ntwo more\n</think>\n\n4$]"),
        (R1, "<user>2+2?$\n<assistant><think>\n[two\n\ntwo more\n</think>\n\n4$]"),
        (SIMPLE.replace("{{ m.content }}", "{% if m.thinking %}({{ m.thinking }}){% endif %}{{ m.content }}"),
         "<user>2+2?$\n<assistant>[(two\n\ntwo more)4$]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "thought", "parts", "inline"])
def test_reasoning_is_joined_to_its_answer_as_the_template_does(template, row, name):
    said = {"role": "assistant", "content": "4", "reasoning" if name == "inline" else name: THOUGHT}
    if name == "parts":
        parts = [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": "4"}]
        said = {"role": "assistant", "content": parts}
    if name == "inline" and "m.thinking" not in template:  # which reads no tags
        said = {"role": "assistant", "content": f"<think>\n{THOUGHT}\n</think>\n\n4"}
    assert laid([ASKED, said], template)[1] == row


def test_reasoning_is_cut_into_thoughts():
    row, _ = laid([ASKED, SAID], scheme=Scheme(n_gist=1))
    assert row.thought.max() == 2 and "two more" in read(row.tokens)


@pytest.mark.parametrize("chat", ["plain", "qwen"])
def test_reasoning_without_a_template_is_put_between_tags(chat):
    row = maker(chat=chat)(convert({"question": "q", "solution": "4", "reasoning": "r"}))
    assert read(row.tokens[row.trained]) == "<think>\nr\n</think>\n\n4$"


@pytest.mark.parametrize(
    "prompt, response, put, rest",
    [
        ("a:<think>\n", "<think>\nr</think>x", "", "r</think>x"),
        ("a:<think>\n", " <think>r</think>x", "", "r</think>x"),
        ("a:<think>", "<think>\nr</think>x", "", "\nr</think>x"),
        ("a:<think>\n", "r</think>x", "", "r</think>x"),
        ("a:<think>\n", "4", "\n</think>\n\n", "4"),
        ("a:<think>", "4", "\n\n</think>\n\n", "4"),
        ("a:<think>\n", "x <think>r</think> y", "\n</think>\n\n", "x <think>r</think> y"),
        ("a:<think>\n", "<|begin_of_thought|>\nr<|end_of_thought|>x", "", "r</think>x"),
        ("a:[THINK]", "<think>r</think>x", "", "r[/THINK]x"),
        ("a:", "r</think>x", "<think>\n", "r</think>x"),
        ("a:", "<think>\nr</think>x", "", "<think>\nr</think>x"),
        ("a:", "4", "", "4"),
        ("a:<think>\n\n</think>\n\n", "4", "", "4"),
    ],
)
def test_prompt_end_and_response_start_fit(prompt, response, put, rest):
    assert thinking.fitted(prompt, [response]) == (put, [rest])


SCHEMES = [
    VANILLA, Scheme(n_gist=1), Scheme("anllm"), Scheme("memento"), Scheme(n_gist=1, level="token", step=3),
]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme.method}-{scheme.level}")
@pytest.mark.parametrize("response", ["<think>\nr\n</think>\n\n4", "r\n</think>\n\n4", "4"])
def test_think_tags_are_written_once_and_closed_whatever_the_scheme(scheme, response):
    to_row = maker(R1, scheme)
    row = to_row(Trace("q", response))
    text = read(row.tokens[~np.isin(row.role, (Role.GIST, Role.TRIGGER, Role.OUTPUT, Role.INSTRUCTION))])
    assert text.count("<think>") == text.count("</think>") == 1
    assert text.index("<think>") < text.index("</think>")
    asked = "<user>q$\n<assistant><think>\n"
    assert text.startswith(asked) and row.prompt_length == len(asked)
    assert to_row.prompt("q").text.endswith("<think>\n"), "the prompt for decoding"


def test_a_closing_tag_is_no_thought_of_its_own_and_ready_thoughts_fit_too():
    to_row = maker(R1, Scheme(n_gist=1))
    assert to_row.segments(Trace("q", "a\n\nb")) == ["\n</think>\n\na\n\n", "b"]
    assert to_row.segments(Trace("q", "x", segments=("<think>", "a", "b</think>"))) == ["a\n\n", "b</think>"]
    whole = Trace("q", "x", segments=("<think>a", "b</think>"))
    assert to_row.segments(whole) == ["a\n\n", "b</think>"]


def test_the_templates_own_switch_closes_what_it_opens():
    template = R1 + "{% if enable_thinking is false %}</think>!{% endif %}"
    assert maker(template).segments(Trace("q", "4")) == ["</think>!4"]


def test_reasoning_that_never_ends_is_refused():
    cut = "<think>\nand then"
    chat = [ASKED, {"role": "assistant", "content": cut}, ASKED, {"role": "assistant", "content": "4"}]
    for record in ({"question": "q", "response": cut}, {"question": "q", "thoughts": [cut, "so"]}, {"messages": chat}):
        with pytest.raises(UserError, match=r"f:3: the reasoning of the output is never closed"):
            convert(record, where="f:3")


@pytest.mark.parametrize(
    "template, first",
    [
        (SIMPLE, '[<think>\nuse it\n</think>\n\n<call>add {"a": 2}</call>$]'),
        (QWEN3, '[<think>\nuse it\n</think>\n\n<call>add {"a": 2}</call>$]'),
        (R1, '<think>\n[use it\n</think>\n\n<call>add {"a": 2}</call>$]'),
    ],
)
def test_every_assistant_turn_of_an_agent_is_trained(template, first):
    _, text = laid(AGENT, template, tools=TOOLS, turns="all")
    head, opened, tail = text.partition("<user>2+2?$\n<assistant>")
    assert "add" in head
    think, close = ("<think>\n", "</think>\n\n") if template == R1 else ("", "")
    last = "<think>\n[hm" if template == R1 else "[<think>\nhm"
    assert tail == (
        first + "\n<tool>4$\n<assistant>" + think + ("[\n" + close if close else "[") + "It is 4.$]\n"
        "<user>sure?$\n<assistant>" + last + "\n</think>\n\nYes.$]"
    )


def test_only_the_last_turn_is_trained_unless_told_otherwise_and_the_prompt_has_the_calls():
    _, text = laid(AGENT, QWEN3, tools=TOOLS)
    assert text.count("[") == 1 and text.endswith("<assistant>[<think>\nhm\n</think>\n\nYes.$]")
    assert '<call>add {"a": 2}</call>$\n<tool>4$\n<assistant>It is 4.$\n<user>sure?' in text and "use it" not in text


@pytest.mark.parametrize("flag", ["train", "weight", "loss"])
def test_flags_of_turns_go_before_the_setting(flag):
    turns = [ASKED, {"role": "assistant", "content": "a"}, ASKED, {"role": "assistant", "content": "b"},
             ASKED, {"role": "assistant", "content": "c"}]  # fmt: skip
    flagged = lambda place, value: [turn | ({flag: value} if at == place else {}) for at, turn in enumerate(turns)]
    trained = lambda messages, which: read((row := laid(messages, turns=which)[0]).tokens[row.trained])
    assert trained(turns, "all") == "a$b$c$" and trained(turns, "last") == "c$"
    assert trained(flagged(3, 0), "all") == "a$c$"
    assert trained(flagged(5, False), "all") == "a$b$"
    assert trained(flagged(5, 0), "last") == "b$"
    assert trained(flagged(1, 1), "last") == "a$c$"
    nothing = [turn | {flag: 0} for turn in turns]
    with pytest.raises(UserError, match="no turn of the assistant's is to be trained"):
        laid(nothing)
    with pytest.raises(UserError, match="it must be 0 or false"):
        laid(flagged(1, 0.5))
    with pytest.raises(UserError, match="a user's turn is marked as trained"):
        laid(flagged(0, True))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme.method}-{scheme.level}")
def test_each_turn_is_compressed_as_it_was_when_it_was_generated(scheme):
    """Two turns; the first's part of the row is what `build_row` makes of it alone, deaths before the row goes on."""
    said = [{"role": "assistant", "content": text} for text in ("ab\n\ncd\n\nef", "gh\n\ni")]
    turns = [ASKED, said[0], ASKED, said[1]]
    row, _ = laid(turns, scheme=scheme, turns="all")
    alone, _ = laid(turns[:2], scheme=scheme)
    for name in ("tokens", "role", "trained", "position", "since", "gist"):
        np.testing.assert_array_equal(getattr(row, name)[: len(alone)], getattr(alone, name), err_msg=name)
    same = np.arange(len(alone)) if scheme.level == "thought" else np.flatnonzero(alone.role != Role.EOS)
    np.testing.assert_array_equal(row.death[same], alone.death[same])
    asked = "<user>2+2?$\n<assistant>"
    second = row.tokens[len(alone) :]
    assert read(second).startswith("\n" + asked) and row.tokens[-1] == TABLE.eos
    segments, encode = maker(SIMPLE, scheme).segments(Trace("q", "gh\n\ni")), Templated(SIMPLE).encode
    later = build_row(scheme, TABLE, "\n" + asked.replace("$", "<end>"), segments, encode)
    np.testing.assert_array_equal(second, later.tokens)
    np.testing.assert_array_equal(row.trained[len(alone) :], later.trained)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme.method}-{scheme.level}")
def test_reasoning_that_the_template_shows_no_more_is_forgotten(scheme):
    turns = [ASKED, SAID, {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "Yes."}]
    row, _ = laid(turns, QWEN3, scheme, turns="all")
    kept, _ = laid(turns, QWEN3.replace("loop.index0 > ns.asked and", ""), scheme, turns="all")
    asked = read(row.tokens).index("\n<user>sure?")
    closed = read(row.tokens).index("4$") if scheme == VANILLA else None
    dead = (row.death[:asked] <= asked) & (row.role[:asked] != Role.PROMPT)
    last = len("<think>\ntwo\n\ntwo more\n</think>\n\n")
    if scheme == VANILLA:
        start = row.prompt_length
        np.testing.assert_array_equal(np.flatnonzero(dead), np.arange(start, start + last))
        assert closed == start + last and (kept.death[:asked] > len(kept)).all()
    if scheme.has_gists:
        gists = (row.role[:asked] == Role.GIST) & dead
        assert gists.sum() >= 2 and not ((kept.role[:asked] == Role.GIST) & (kept.death[:asked] <= asked)).any()
        assert not dead[-1] and row.trained[:asked][gists].sum() == (2 if scheme.method == "anllm" else 0)
    again = ~(row.death[:asked] < asked)
    assert again.any() and row.trained[:asked][dead].any(), "forgotten, and trained all the same"


def test_rows_of_turns_are_drawn():
    exchanges = [Exchange([30], [[100], [101]], 1), Exchange("!?", [[102]], forgets=(0,))]
    row = build_turns(VANILLA, TABLE, exchanges, lambda text: [TABLE.eos if c == "!" else 31 for c in text])
    mask = np.asarray(dense_mask(row.lifetimes()))[0, 0]
    assert_drawn(f"{' '.join(row.letters)}\n{draw(mask)}", build_turns)
    assert row.trained.tolist() == [False, True, True, True, False, True, True]


def test_compressed_prompts_and_splitting_of_conversations():
    turns = [ASKED, {"role": "assistant", "content": "ab\n\ncd"}, {"role": "user", "content": "abcdef. g"},
             {"role": "assistant", "content": "gh\n\nij"}]  # fmt: skip
    row, _ = laid(turns, scheme=Scheme(n_gist=1, prompt="tokens", prompt_step=3), turns="all")
    later = np.flatnonzero((row.role == Role.GIST) & (row.thought < 0))
    assert len(later) == 1 + 3 and (row.death[later] > len(row)).all()
    whole, _ = laid(turns, scheme=Scheme(n_gist=1), turns="all")
    parts = fit(whole, len(whole) - 1, "split")
    assert sum(int(part.trained.sum()) for part in parts) == int(whole.trained.sum()) and len(parts) > 1
    assert any("<user>abcdef. g" in read(part.tokens) for part in parts[:1])


@pytest.mark.parametrize(
    "messages, tools, template, said",
    [
        (AGENT[:2], [], SIMPLE.split("{% for c")[0] + "{% endif %}{% endfor %}", "does not show the tool call 'add'"),
        (AGENT, TOOLS, SIMPLE.replace("{% if tools %}", "{% if false %}"), "does not show the tool 'add' of 'tools'"),
        (AGENT, [], SIMPLE.replace("<tool>{{ m.content }}", "<tool>"), "does not show the text '4' of a tool's turn"),
        ([ASKED, {"role": "assistant", "content": "look", "tool_calls": [CALL]}], [],
         SIMPLE.replace("{{ m.content }}<call>", "<call>").replace("<assistant>{{ m.content }}", "<assistant>"),
         "does not show the text 'look' beside a tool call"),
    ],
)  # fmt: skip
def test_what_a_template_does_not_show_is_refused(messages, tools, template, said):
    with pytest.raises(UserError, match=said):
        laid(messages, template, tools=tools)


def test_a_turn_that_is_not_shown_hides_none_that_is():
    """The first answer is not shown, and stands by chance in the next question."""
    silent = SIMPLE.replace("<assistant>{{ m.content }}", "<assistant>")
    _, text = laid([ASKED, {"role": "assistant", "content": "su"}, {"role": "user", "content": "sure?"}, SAID], silent)
    assert "<user>sure?$" in text


def test_tools_need_the_tokenizers_own_template():
    with pytest.raises(UserError, match="tools .question: '2.2.'. do not fit the chat template 'qwen'"):
        maker(chat="qwen")(convert({"messages": AGENT[:2], "tools": TOOLS}))
    with pytest.raises(UserError, match="data.turns is 'each'; it must be 'last' or 'all'"):
        maker(turns="each")
