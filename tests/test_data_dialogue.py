"""Turns as public data write them: reasoning, tool calls, flags, names; and what is refused."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from lt_jax.data import builder
from lt_jax.data.readers import read_traces
from lt_jax.data.traces import Trace, Turn, convert
from lt_jax.errors import UserError

ASKED = {"role": "user", "content": "q"}
CALLS = [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]


def chat(*turns, **more):
    return convert({"messages": [ASKED, *turns], **more}, where="f:1")


@pytest.mark.parametrize(
    "said",
    [
        {"content": "a", "reasoning_content": "r"},
        {"content": "a", "reasoning": "r"},
        {"content": "a", "thinking": "r"},
        {"content": "a", "thought": "r"},
        {"content": "a", "thoughts": ["r"]},
        {"content": "a", "reasoning_details": [{"type": "reasoning.text", "text": "r", "format": "x"}]},
        {"content": "a", "thinking_blocks": [{"type": "thinking", "thinking": "r", "signature": "s"}]},
        {"content": [{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "a"}]},
        {"content": [{"type": "reasoning", "text": "r"}, {"type": "output_text", "text": "a"}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "r"}]}, {"type": "text", "text": "a"}]},
        {"content": "a", "reasoning": "r", "reasoning_content": "r", "thinking": None},
    ],
)
def test_reasoning_is_found_under_every_name_and_place(said):
    assert chat({"role": "assistant", **said}) == Trace("q", "a", reasoning="r")


@pytest.mark.parametrize(
    "record",
    [
        {"question": "q", "response": "a", "reasoning": "r"},
        {"question": "q", "solution": "a", "reasoning_content": "r"},
        {"question": "q", "response": "a", "thoughts": "r"},
        {"problem": "q", "deepseek_solution": "a", "deepseek_reasoning": "r"},
        {"messages": [ASKED, {"role": "assistant", "content": "a"}], "reasoning": "r"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "reasoning": "r"}]},
    ],
)
def test_reasoning_beside_a_response_is_found_in_every_format(record):
    assert convert(record) == Trace("q", "a", reasoning="r")


def test_reasoning_that_the_text_has_as_well_is_not_taken_twice():
    said = "<think>\nr\n</think>\n\na"
    assert chat({"role": "assistant", "content": said, "reasoning_content": "r"}) == Trace("q", said)
    assert chat({"role": "assistant", "content": "a"}, reasoning="on") == Trace("q", "a"), "a switch, not reasoning"


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
    ],
)
@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_both_ways_of_writing_turns_are_read_under_both_names(turns, field):
    assert convert({field: turns}) == Trace("q", "a")


@pytest.mark.parametrize(
    "call",
    [
        {"role": "assistant", "content": None, "tool_calls": CALLS},
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 2}'}}]},
        {"role": "assistant", "content": "", "tool_calls": json.dumps(CALLS)},
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 2}'}},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "add", "input": {"a": 2}}]},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
    ],
)
@pytest.mark.parametrize(
    "result",
    [
        {"role": "tool", "content": "4"},
        {"from": "observation", "value": "4"},
        {"role": "user", "content": [{"type": "tool_result", "content": "4"}]},
    ],
)
def test_calls_of_tools_and_their_results_come_through_whole(call, result):
    trace = chat(call, result, {"role": "assistant", "content": "so 4"}, tools=json.dumps([{"name": "add"}]))
    asked = Turn("assistant", more={"tool_calls": CALLS})
    assert trace == Trace(
        "q", "so 4", between=(asked, Turn("tool", "4")), tools=({"type": "function", "function": {"name": "add"}},)
    )
    assert chat(call) == Trace("q", calls=tuple(CALLS)), "a trace may end with a call"


def test_a_tools_result_that_is_an_object_is_its_json_and_ids_stay():
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **CALLS[0]}]}
    result = {"role": "tool", "tool_call_id": "c1", "content": {"sum": 4}}
    trace = chat(call, result, {"role": "assistant", "content": "a"})
    assert trace.between[0].more["tool_calls"][0]["id"] == "c1"
    assert trace.between[1] == Turn("tool", '{"sum": 4}', more={"tool_call_id": "c1"})


def test_whole_conversations_survive_their_files(tmp_path):
    turns = [ASKED, {"role": "assistant", "content": "b", "weight": 0, "thinking": "r"}, ASKED,
             {"role": "assistant", "content": None, "tool_calls": CALLS}, {"role": "tool", "content": "4"},
             {"role": "assistant", "content": "d", "train": True, "reasoning": "s"}]  # fmt: skip
    record = {"messages": turns, "tools": [{"type": "function", "function": {"name": "add"}}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "a.parquet")
    trace = convert(record)
    assert trace.trained is True and trace.history[1] == Turn("assistant", "b", "r", False) and trace.reasoning == "s"
    (stored,) = builder.open_prepared(builder.prepare(tmp_path / "a.jsonl", tmp_path / "data"))
    assert stored == trace == next(iter(read_traces(tmp_path / "a.parquet")))


@pytest.mark.parametrize(
    "said, why",
    [
        ({"content": "a", "critique": "not so good"}, "has a field 'critique', which would not be used"),
        ({"content": "a", "reasoning": "r", "thinking": "s"}, "in 'reasoning' and in 'thinking', and they differ"),
        ({"content": "<think>r</think>a", "reasoning": "s"}, "the text has reasoning between tags and other reasoning"),
        ({"content": [{"type": "image_url"}]}, "a part of type 'image_url' cannot be used"),
        ({"content": None}, "missing field 'content'"),
        ({"content": 3}, "its content must be text or a list of parts, not int"),
        ({"content": None, "tool_calls": [{"arguments": {}}]}, "a tool call must be an object with the 'name'"),
        ({"content": None, "tool_calls": "add("}, "its tool calls must be JSON"),
        ({"content": "a", "train": True, "weight": 0}, "'train' and 'weight' say different things"),
        ({"content": "a", "train": "no"}, "'train' is 'no'; it must be 0 or false"),
        ({"content": "a", "reasoning": 3}, "field 'reasoning' must be text, not int"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(said, why):
    with pytest.raises(UserError) as error:
        chat({"role": "assistant", **said})
    assert str(error.value).startswith("f:1: turn 1 of 'messages'") and why in str(error.value)


@pytest.mark.parametrize(
    "more, why",
    [
        ({"tools": "add"}, "field 'tools' must be JSON"),
        ({"tools": [3]}, "field 'tools' must be a list of objects"),
        ({"tools": [{"type": "function", "function": {}}]}, "every function of 'tools' needs a 'name'"),
        ({"system": "s", "messages": [{"role": "system", "content": "t"}, ASKED]},
         "'system' and the system turn of 'messages' differ"),
    ],
)  # fmt: skip
def test_what_is_not_understood_beside_turns_is_refused(more, why):
    with pytest.raises(UserError, match=why):
        convert({"messages": [ASKED, {"role": "assistant", "content": "a"}], **more})


def test_parquet_fills_calls_of_different_arguments_with_nulls_that_nobody_wrote(tmp_path):
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}, {"function": {"name": "g", "arguments": {"y": 2}}}]
    record = {"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": calls}]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "a.parquet")
    (trace,) = read_traces(tmp_path / "a.parquet")
    assert [call["function"]["arguments"] for call in trace.calls] == [{"x": 1}, {"y": 2}]


def test_plain_thoughts_and_reasoning_do_not_go_together():
    for record in ({"response": "a", "thoughts": ["t"]}, {"gt_output": "a", "thoughts_list": ["t"]}):
        with pytest.raises(UserError, match="a list of thoughts, and reasoning in a field of its own"):
            convert({"question": "q", "reasoning": "r", **record})
