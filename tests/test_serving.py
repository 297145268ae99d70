"""Answers for people: prompts of a file, and a conversation in the terminal, as a person has it."""

import dataclasses
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lt_jax
from lt_jax import notices
from lt_jax.ask import AskConfig
from lt_jax.decode.counts import Cost
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from lt_jax.serving import chat, prompts
from tests.tiny_folder import make

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "light", Scheme(n_gist=2))


@pytest.fixture(scope="module")
def model(folder):
    return lt_jax.load(folder)


# Prompts.


def test_an_answer_that_reaches_the_last_position_is_told_of(model):
    lines, out = [], []
    short = dataclasses.replace(model, config=model.config.replace(max_positions=30))
    asked = [("Sum 1)+006", ""), ("1", "")]
    done = prompts.generate(short, asked, AskConfig(max_new=20), write=out.append, warn=lines.append)
    late = sum(each.counts.prompt + 20 > 30 for each in done)
    assert late and len(lines) == 1
    assert lines[0].startswith(f"warning: {late} of 2 prompts and max_new (20) together are longer than the 30 posit")
    assert "positions" in {each.finish for each in done} and "made for no more positions" in "".join(out)
    assert notices.beyond([5, 9], 20, 29) == ""


def test_a_prompt_that_is_refused_takes_no_other_one_with_it(model):
    lines, out, asked = [], [], [("1", ""), ("Sum 1)+006 2)+01", "")]
    how = AskConfig(max_new=2, capacity=12)
    good, bad = prompts.generate(model, asked, how, write=out.append, warn=lines.append)
    assert good.finish == "length" and bad.finish == "refused" and "[1] -- refused: a prompt of" in "".join(out)
    assert len(lines) == 1 and lines[0].startswith("warning: 1 of 2 prompts were refused, the first of them prompt 1:")
    assert json.loads(prompts.as_jsonl(asked, [good, bad]).splitlines()[1])["why"] == bad.why
    with pytest.raises(UserError, match="^a prompt of .* does not fit"):
        prompts.generate(model, asked[1:], how)


def test_generate_streams_with_gists_marked(model):
    out, asked = [], [("Sum 1)+006", "")]
    (done,) = prompts.generate(model, asked, AskConfig(max_new=24, max_thought=9), write=out.append)
    text = "".join(out)
    assert text.count("[2 gists for 10 keys]") == done.counts.compressions > 0
    assert "cut off at max_new" in text
    assert f"\n-- {done.counts.prompt} tokens of prompt and {done.counts.generated} of answer, " in text
    out.clear()
    both = prompts.generate(model, [*asked, ("1", "")], AskConfig(max_new=8), write=out.append)
    for i, each in enumerate(both):
        assert f"\n[{i}] -- {each.counts.prompt} tokens of prompt and 8 of answer, " in "".join(out)
    line = json.loads(prompts.as_jsonl(asked, [done]))
    assert line["question"] == "Sum 1)+006" and line["compressions"] == done.counts.compressions


