"""Records of every public format as traces, read from files, and what is said about bad ones."""

import gzip
import json
import math

import pyarrow
import pyarrow.parquet
import pytest

from lt_jax.data import builder
from lt_jax.data.readers import read_traces, trace_files
from lt_jax.data.suites import from_files
from lt_jax.data.traces import Trace, Turn, convert, detect, memento_parts, without_summaries
from lt_jax.errors import UserError
from lt_jax.serving.prompts import read_prompts

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
        (b'{"question": "\xed\xa0\x80"}', "is not UTF-8"),
        (b'{"question": "a \\ud800 b", "response": "c"}', r"has '\ud800', half a surrogate pair"),
        (b'{"question": "q", "response": "c", "meta": [{"\\udc00": 1}]}', r"has '\udc00', half a surrogate pair"),
        (b'{"question": "q", "question": "r", "response": "c"}', "the key 'question' stands twice"),
        (b'{"question": "q", "response": "c", "answer": NaN}', "NaN is not JSON"),
        (b'{"question": "q", "response": "c", "meta": -Infinity}', "-Infinity is not JSON"),
        (b'{"question": "q", "response": "c", "answer": 1e999}', "a number is too large"),
        (b'{"question": "q", "response": "c", "answer": ' + b"9" * 5000 + b"}", "integer string conversion"),
        (b'{"question": "q", "response": "c", "meta": ' + b"[" * 200 + b"]" * 200 + b"}", "more than 100 deep"),
        (b'{"meta": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "more than 100 deep"),
        (b'"' + "a".encode("utf-16") + b'"', "not UTF-8 but UTF-16"),
        (b'{"question": "a\x00b"}', "not UTF-8 but UTF-16, or no text"),
        (b"null", "a JSON NoneType, not an object"),
        (b'{"question": "q", "response": {"a": 1}}', "field 'response' must be text, not dict"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(PLAIN).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(UserError) as error:
        list(read_traces(path))
    assert str(error.value).startswith(f"{path}:3: ") and said in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).isascii(), "it must be printable anywhere"
    with pytest.raises(UserError, match=":3: "):
        builder.prepare(path, tmp_path / "data")
    if b"question" in line and b"must be text" not in str(error.value).encode():
        with pytest.raises(UserError, match=":3: "):
            read_prompts(path)
        with pytest.raises(UserError, match=":3: "):
            from_files(path, name="suite")


def test_what_a_line_may_hold_comes_through_whole(tmp_path):
    response = "\x00a\u2028b\x0cc\x85d\r\ne\ufeff\U0001f600 \x00"
    plain = {"question": "\\ud83d\\ude00", "response": response, "answer": 10**400, "meta": [1e300, None, "\x00"]}
    path = write_jsonl(tmp_path / "a.jsonl", plain)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\\\\ud", b"\\ud").replace(b"\n", b"\r\n"))
    (trace,) = read_traces(path)
    assert (trace.question, trace.response, trace.answer) == ("\U0001f600", response, "1" + "0" * 400)
    (kept,) = builder.open_prepared(builder.prepare(path, tmp_path / "data"))
    assert kept == trace


@pytest.mark.parametrize("cut", [lambda data: data[:-12], lambda data: data[:-8] + b"\x00" * 8,
                                 lambda data: data[: len(data) // 2] + b"\xff" * 40])  # fmt: skip
def test_a_broken_gzip_file_is_named_with_its_line(tmp_path, cut):
    path = tmp_path / "a.jsonl.gz"
    lines = [json.dumps({**PLAIN, "meta": str(number) * 500}) for number in range(400)]
    path.write_bytes(cut(gzip.compress("\n".join(lines).encode())))
    with pytest.raises(UserError, match=r"a.jsonl.gz: broken gzip file after line \d+"):
        list(read_traces(path))


def table_of(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_odd_types_in_a_table_are_named_with_their_row(tmp_path):
    text = ["q", "r", "s"]
    broken = pyarrow.array([b"a", b"\xff", b"c"]).cast(pyarrow.binary()).view(pyarrow.string())
    late = pyarrow.array([0, 0, 2**62], pyarrow.timestamp("us"))
    many = {"question": text, "response": text}
    for columns, said in [
        ({"question": text, "response": broken}, r":2: a value cannot be read: .*utf-8"),
        ({**many, "when": late}, r":3: a value cannot be read"),
        ({"question": text, "response": [b"a", b"b", b"c"]}, r":1: field 'response' must be text, not bytes"),
        ({"question": [["q"]] * 3, "response": text}, r":1: field 'question' must be text, not list"),
        ({"question": pyarrow.nulls(3), "response": text}, r":1: missing field 'question'"),
    ]:
        with pytest.raises(UserError, match=said) as error:
            list(read_traces(table_of(tmp_path / "a.parquet", **columns)))
        assert "\n" not in str(error.value)
    numbers = [math.nan, 5.0, None]
    traces = list(read_traces(table_of(tmp_path / "b.parquet", **many, answer=numbers, score=numbers)))
    assert [trace.answer for trace in traces] == ["", "5.0", ""] and traces[1].extra == {"score": 5.0}
    twice = pyarrow.Table.from_arrays([pyarrow.array(text)] * 3, ["question", "response", "question"])
    pyarrow.parquet.write_table(twice, tmp_path / "c.parquet")
    with pytest.raises(UserError, match="the column 'question' is there twice"):
        list(read_traces(tmp_path / "c.parquet"))


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


def test_a_trajectory_is_kept_whole_and_read_as_its_thoughts_and_answer():
    turns = [{"text": "2 and 2", "action": "commit", "content": "4"}, {"text": "?", "action": "malformed", "why": "no"},
             {"text": "so", "action": "final_answer", "content": "4"}]  # fmt: skip
    record = {"id": "1", "question": "2+2?", "turns": turns, "gold": "4"}
    trace = convert(record)
    assert (trace.response, trace.answer, trace.extra) == ("2 and 2\n\nso\n\n4", "4", {"trajectory": record})
    with pytest.raises(UserError, match="field 'turns' must be a list of objects"):
        convert({"question": "2+2?", "turns": 3})
