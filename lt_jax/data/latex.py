"""Are two LaTeX answers the same? math-verify, in a child process that can be stopped.

math-verify limits its time with `signal.alarm`, which works in a main thread only, and not while C code runs (a tower
of powers never returns). So one child process (`latex_child.py`) does the work on its main thread, the parent waits a
fixed time, and a child that does not answer is killed and replaced.

The child is isolated (`python -I`): no variable of the environment and no file of the working directory changes what it
imports. It is told where this process finds its packages, so that both find the same ones.
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
import time
from pathlib import Path

from lt_jax.errors import UserError

CHILD = Path(__file__).with_name("latex_child.py")
SECONDS = 6.0  # for one comparison
STARTUP_SECONDS = 60.0
STARTS = 3  # in a row that may fail, once it has worked


class LatexJudge:
    """Compares LaTeX expressions; safe to share between threads, which take turns."""

    def __init__(self, seconds: float = SECONDS):
        self._seconds, self._child, self._lock = seconds, None, threading.Lock()
        self._worked, self._failed = False, 0
        atexit.register(self.close)

    def check(self) -> None:
        """Starts the child, if it does not run, and tries it. UserError if nothing could be said of any answer."""
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self.close()
                self._child, self._worked, self._failed = _start(), True, 0

    def same(self, given: str, answer: str, until: float = float("inf")) -> bool | None:
        """Whether math-verify finds `given` equal to `answer`; unreadable text is not.

        None if it could not say: it was not done in time or ended, and another child is started for the next question.
        One that worked before and cannot be started again is tried three times, then every answer is None.

        Args:
            until: latest time, of `time.monotonic`, if that is earlier than the seconds for one comparison.

        Raises:
            UserError: math-verify cannot be started, and never was.
        """
        with self._lock:
            if until <= time.monotonic() or not self._ready():
                return None
            try:
                seconds = min(self._seconds, until - time.monotonic())
                return bool(self._ask({"given": given, "answer": answer}, seconds))
            except (TimeoutError, OSError, ValueError):
                self.close()
                return None

    def close(self) -> None:
        """Stops the child; the next comparison starts another."""
        if self._child is not None:
            _stop(self._child)
            self._child = None

    def _ready(self) -> bool:
        if self._child is not None and self._child.poll() is not None:  # it was killed between two questions
            self.close()
        if self._child is None and self._failed < STARTS:
            try:
                self._child, self._worked, self._failed = _start(), True, 0
            except UserError:
                if not self._worked:
                    raise
                self._failed += 1
        return self._child is not None

    def _ask(self, question, seconds: float):
        self._child.stdin.write(json.dumps(question) + "\n")
        self._child.stdin.flush()
        return _read(self._child, seconds)


def packages() -> list[str]:
    """Where this process finds its packages: the whole `sys.path`, but the working directory last and only by its name.

    An entry that means "wherever the process stands" is left out: a file there must not stand in for a package.
    """
    here = os.path.realpath(os.curdir)
    return sorted((path for path in sys.path if os.path.isabs(path)), key=lambda path: os.path.realpath(path) == here)


def _start() -> subprocess.Popen:
    """A child that is ready. UserError, and no child, if there is none in time."""
    with tempfile.TemporaryFile("w+") as said:
        try:
            child = subprocess.Popen(
                [sys.executable or "python3", "-I", str(CHILD), json.dumps(packages())], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8", bufsize=1,
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


def _not_started(why: str) -> UserError:
    return UserError(f"LaTeX answers cannot be compared: math-verify did not start ({why}); is it installed?")


def _stop(child: subprocess.Popen) -> None:
    child.kill()
    child.communicate()


def _read(child: subprocess.Popen, seconds: float):
    if not select.select([child.stdout], [], [], seconds)[0]:
        raise TimeoutError
    return json.loads(child.stdout.readline())
