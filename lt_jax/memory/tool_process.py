"""Tools in processes of their own, which can be killed: a text goes in, a text comes out, whatever a tool does.

The program is `tool_child.py`; only JSON goes over. A call that is not done in time ends its process, and the next call
gets another one. A program of an agent's (`python`) has a new process every time, so no run knows of another.
"""

from __future__ import annotations

import os
import queue
import time
from pathlib import Path

import lt_jax
from lt_jax.data.child import Child, NotStarted
from lt_jax.errors import UserError

PROGRAM = Path(__file__).with_name("tool_child.py")
STARTUP_SECONDS = 120.0  # for imports, those of a user's module too


class Processes:
    """Processes that run one tool, used as a context.

    Attributes:
        description: the first line of the tool's docstring.
    """

    def __init__(self, kind: str, count: int, seconds: float, memory: int):
        """Starts the first of them; the others when they are needed.

        Args:
            kind: "python", or "module:function".
            count: the most at the same time; more calls wait for one.
            seconds: for one call.
            memory: megabytes of a process for "python".

        Raises:
            UserError: the tool cannot be had.
        """
        home = str(Path(lt_jax.__file__).parents[1])
        self._how = {"kind": kind, "seconds": seconds, "memory": memory, "more": [home, os.getcwd()]}
        self._kind, self._seconds, self._once = kind, seconds, kind == "python"
        self._free: queue.SimpleQueue[Child | None] = queue.SimpleQueue()
        try:
            first = self._start()
        except NotStarted as error:
            raise UserError(f"tool {kind!r}: {error}") from None
        self.description = first.hello["ready"]
        self._count = count
        for each in (first, *[None] * (count - 1)):
            self._free.put(each)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_) -> None:
        for _ in range(self._count):
            if (child := self._free.get()) is not None:
                child.stop()

    def ask(self, text: str) -> str:
        """What the tool says to a text, or what went wrong; from any thread."""
        child = self._free.get()
        try:
            if child is not None and not child.alive:
                child.stop()
                child = None
            child = child or self._start()
            said = self._said(child, text)
            if said is None or self._once:
                child.stop()
                child = None
        except NotStarted as error:
            return f"the tool did not start: {error}"
        finally:
            self._free.put(child)
        return f"no answer in {self._seconds:g} s; it was ended" if said is None else said

    def _said(self, child: Child, text: str) -> str | None:
        """None if nothing was said in time, and the process must be ended."""
        until = time.monotonic() + self._seconds
        try:
            child.send(text, self._seconds)
            return str(child.receive(max(0.0, until - time.monotonic())))
        except TimeoutError:
            return None
        except (OSError, EOFError, ValueError):
            late = time.monotonic() > until  # it ended itself at its limit
            return None if late else "the tool ended without an answer (out of memory or time, perhaps)"

    def _start(self) -> Child:
        child = Child(PROGRAM, [self._how], seconds=STARTUP_SECONDS, alone=True)
        if isinstance(child.hello, dict) and "ready" in child.hello:
            return child
        child.stop()
        raise NotStarted(child.hello["wrong"])
