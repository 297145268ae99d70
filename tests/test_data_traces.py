"""Records of every public format as traces, read from files, and what is said about bad ones."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from lt_jax.data.readers import read_traces, trace_files
from lt_jax.data.trace import Trace, exchanges
from lt_jax.data.traces import convert, detect, memento_parts, without_summaries
from lt_jax.data.turns import Turn
from lt_jax.errors import UserError

MARKED = (
    "<think>\n<|block_start|>one two<|block_end|>\n<|summary_start|>1 2<|summary_end|>"
    "<|block_start|>three<|block_end|><|summary_start|>3<|summary_end|> rest</think>\nfive"
)
STRATOS = {
    "system": "Be thorough.",
    "conversations": [{"from": "user", "value": "1+1?"}, {"from": "assistant", "value": "a\n\nb"}],
}
CHAT = {
    "id": 7,
    "messages": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
    ],
}
MEMENTO = {"problem": "p", "response": MARKED, "domain": "math", "source": "ai2-adapt", "difficulty": 8}
FULL = {
    "problem": "p",
    "response": None,
    "sentences": ["s0", "s1", "s2", "s3"],
    "blocks": [[0, 1], [2, 2]],
    "block_summaries": ["m0", "m1"],
    "difficulty": 3,
}
REFERENCE = {
    "question": "q",
    "system_prompt": "s",
    "system_list": ["s"],
    "question_list": ["q"],
    "thoughts_list": ["a", "b"],
    "gt_output": "a\n\nb",
    "add_eos": False,
}
PLAIN = {"question": "q", "thoughts": ["a", "b"], "answer": 4, "level": "hard"}


def write_jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name, record, trace",
    [
        ("conversations", STRATOS, Trace("1+1?", "a\n\nb", "Be thorough.")),
        ("messages", CHAT, Trace("1+1?", "2", "S", (Turn("user", "hello"), Turn("assistant", "hi")), extra={"id": 7})),
        ("memento", MEMENTO, Trace("p", MARKED, source="ai2-adapt", extra={"domain": "math", "difficulty": 8})),
        ("reference", REFERENCE, Trace("q", "a\n\nb", "s", segments=("a", "b"), add_eos=False)),
        ("plain", PLAIN, Trace("q", "a\n\nb", segments=("a", "b"), answer="4", extra={"level": "hard"})),
    ],
)
def test_every_format_is_seen_from_its_fields(name, record, trace):
    assert detect(record) == name
    assert convert(record) == trace == convert(record, name)


def test_an_empty_response_beside_thoughts_is_their_text():
    assert convert({**PLAIN, "response": ""}) == convert(PLAIN)
    assert convert({**REFERENCE, "gt_output": ""}) == convert(REFERENCE)


def test_openmementos_full_without_a_response_is_put_together_from_its_sentences():
    trace = convert(FULL)
    blocks, between = memento_parts(trace.response)
    assert [(block.strip(), summary.strip()) for block, summary in blocks] == [("s0\ns1", "m0"), ("s2", "m1")]
    assert between[-1].strip().endswith("s3") and trace.extra == {"difficulty": 3}


def test_memento_parts_lose_nothing_and_summaries_can_be_left_out():
    blocks, between = memento_parts(MARKED)
    assert blocks == [("one two", "1 2"), ("three", "3")] and between == ["<think>\n", "", " rest</think>\nfive"]
    assert without_summaries(MARKED) == "<think>\none twothree rest</think>\nfive"
    with pytest.raises(UserError, match=r"<\|block_start\|> outside a finished block"):
        memento_parts("a <|block_start|> b")


@pytest.mark.parametrize(
    "record, said",
    [
        ({"text": "x"}, "no known trace format has the fields text"),
        ({"question": "q"}, "missing field 'response' or 'thoughts'"),
        ({"question": 3, "response": "r"}, "field 'question' must be text, not int"),
        ({"question": " ", "response": "r"}, "the question is empty"),
        ({"question": "q", "response": ""}, "the output is empty"),
        ({"question": "q", "thoughts": "ab"}, "field 'thoughts' must be a list of texts"),
        ({"messages": [{"role": "user", "content": "q"}]}, "the last turn of 'messages' must be the assistant's"),
        ({"messages": [{"role": "robot", "content": "q"}]}, "turn 0 of 'messages': unknown role 'robot'"),
        ({"conversations": [{"from": "gpt", "value": "q"}]}, "needs a user turn before"),
        ({**FULL, "blocks": [[0, 1], [2, 9]]}, "block [2, 9] is not a range of the 4 sentences"),
        ({**FULL, "blocks": [[0, 1]]}, "must be lists of the same length"),
        ({"problem": "p", "response": "<|block_start|>x"}, "outside a finished block"),
        ({**REFERENCE, "add_eos": "no"}, "'add_eos' must be true or false"),
    ],
)
def test_a_bad_record_is_named_with_its_place(tmp_path, record, said):
    path = write_jsonl(tmp_path / "bad.jsonl", record)
    with pytest.raises(UserError) as error:
        list(read_traces(path))
    assert str(error.value).startswith(f"{path}:1: ") and said in str(error.value)


def test_questions_without_outputs_are_read_for_evaluation_only(tmp_path):
    path = write_jsonl(tmp_path / "gsm.jsonl", {"question": "q", "answer": 5}, {"question": "r", "answer": "6"})
    assert [trace.answer for trace in read_traces(path, evaluation=True)] == ["5", "6"]
    with pytest.raises(UserError, match="missing field"):
        list(read_traces(path))


@pytest.mark.parametrize(
    "line, said",
    [
        (b'{"question": "q", ', "broken JSON: Expecting property name"),
        (b"[1, 2]", "a JSON list, not an object"),
        (b'{"question": "\xff"}', "is not UTF-8"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(PLAIN).encode() + b"\n\n" + line + b"\n")
    seen = []
    with pytest.raises(UserError) as error:
        seen.extend(read_traces(path))
    assert str(error.value).startswith(f"{path}:3: ") and said in str(error.value) and "\n" not in str(error.value)


def test_the_format_of_a_file_is_that_of_its_first_record(tmp_path):
    path = write_jsonl(tmp_path / "mixed.jsonl", STRATOS, PLAIN)
    with pytest.raises(UserError, match=r"mixed.jsonl:2: field 'conversations' must be a list"):
        list(read_traces(path))


def test_files_folders_gzip_and_parquet_read_alike(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", MEMENTO)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps(MEMENTO) + "\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**MEMENTO, "blocks": [[0, 1]]}]), tmp_path / "c.parquet")
    (tmp_path / "notes.txt").write_text("not data")
    assert [path.name for path in trace_files(tmp_path)] == ["a.jsonl", "b.jsonl.gz", "c.parquet"]
    traces = list(read_traces(tmp_path))
    assert len(traces) == 3 and traces[0] == traces[1] == traces[2] == convert(MEMENTO)


def test_missing_unknown_broken_and_empty_files(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 broken")
    (tmp_path / "c.jsonl").write_text("\n\n")
    (tmp_path / "d.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "nothing").mkdir()
    for name, said in [
        ("missing.jsonl", "no such file"),
        ("a.csv", "unknown kind of file"),
        ("b.parquet", "broken Parquet file"),
        ("c.jsonl", "no trace in the data"),
        ("d.jsonl.gz", "broken gzip file"),
        ("nothing", "the folder holds no"),
    ]:
        with pytest.raises(UserError) as error:
            list(read_traces(tmp_path / name))
        assert str(error.value).startswith(str(tmp_path / name)) and said in str(error.value)


def test_an_unknown_format_name_lists_the_known_ones():
    with pytest.raises(UserError, match="unknown trace format 'sharegpt'; known are reference, conversations"):
        convert(PLAIN, "sharegpt")


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def talk(*turns, **more):
    return {"messages": [dict(zip(("role", "content"), turn, strict=True)) if isinstance(turn, tuple) else turn
                         for turn in turns], **more}  # fmt: skip


@pytest.mark.parametrize(
    "turn",
    [
        {"content": "4", "reasoning_content": "so"},
        {"content": "4", "reasoning": "so", "thinking": "so"},
        {"content": "4", "thoughts": ["so"]},
        {"content": [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "4"}]},
        {"content": [{"type": "reasoning", "text": "so"}, "4"]},
        {"value": "4", "reasoning_content": {"text": "so"}},
    ],
)
def test_reasoning_is_read_wherever_it_is_kept(turn):
    trace = convert(talk(("user", "2+2?"), {"role": "assistant", **turn}))
    assert (trace.response, trace.reasoning, trace.unread) == ("4", "so", ())
    plain = convert({"question": "2+2?", "response": "4", "reasoning_content": "so"})
    assert (plain.response, plain.reasoning, dict(plain.extra)) == ("4", "so", {})


def test_agents_turns_come_through_whole():
    """Calls with null content, what tools answered, the tools themselves; an answer may follow a tool."""
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]
    record = talk(
        ("system", "S"), ("user", "1+0?"), {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "add"}, ("assistant", "One."),
        tools=[{"type": "function", "function": {"name": "add"}}],
    )  # fmt: skip
    trace = convert(record)
    assert trace.question == "1+0?" and trace.response == "One." and trace.tools == tuple(record["tools"])
    call = Turn("assistant", calls=({"id": "c1", **CALL},))
    assert trace.between == (call, Turn("tool", "1", name="add", call="c1"))
    assert trace.turns == (Turn("user", "1+0?"), *trace.between, Turn("assistant", "One."))
    first, second = exchanges(trace)
    assert first.calls == call.calls and not first.between and first.response == "" and second == trace
    said = [("human", "1+0?"), ("function_call", json.dumps(calls[0])), ("observation", "1"), ("gpt", "One.")]
    sharegpt = {"conversations": [{"from": who, "value": text} for who, text in said]}
    assert convert(sharegpt).between[0].calls[0]["function"] == CALL["function"]
    assert convert({"conversations": record["messages"]}).turns == trace.turns


def test_flags_say_which_answers_are_trained():
    record = talk(
        ("user", "a"), {"role": "assistant", "content": "b", "weight": 1}, ("user", "c"),
        {"role": "assistant", "content": "d", "train": False},
    )  # fmt: skip
    trace = convert(record)
    assert (trace.question, trace.response, trace.train) == ("a", "b", True)
    three = convert(talk(*record["messages"], ("user", "e"), ("assistant", "f")))
    assert [own.response for own in exchanges(three)] == ["b", "f"] and three.history[1].train is True
    with pytest.raises(UserError, match="turn 1 of 'messages': weight: 0.5; whether a turn is trained must be"):
        convert(talk(("user", "a"), {"role": "assistant", "content": "b", "weight": 0.5}))
    with pytest.raises(UserError, match="no assistant turn of 'messages' is to be trained"):
        convert(talk(("user", "a"), {"role": "assistant", "content": "b", "weight": 0}))


@pytest.mark.parametrize(
    "turn, said",
    [
        ({"role": "assistant", "content": [{"type": "image_url"}]}, "a part of 'content' is of type 'image_url'"),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}, "a tool call must be an object with the"),
        ({"role": "assistant", "content": "4", "reasoning": "a", "thinking": "b"}, "two different reasonings"),
        ({"role": "assistant"}, "missing field 'content' or 'value'"),
        ({"content": "x"}, "missing field 'role' or 'from'"),
        ({"role": "narrator", "content": "x"}, "unknown role 'narrator'"),
    ],
)
def test_turns_that_cannot_be_used_say_why(turn, said):
    with pytest.raises(UserError, match=f"f:3: turn 1 of 'messages'.*{said}"):
        convert(talk(("user", "q"), turn), where="f:3")


def test_fields_that_nothing_is_made_of_are_named():
    answer = {"role": "assistant", "content": "a", "annotations": [{"x": 1}], "refusal": None}
    record = talk(("user", "q"), answer, split="x")
    assert convert(record).unread == ("split", "annotations")


@pytest.mark.parametrize(
    "record, answer",
    [
        ({"choices": ["1", "2", "3", "4"], "answer": 1}, "2"),
        ({"choices": ["1", "2", "3", "4"], "answer": "1"}, "1"),
        ({"choices": ["x", "y"], "answer": "B"}, "B"),
        ({"choices": [2, 4, 8, 16], "answer": 8}, "8"),
        ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, "y"),
        ({"choices": [{"label": "C", "text": "x"}, {"label": "D", "text": "y"}], "answerKey": "D"}, "y"),
        ({"choices": ["x", "y"], "answer": 2}, None),
        ({"choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "E"}, None),
    ],
)
def test_the_right_option_is_named_by_index_label_letter_or_text(record, answer):
    if answer is None:
        with pytest.raises(UserError, match="f:1: the answer .* is none of the"):
            convert({"question": "q", **record}, where="f:1", evaluation=True)
    else:
        assert convert({"question": "q", **record}, evaluation=True).answer == answer
