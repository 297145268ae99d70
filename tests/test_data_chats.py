"""Conversations as rows: reasoning, tool calls and tags as the model's own chat template writes them; every turn."""

import json

import pytest

from lt_jax.data.builder import open_prepared, prepare
from lt_jax.data.rows import Prompter, RowMaker
from lt_jax.data.stats import measure
from lt_jax.data.trace import Trace
from lt_jax.data.traces import convert
from lt_jax.data.turns import Turn
from lt_jax.errors import UserError
from lt_jax.layout.row import Role
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import default_table
from lt_jax.layout.thinking import fitted, joined
from lt_jax.layout.tokenizer import load_tokenizer
from tests.test_data_traces import CALL, talk
from tests.tiny_folder import TOKENIZER

TURN = "{% for m in messages %}<|user|>" "{{ m.role }}:"
# As Qwen3's: reasoning is shown of answers after the last question, and taken out of those before it.
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}" + TURN + "{% if m.role == 'assistant' and m.reasoning_content is defined and "
    "loop.index0 > ns.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|user|>assistant:{% endif %}"
)
# As DeepSeek-R1's: the prompt opens the tag, and an answer is shown without what was thought.
R1 = (
    TURN + "{{ m.content.split('</think>')[-1] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant:<think>\n{% endif %}"
)
TOOLS = (
    "{% if tools %}TOOLS {% for t in tools %}{{ t.function.name }}{% endfor %}\n{% endif %}" + TURN + "{{ m.content }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}"
    "</call>{% endfor %}{% endif %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|user|>assistant:{% endif %}"
)


def tokenizer(template):
    found = load_tokenizer(TOKENIZER)
    found.chat_template = template
    return found


def maker(template, scheme=None, **more):
    own = tokenizer(template)
    scheme = scheme or Scheme("vanilla")
    special = default_table(own, scheme, eos="<|end|>", pad="<|pad|>").special
    return RowMaker(scheme=scheme, special=special, tokenizer=own, prompt=Prompter("own", own), **more)


def texts(to_row, trace):
    """(prompt, what is trained) of a row."""
    row = to_row(trace)
    read = lambda ids: to_row.tokenizer.decode(ids, skip_special_tokens=False)
    return read(row.tokens[~row.trained]), read(row.tokens[row.trained])


ASKED = Trace("2+2?", "4", reasoning="two more")


@pytest.mark.parametrize(
    "template, trace, prompt, trained",
    [
        (QWEN3, ASKED, "assistant:", "<think>\ntwo more\n</think>\n\n4<|end|>"),
        (R1, ASKED, "assistant:<think>\n", "two more\n</think>\n\n4<|end|>"),
        (TOOLS, ASKED, "assistant:", "<think>\ntwo more\n</think>\n\n4<|end|>"),
        (R1, Trace("2+2?", "<think>\nso\n</think>\n\n4"), "assistant:<think>\n", "so\n</think>\n\n4<|end|>"),
        (R1, Trace("2+2?", "so\n</think>\n\n4"), "assistant:<think>\n", "so\n</think>\n\n4<|end|>"),
        (R1, Trace("2+2?", "4"), "assistant:<think>\n", "\n</think>\n\n4<|end|>"),
        (QWEN3, Trace("2+2?", "<think>\nso\n</think>\n\n4"), "assistant:", "<think>\nso\n</think>\n\n4<|end|>"),
    ],
)
def test_prompt_end_and_response_start_fit(template, trace, prompt, trained):
    before, said = texts(maker(template), trace)
    assert before.endswith(prompt) and said == trained
    assert (before + said).count("<think>") == (before + said).count("</think>") == 1


@pytest.mark.parametrize("scheme", [Scheme(n_gist=2), Scheme("anllm"), Scheme(level="token", step=4, n_gist=1)])
def test_they_fit_under_every_scheme(scheme):
    to_row = maker(R1, scheme)
    row = to_row(Trace("q", "<think>\na\n\nb\n</think>\n\n4"))
    text = to_row.tokenizer.decode(row.tokens[(row.role != Role.GIST) & (row.role != Role.OUTPUT)])
    assert text.count("<think>") == 1 == text.count("</think>")
    ready = to_row.prompt.going_on(Trace("q", "a\n\n4", segments=("<think>\na", "4")), to_row.prompt("q"))
    assert ready.segments[0] == "a" if scheme.level == "thought" else True


def test_reasoning_is_trained_not_the_answer_alone():
    """Sixty traces with five paragraphs of reasoning each are sixty traces of six thoughts."""
    message = {"role": "assistant", "content": "4", "reasoning_content": "\n\n".join("abcde")}
    traces = [convert(talk(("user", f"{i}?"), message)) for i in range(60)]
    stats = measure(traces, maker(QWEN3, Scheme(n_gist=2)), 1000)
    assert stats.thoughts == 6 and stats.tokens > 30