def test_several_answers_to_each_prompt(model):
    out, asked = [], [("Sum 1)+006", ""), ("1", "")]
    how = AskConfig(n=2, temperature=1.0, seed=3, max_new=6)
    done = prompts.generate(model, asked, how, write=out.append)
    assert [(each.completion.id, each.completion.sample) for each in done] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert done[0].text != done[1].text
    for each in done:
        name = f"[{each.completion.id}.{each.completion.sample}]"
        assert f"{name} {each.text}\n{name} -- {each.counts.prompt} tokens of prompt" in "".join(out)
    lines = [json.loads(line) for line in prompts.as_jsonl(asked, done).split("\n")[:-1]]
    assert [(line["question"], line["sample"], line["text"]) for line in lines] == [
        (asked[i // 2][0], i % 2, each.text) for i, each in enumerate(done)
    ]


def test_prompts_from_files(tmp_path):
    text, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_text("one\n\ntwo\n")
    lines.write_text('{"question": "one", "system": "s"}\n{"prompt": "two", "system": null}\n')
    assert prompts.read_prompts(text) == [("one", ""), ("two", "")]
    assert prompts.read_prompts(lines) == [("one", "s"), ("two", "")]
    for content, message in (("{", r"p.jsonl:1: broken JSON"), ('{"q": 1}', r"p.jsonl:1: no text in 'question'"),
                             ('{"prompt": "a", "system": 3}', r"p.jsonl:1: 'system' must be text, not int"),
                             ("", "there is no prompt")):  # fmt: skip
        lines.write_text(content)
        with pytest.raises(UserError, match=message):
            prompts.read_prompts(lines)
    with pytest.raises(UserError, match="no such file"):
        prompts.read_prompts(tmp_path / "none.txt")


def test_prompts_of_a_text_file_are_its_lines_letter_by_letter(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffone\u2028more\x0cand\x85so\rfar\r\n \r\n\ttwo ".encode())
    assert prompts.read_prompts(path) == [("one\u2028more\x0cand\x85so\rfar", ""), ("\ttwo ", "")]


@pytest.mark.parametrize(
    "content, message",
    [
        ("one\ntwo".encode("utf-16"), r"p.txt:1: not UTF-8 but UTF-16, or no text at all; save the file as UTF-8"),
        ("one\ntwo".encode("utf-16-le"), r"p.txt:1: not UTF-8 but UTF-16"),
        ("one\ntwo".encode("utf-32"), r"p.txt:1: not UTF-8 but UTF-16"),
        ("one\ntwo é".encode("latin-1"), r"p.txt:2: byte 4 of the line is not UTF-8"),
        (b"\xef\xbb\xbf\n \n", "p.txt: there is no prompt in it"),
    ],
)
def test_other_encodings_are_one_line(tmp_path, content, message):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        prompts.read_prompts(tmp_path / "p.txt")


# The conversation.


def talk(model, *lines, how=None, press=()):
    """What a conversation of these lines writes, and what the model was asked; Ctrl-C at the pieces of `press`."""
    out, asked, waiting = [], [], list(lines)
    real = type(model).ask

    def write(text):
        out.append(text)
        if len(out) in press:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "ask", lambda self, prompt: asked.append(prompt) or real(self, prompt))
        chat.chat(model, how or AskConfig(max_new=6), lambda: waiting.pop(0) if waiting else None, write)
    return "".join(out), asked


def test_a_conversation_goes_on_over_turns(model):
    text, asked = talk(model, "Sum 1)+006\n", "", "And 2)+01?", "/reset", "1", "/help", "/quit", "never")
    assert [len(each) for each in asked] == [1, 3, 1], "history, and none after /reset"
    assert asked[1][0]["content"] == "Sum 1)+006" and asked[1][1]["role"] == "assistant" and asked[1][1]["content"]
    assert text.count("tokens of prompt") == 3 and "-- a new conversation" in text
    assert "-- /help is no command; there are /reset and /quit" in text


def test_an_error_is_told_and_the_conversation_goes_on(model):
    text, asked = talk(model, "1", "Sum " * 30, "2", how=AskConfig(max_new=4, capacity=60))
    assert text.count("error: a prompt of") == 1 and [len(each) for each in asked] == [1, 3, 3]


@pytest.mark.parametrize("how, line", [
    (dict(method="vanilla", max_thought=9), "max_thought is set, but vanilla has no thoughts"),
    (dict(method="memento"), "trained for lightthinker; it can be decoded as lightthinker or vanilla, not as memento"),
    (dict(kv="rkv", budget=32, buffer=2), "eviction.buffer is 2; closing a thought takes"),
    (dict(capacity=2), "decode.capacity is 2; closing a thought alone takes"),
])  # fmt: skip
def test_settings_with_which_nothing_can_be_answered_end_a_conversation_before_it_begins(model, how, line):
    with pytest.raises(UserError, match=line):
        chat.chat(model, AskConfig(**how), lambda: pytest.fail("a person was asked"), print)


def test_ctrl_c_stops_the_answer_alone(model):
    before = signal.getsignal(signal.SIGINT)
    text, asked = talk(model, "Sum 1)+006", "2", how=AskConfig(max_new=500, max_thought=9), press=(1,))
    first, second = (line for line in text.splitlines() if "tokens of prompt" in line)
    assert first.endswith(", stopped") and not second.endswith(", stopped")
    assert len(asked[1]) == 3 and signal.getsignal(signal.SIGINT) is before


# Gives a program the terminal at its standard input for its own, as a shell does, and starts it.
OWN_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts what is to run in the background with it ignored
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.slow
def test_a_terminal_and_a_pipe(folder):
    """As a person would: at a terminal, where Ctrl-C interrupts an endless answer and Ctrl-D ends; and from a pipe."""
    command = ["launch/generate.py", f"--model={folder}", "--max_new=3500", "--method=vanilla"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TERM": "dumb"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", OWN_TERMINAL, *command], cwd=ROOT, stdin=theirs, stdout=theirs,
                               stderr=theirs, env=environment, start_new_session=True)  # fmt: skip
    os.close(theirs)
    seen = b""

    def until(wanted: bytes, press: bytes = b""):
        nonlocal seen
        end = time.monotonic() + 120
        while wanted not in seen:
            assert time.monotonic() < end and process.poll() is None, seen[-2000:]
            os.write(ours, press)
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 65536)
        before, _, seen = seen.partition(wanted)
        return before

    try:
        until(b"you> ")
        os.write(ours, b"Sum 1)+006\n")
        until(b"Sum 1)+006")  # the terminal's echo
        while len(seen) < 200:
            seen += os.read(ours, 65536)
        os.write(ours, b"\x03")
        assert b", stopped" in until(b"you> ")
        # Between its prompt and its waiting for a line readline notices no signal, and a Ctrl-D that comes before it
        # has the terminal to itself is lost: a person presses again.
        until(b"-- /quit or Ctrl-D ends", press=b"\x03")
        until(b"you> ")
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            os.write(ours, b"\x04")
            time.sleep(0.5)
        assert process.poll() == 0, process.poll()
    finally:
        process.kill()
        os.close(ours)
    piped = subprocess.run([sys.executable, *command, "--max_new=4"], input="1\n/reset\n2\n", cwd=ROOT, text=True,
                           env=environment, capture_output=True)  # fmt: skip
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout.count("tokens of prompt") == 2 and "you>" not in piped.stdout



def test_a_method_that_compressed_next_to_nothing_is_told_of():
    """Of answers that are long enough to have had a thought to compress."""
    cost = lambda generated, compressions: Cost(9, generated, 0, compressions, 99, 999, 1.0)
    said = notices.uncompressed([cost(100, 0), cost(200, 0), cost(5, 0)], "light")
    assert said.startswith("warning: light: next to nothing was compressed: 0 thoughts in 2 answers")
    assert not notices.uncompressed([cost(100, 0), cost(200, 3)]) and not notices.uncompressed([cost(5, 0)] * 4)
