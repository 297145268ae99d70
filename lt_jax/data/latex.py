"""Are two LaTeX answers the same? math-verify, in a child process that can be stopped.

math-verify limits its time with `signal.alarm`, which works in a main thread only, and not while C code runs (a tower
of powers never returns). So one child process (`latex_child.py`) does the work on its main thread, the parent waits a
fixed time, and a child that does not answer is killed and replaced.
"""

from __future__ import annotations

import atexit
import threading
import time
from pathlib import Path

from lt_jax.data.child import Child, NotStarted
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
            if self._child is None or not self._child.alive:
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
                end = min(until, time.monotonic() + self._seconds)
                self._child.send({"given": given, "answer": answer}, end - time.monotonic())
                return bool(self._child.receive(end - time.monotonic()))
            except (TimeoutError, OSError, EOFError, ValueError):
                self.close()
                return None

    def close(self) -> None:
        """Stops the child; the next comparison starts another."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _ready(self) -> bool:
        if self._child is not None and not self._child.alive:  # it was killed between two questions
            self.close()
        if self._child is None and self._failed < STARTS:
            try:
                self._child, self._worked, self._failed = _start(), True, 0
            except UserError:
                if not self._worked:
                    raise
                self._failed += 1
        return self._child is not None


def _start() -> Child:
    """A child that is ready. UserError, and no child, if there is none in time."""
    try:
        child = Child(CHILD, seconds=STARTUP_SECONDS)
    except NotStarted as error:
        raise _not_started(str(error)) from None
    if child.hello == "ready":
        return child
    child.stop()
    raise _not_started("it answered something else")


def _not_started(why: str) -> UserError:
    return UserError(f"LaTeX answers cannot be compared: math-verify did not start ({why}); is it installed?")