def test_tool_calls_are_trained_as_the_template_writes_them():
    tool = {"type": "function", "function": {"name": "add"}}
    first = Trace("1+0?", "", calls=(CALL,), tools=(tool,))
    prompt, said = texts(maker(TOOLS), first)
    assert prompt.startswith("TOOLS add") and said == '<call>add {"a": 1}</call><|end|>'
    after = Trace("1+0?", "One.", between=(Turn("assistant", calls=(CALL,)), Turn("tool", "1")), tools=(tool,))
    prompt, said = texts(maker(TOOLS), after)
    assert '<call>add {"a": 1}</call><|end|>' in prompt and "tool:1<|end|>" in prompt and said == "One.<|end|>"
    with pytest.raises(UserError, match="calls tools, which the chat template 'own' does not show"):
        maker(QWEN3)(first)
    with pytest.raises(UserError, match="a conversation with tools .* does not fit the chat template 'qwen'"):
        Prompter("qwen")("q", tools=(tool,))


LONG = talk(("user", "a"), ("assistant", "b"), ("user", "c"), {"role": "assistant", "content": "d", "train": 0},
            ("user", "e"), ("assistant", "f"))  # fmt: skip


def test_every_answer_of_a_conversation_in_one_row():
    row = maker(TOOLS, turns="all")(convert(LONG))
    whole = maker(TOOLS)(convert(LONG))
    assert row.tokens.tolist() == whole.tokens.tolist()
    read = lambda chosen: tokenizer(None).decode(row.tokens[chosen], skip_special_tokens=False)
    assert read(row.trained) == "b<|end|>f<|end|>" and read(row.role == Role.TEXT) == "bf"


def test_every_answer_as_a_sample_of_its_own(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(LONG) + "\n", encoding="utf-8")
    parts = list(open_prepared(prepare(path, tmp_path / "data", each=True)))
    assert sorted(part.response for part in parts) == ["b", "f"]
    assert prepare(path, tmp_path / "data") != prepare(path, tmp_path / "data", each=True)
    (whole,) = open_prepared(prepare(path, tmp_path / "data"))
    assert whole == convert(LONG)
    to_row = maker(TOOLS, Scheme(n_gist=2), turns="each")
    said = {part.response: texts(to_row, part) for part in parts}
    assert "assistant:d<|end|>" in said["f"][0]
    assert said["b"][0].startswith("<|user|>user:a<|end|>\n<|user|>assistant:") and said["b"][1].startswith("b")


def test_a_template_that_changes_earlier_answers_cannot_have_all_in_one_row():
    trace = convert(talk(("user", "a"), {"role": "assistant", "content": "b", "reasoning": "r"}, ("user", "c"),
                         ("assistant", "d")))  # fmt: skip
    with pytest.raises(UserError, match="shows an earlier answer otherwise .* data.turns must be 'each' or 'last'"):
        maker(QWEN3, turns="all")(trace)
    for bad, said in (
        (dict(turns="some"), "data.turns is 'some'; it must be one of last, all, each"),
        (dict(turns="all", scheme=Scheme(n_gist=2)), "data.turns is 'all', but scheme.method 'lightthinker'"),
    ):
        with pytest.raises(UserError, match=said):
            maker(QWEN3, **bad)


def test_what_the_data_flag_and_a_run_leaves_out_is_said():
    flagged = convert(talk(("user", "a"), {"role": "assistant", "content": "b", "train": 1, "seen": 3}, ("user", "c"),
                           ("assistant", "d")))  # fmt: skip
    said = measure([flagged, Trace("q", "r")], maker(TOOLS), 100).describe()
    assert "fields not read: seen (1)" in said and "1 with earlier answers flagged" in said
    assert "flagged" not in measure([flagged], maker(TOOLS, turns="all"), 100).describe()


def test_the_table_of_fitted():
    whole = "<think>\nso\n</think>\n\n4"
    assert joined("so", "4") == whole
    assert fitted("a<think>\n", [whole]) == fitted("a<think>\n", ["so\n</think>\n\n4"]) == ["so\n</think>\n\n4"]
    assert fitted("a<think>\n", ["4"]) == ["\n</think>\n\n4"]
    assert fitted("a", [whole]) == [whole] and fitted("a[THINK]", ["[THINK]so[/THINK]4"]) == ["so[/THINK]4"]
    assert fitted("a<think>\n", ["<think>\nx", "y\n</think>", "4"]) == ["x", "y\n</think>", "4"]
    assert fitted("a<think>\n", []) == []
