"""Are two LaTeX answers the same? math-verify, in a child process that can be stopped.

math-verify limits its time with `signal.alarm`, which works in a main thread only, and not while C code runs (a tower
of powers never returns). So one child process does the work on its main thread, the parent waits a fixed time, and a
child that does not answer is killed and replaced. Only the LaTeX grammar is used: math-verify's other reader, for bare
expressions, ends in Python's `eval`, which no output of a model may reach.

The child is this very file run as a program: one JSON line in, one JSON line out.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
import threading

SECONDS = 6.0  # for one comparison
STARTUP_SECONDS = 60.0


class LatexJudge:
    """Compares LaTeX expressions; safe to share between threads, which take turns."""

    def __init__(self, seconds: float = SECONDS):
        self._seconds, self._child, self._lock = seconds, None, threading.Lock()
        atexit.register(self.close)

    def same(self, given: str, answer: str) -> bool:
        """True if math-verify finds `given` equal to `answer`; False if not, unreadable, or out of time.

        Raises:
            UserError: math-verify cannot be started, so that nothing could be said of any answer.
        """
        with self._lock:
            if self._child is None:
                self._child = _start()
            try:
                return bool(self._ask({"given": given, "answer": answer}, self._seconds))
            except (TimeoutError, OSError, ValueError):
                self.close()
                return False

    def close(self) -> None:
        """Stops the child; the next comparison starts another."""
        if self._child is not None:
            _stop(self._child)
            self._child = None

    def _ask(self, question, seconds: float):
        self._child.stdin.write(json.dumps(question) + "\n")
        self._child.stdin.flush()
        return _read(self._child, seconds)


def _start() -> subprocess.Popen:
    """A child that is ready. UserError, and no child, if there is none in time."""
    with tempfile.TemporaryFile("w+") as said:
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                text=True, bufsize=1,
            )  # fmt: skip
        except OSError as error:
            raise _not_started(error.strerror) from None
        try:
            if _read(child, STARTUP_SECONDS) == "ready":
                return child
            why = "it answered something else"
        except TimeoutError:
            why = f"no answer in {STARTUP_SECONDS:.0f} s"
        except (OSError, ValueError):
            said.seek(0)
            why = (said.read().strip().splitlines() or ["it ended without a word"])[-1]
        _stop(child)
        raise _not_started(why)


def _not_started(why: str) -> Exception:
    from lt_jax.errors import UserError  # not above: the child runs this file alone

    return UserError(f"LaTeX answers cannot be compared: math-verify did not start ({why}); is it installed?")


def _stop(child: subprocess.Popen) -> None:
    child.kill()
    child.communicate()


def _read(child: subprocess.Popen, seconds: float):
    if not select.select([child.stdout], [], [], seconds)[0]:
        raise TimeoutError
    return json.loads(child.stdout.readline())


def _serve() -> None:
    """The child: reads comparisons from stdin until it closes."""
    import logging

    import math_verify

    logging.disable(logging.CRITICAL)
    config = [math_verify.LatexExtractionConfig()]
    read = lambda text: math_verify.parse(f"${text}$", extraction_config=config, fallback_mode="no_fallback")
    read("1")  # builds the grammar
    print(json.dumps("ready"), flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # nobody reads what it has to say from here on
    for line in sys.stdin:
        pair = json.loads(line)
        try:
            answer, given = read(pair["answer"]), read(pair["given"])
            result = bool(answer) and bool(given) and math_verify.verify(answer, given)
        except Exception:  # any failure of the reader on a model's text means: not the same
            result = False
        print(json.dumps(bool(result)), flush=True)


if __name__ == "__main__":
    _serve()
