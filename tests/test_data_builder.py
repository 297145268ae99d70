"""The TFDS builder: prepared once, rebuilt when a file changes, nothing half-written, no TensorFlow."""

import json
import os
import pickle
import subprocess
import sys
import textwrap

import pytest

from lt_jax.data import builder
from lt_jax.data.traces import Trace, Turn
from lt_jax.errors import UserError

RECORDS = [
    {
        "question": f"question {number} é",
        "response": "a\n\nb",
        "thoughts": ["a", "b"][: number % 3],
        "system": "s",
        "answer": number,
        "meta": {"n": number},
    }
    for number in range(12)
]


@pytest.fixture
def traces(tmp_path):
    path = tmp_path / "my traces.v1.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    return path


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_prepared_traces_are_the_files_traces_by_index(traces, tmp_path):
    source = builder.open_prepared(builder.prepare(traces, tmp_path / "data"))
    assert len(source) == len(RECORDS)
    by_answer = {source[index].answer: source[index] for index in range(len(source))}
    assert set(by_answer) == {str(number) for number in range(12)}
    assert by_answer["4"] == Trace("question 4 é", "a\n\nb", "s", segments=("a",), answer="4", extra={"meta": {"n": 4}})
    assert source[-1] == source[len(source) - 1]
    with pytest.raises(IndexError):
        source[len(source)]
    assert pickle.loads(pickle.dumps(source))[3] == source[3]
    assert len(builder.open_prepared(source.folder, "train[:25%]")) == 3


def test_history_survives(tmp_path):
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [*turns, {"role": "assistant", "content": "d"}]}))
    (trace,) = builder.open_prepared(builder.prepare(path, tmp_path / "data"))
    assert trace == Trace("c", "d", history=(Turn("user", "a"), Turn("assistant", "b")))


def test_a_changed_file_is_rebuilt_and_an_unchanged_one_is_not(traces, tmp_path):
    first = builder.prepare(traces, tmp_path / "data")
    stamp = (first / "dataset_info.json").stat().st_mtime_ns
    assert builder.prepare(traces, tmp_path / "data") == first
    assert (first / "dataset_info.json").stat().st_mtime_ns == stamp
    assert first.parent.name.startswith("my_traces-")
    traces.write_text(traces.read_text().replace("question 3", "question 33"))
    second = builder.prepare(traces, tmp_path / "data")
    assert second != first and "question 33 é" in {trace.question for trace in builder.open_prepared(second)}


def test_a_broken_line_leaves_nothing_behind(traces, tmp_path, capsys):
    good = builder.prepare(traces, tmp_path / "data")
    before = files(tmp_path / "data")
    traces.write_text(traces.read_text() + '\n{"question": ')
    with pytest.raises(UserError) as error:
        builder.prepare(traces, tmp_path / "data")
    assert str(error.value).startswith(f"{traces}:13: broken JSON")
    assert files(tmp_path / "data") == before and good.exists()
    assert [path.name for path in (tmp_path / "data" / "traces").iterdir()] == [good.parent.name]
    assert capsys.readouterr().out == ""


def test_a_full_disk_is_said_and_leaves_nothing_behind(traces, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builder, "_encode", full)
    with pytest.raises(UserError, match="cannot write prepared data: No space left on device"):
        builder.prepare(traces, tmp_path / "data")
    assert files(tmp_path / "data") == []


def test_an_empty_file_and_a_folder_that_was_not_prepared(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no trace in the data"):
        builder.prepare(tmp_path / "empty.jsonl", tmp_path / "data")
    with pytest.raises(UserError, match="not a prepared data set"):
        builder.open_prepared(tmp_path)


def test_an_unknown_split(traces, tmp_path):
    with pytest.raises(UserError, match="no split 'test'"):
        builder.open_prepared(builder.prepare(traces, tmp_path / "data"), "test")


def test_tensorflow_is_not_imported_even_where_it_is_installed(traces, tmp_path):
    for name in ("tensorflow", "apache_beam"):
        (tmp_path / "installed" / name).mkdir(parents=True)
        (tmp_path / "installed" / name / "__init__.py").write_text("open(__file__ + '.imported', 'w')")
    code = f"""
        from lt_jax.data import builder
        source = builder.open_prepared(builder.prepare({str(traces)!r}, {str(tmp_path / "other")!r}))
        print(len(source), source[0].response == "a\\n\\nb")
    """
    path = os.pathsep.join([str(tmp_path / "installed"), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.stdout.split() == ["12", "True"], run.stderr
    assert not list(tmp_path.rglob("*.imported"))
