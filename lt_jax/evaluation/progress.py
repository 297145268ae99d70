"""The progress line that a person sees while an evaluation runs."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from typing import TextIO

LIVE, LOGGED = 1.0, 60.0  # seconds after which a line is shown again though nothing was answered


class ProgressLine:
    """A line for each contender, which appears as soon as the contender begins to be loaded and compiled.

        rkv: loading and compiling, 48 s so far
        rkv: 12 of 40 problems, 63 s so far, about 147 s left
        rkv: 40 of 40 problems in 214 s, after 51 s of loading and compiling

    In a terminal the line is rewritten every second. A file gets a new line for each of the two stages, for each tenth
    of the problems, and every minute.
    """

    def __init__(self, file: TextIO | None, every: float | None = None):
        """Args:
        file: where the line is shown, such as stderr; None shows nothing.
        every: seconds between two lines while nothing is answered; None is as above.
        """
        self.file = file
        self.live = file is not None and file.isatty()
        self.every = every or (LIVE if self.live else LOGGED)
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def contender(self, name: str, total: int) -> Iterator[ProgressLine]:
        """Shows that this contender is being compiled and, once `answered` was called, how many it has answered."""
        self.name, self.total, self.done = name, total, None
        self.began = self.decoding = time.monotonic()
        over = threading.Event()
        ticks = threading.Thread(target=self._tick, args=(over,), daemon=True)
        self._show()
        ticks.start()
        try:
            yield self
        finally:
            over.set()
            ticks.join()
            if self.live:
                print(file=self.file, flush=True)

    def answered(self, done: int) -> None:
        """Tells how many problems are answered by now; 0 says that compiling is over."""
        first = self.done is None
        if first:
            self.decoding = time.monotonic()
        self.done = done
        if self.live or first or done == self.total or done % self._tenth() == 0:
            self._show()

    def text(self, now: float) -> str:
        """The line as it is at a time of `time.monotonic`."""
        if self.done is None:
            return f"{self.name}: loading and compiling" + _so_far(now - self.began)
        line, gone = f"{self.name}: {self.done:,} of {self.total:,} problems", now - self.decoding
        if self.done == self.total:
            return f"{line} in {gone:.0f} s, after {self.decoding - self.began:.0f} s of loading and compiling"
        line += _so_far(gone)
        if self.done < self._tenth():  # too early to tell how long the rest takes
            return line
        left = gone / self.done * (self.total - self.done)
        return line + (f", about {left:.0f} s left" if left >= 1 else "")

    def _tenth(self) -> int:
        return max(self.total // 10, 1)

    def _tick(self, over: threading.Event) -> None:
        while not over.wait(self.every):
            self._show()

    def _show(self) -> None:
        if self.file is None:
            return
        line = self.text(time.monotonic())
        with self.lock:
            if self.live:  # a line that wraps could not be rewritten
                print("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1], end="", file=self.file, flush=True)
            else:
                print(line, file=self.file, flush=True)


def _so_far(seconds: float) -> str:
    return f", {seconds:.0f} s so far" if seconds >= 1 else ""
