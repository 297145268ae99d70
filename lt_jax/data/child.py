"""A program of ours in a process of its own, which speaks JSON, a line at a time, and can be stopped at any moment.

Only text and numbers go over, never pickled objects. The child is isolated (`python -I`): no variable of the
environment and no file of the working directory changes what it imports. It is told where this process finds its
packages, as the first argument, so that both find the same ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


class NotStarted(Exception):
    """A child did not start; the text says why, in one line."""


class Child:
    """A running child that has said its first line.

    Attributes:
        process: its process.
        hello: what it said first.
    """

    def __init__(self, program: Path, arguments: Sequence = (), *, seconds: float, alone: bool = False,
                 pass_fds: Sequence[int] = ()):  # fmt: skip
        """Starts a program and waits for its first line.

        Args:
            program: a Python file.
            arguments: JSON values, given to it as texts after `packages()`.
            seconds: until its first line.
            alone: in a session of its own: Ctrl-C at a terminal does not reach it, and its own children are stopped
                with it.
            pass_fds: open files of this process that it may use, by the same numbers.

        Raises:
            NotStarted: there is no such program, or it ended, or said nothing in time.
        """
        self._alone, self._read = alone, bytearray()
        with tempfile.TemporaryFile("w+") as said:
            command = [sys.executable or "python3", "-I", str(program), *map(json.dumps, (packages(), *arguments))]
            try:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, bufsize=0,
                    start_new_session=alone, pass_fds=pass_fds,
                )  # fmt: skip
            except OSError as error:
                raise NotStarted(error.strerror) from None
            os.set_blocking(self.process.stdin.fileno(), False)
            try:
                self.hello = self.receive(seconds)
                return
            except TimeoutError:
                why = f"no answer in {seconds:.0f} s"
            except (EOFError, ValueError):
                said.seek(0)
                why = (said.read().strip().splitlines() or ["it ended without a word"])[-1]
            self.stop()
            raise NotStarted(why)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def send(self, message, seconds: float) -> None:
        """Writes a JSON value. TimeoutError if the child does not read it in time, OSError if it ended."""
        until, left = time.monotonic() + seconds, memoryview(json.dumps(message).encode() + b"\n")
        while left:
            if not select.select([], [self.process.stdin], [], max(0.0, until - time.monotonic()))[1]:
                raise TimeoutError
            left = left[os.write(self.process.stdin.fileno(), left) :]

    def receive(self, seconds: float):
        """Its next JSON value. TimeoutError if it says none in time, EOFError if it ended, ValueError if it is none."""
        until = time.monotonic() + seconds
        while b"\n" not in self._read:
            if not select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            if not (more := os.read(self.process.stdout.fileno(), 1 << 16)):
                raise EOFError
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def kill(self) -> None:
        """Kills it, and what it started if it is alone; from any thread. `stop` must follow."""
        if self._alone:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left in it
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def stop(self) -> None:
        """Kills it and waits for its end."""
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def packages() -> list[str]:
    """Where this process finds its packages: the whole `sys.path`, but the working directory last and only by its name.

    An entry that means "wherever the process stands" is left out: a file there must not stand in for a package.
    """
    here = os.path.realpath(os.curdir)
    return sorted((path for path in sys.path if os.path.isabs(path)), key=lambda path: os.path.realpath(path) == here)
