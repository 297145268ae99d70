"""Whatever a file of records or prompts holds: read as it is meant, or one line that says where and what."""

import codecs
import gzip
import subprocess
import sys

import pytest

from lt_jax.data.builder import prepare
from lt_jax.data.readers import read_traces
from lt_jax.data.suites import from_files
from lt_jax.errors import UserError
from lt_jax.serving.prompts import read_prompts

GOOD = b'{"question": "q", "response": "r", "answer": "1"}\n'


@pytest.mark.parametrize(
    "line, said",
    [
        (rb'{"question": "a\ud800b", "response": "r", "answer": "1"}', r"a text has '\\ud800', half a surrogate pair"),
        (rb'{"question": "q", "response": "r", "answer": "1", "extra": {"deep": ["\udc00"]}}', r"a text has '\\udc00'"),
        (b'{"question": "q\xff", "response": "r"}', "byte 15 of the line is not UTF-8"),
        (b'{"question": "q", "response": "r", "score": NaN}', "NaN is not JSON"),
        (b'{"question": "q", "question": "z", "response": "r"}', "the key 'question' stands twice"),
        (b'{"question": "q", "n": ' + b"[" * 20000 + b"]" * 20000 + b"}", "nested more than 100 deep"),
        (b'{"question": "q", "n": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"question": "q"', "broken JSON"),
        (b"[1, 2]", "a JSON list, not an object"),
    ],
)
def test_a_line_that_cannot_be_is_named_with_file_and_number(tmp_path, line, said):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n")
    for read in (
        lambda: list(read_traces(path)),
        lambda: prepare(path, tmp_path / "data"),
        lambda: from_files(path, name="bad"),
        lambda: read_prompts(path),
    ):
        with pytest.raises(UserError, match=rf"bad.jsonl:3: .*{said}") as error:
            read()
        assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_what_is_right_is_read_as_it_is(tmp_path):
    """Escaped pairs, NUL, line separators inside of a text, a byte order mark, blank lines and CRLF."""
    path = tmp_path / "good.jsonl"
    lines = [rb'{"question": "\ud83d\ude00 \u0000 \u2028", "response": "r"}', b"  ", GOOD.strip(), b""]
    path.write_bytes(codecs.BOM_UTF8 + b"\r\n".join(lines))
    assert [trace.question for trace in read_traces(path)] == ["\U0001f600 \0 \u2028", "q"]


def test_a_gzip_file_that_was_cut_off_or_spoilt(tmp_path):
    whole = gzip.compress(GOOD * 5000)
    for number, data in enumerate((whole[:-20], whole[:60] + b"\0" * 40 + whole[100:], b"no gzip")):
        path = tmp_path / f"bad{number}.jsonl.gz"
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"bad{number}.jsonl.gz: broken gzip file|bad{number}.jsonl.gz:\d+: "):
            list(read_traces(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_prompts_of_a_text_file(tmp_path, encoding):
    path = tmp_path / "prompts.txt"
    path.write_bytes("one\u2028still one\r\n\r\ntwo\x0cstill two\x85\nthrée".encode(encoding))
    assert [question for question, _ in read_prompts(path)] == ["one\u2028still one", "two\x0cstill two\x85", "thrée"]


def test_a_text_file_of_another_encoding_is_refused_with_its_line(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("one\ntwo\nthrée".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.txt:3: byte 3 of the line is not UTF-8; save the file as UTF-8"):
        read_prompts(path)
    path.write_bytes("one".encode("utf-16"))
    with pytest.raises(UserError, match=r"latin.txt:1: not UTF-8 but UTF-16"):
        read_prompts(path)


def test_a_start_says_nothing_of_libraries_that_are_not_needed():
    """Without torch, importing a tokenizer makes transformers say that there is none."""
    code = (
        "import sys; sys.modules['torch'] = None; import importlib.util as u; f = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name.split('.')[0] == 'torch' else f(name, *a); "
        "import lt_jax; from pathlib import Path; from lt_jax.layout.tokenizer import load_tokenizer; "
        "load_tokenizer(Path(lt_jax.__file__).parent / 'assets' / 'base')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
