"""Worker processes for reward functions: calls go in, an outcome for each response comes out, whatever a function does.

A call is (kind, problems, texts), an outcome {"value": x}, {"late": true}, {"raised": "why"} or {"refused": "why"}; see
`reward_worker`. One thread of this process waits for each worker, so that the main thread need not.
"""

from __future__ import annotations

import concurrent.futures
import os
import queue
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import lt_jax
from lt_jax.data.child import Child, NotStarted
from lt_jax.errors import UserError

PROGRAM = Path(__file__).with_name("reward_worker.py")
STARTUP_SECONDS = 120.0  # for imports, those of a user's module too
Call = tuple[str, list[dict], list[str]]


class Workers:
    """Processes that run reward functions. They end when they are closed, and when this process ends."""

    def __init__(self, count: int, kinds: Sequence[str], listed: Sequence[str], seconds: float):
        """Starts them, side by side.

        Args:
            count: how many.
            kinds: what they are asked for: keys of `reward_worker.KINDS`, and "module:function".
            listed: of these, functions that take lists.
            seconds: for one call.

        Raises:
            UserError: they do not start, or one of the kinds cannot be had.
        """
        home = str(Path(lt_jax.__file__).parents[1])
        how = {"kinds": list(kinds), "listed": list(listed), "seconds": seconds, "more": [home, os.getcwd()]}
        self._all = [_Worker(how) for _ in range(count)]
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._threads = concurrent.futures.ThreadPoolExecutor(count, "rewards")
        try:
            for started in [self._threads.submit(each.ready) for each in self._all]:
                started.result()
        except BaseException:
            self.close()
            raise
        for each in self._all:
            self._free.put(each)

    def ask(self, calls: Sequence[Call]) -> Future[list[dict]]:
        """One worker answers the calls in turn: an outcome for each of their responses, in order.

        A call of several responses that fails is made again for each of them, so that only those fail that must.
        """
        return self._threads.submit(self._ask, calls)

    def close(self) -> None:
        """Ends them, in the midst of a call too; what was not answered by then is cancelled or raises."""
        for each in self._all:
            each.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for each in self._all:
            each.stop()

    def _ask(self, calls: Sequence[Call]) -> list[dict]:
        worker = self._free.get()
        try:
            return _each(worker, calls)
        finally:
            self._free.put(worker)


def _each(worker: _Worker, calls: Sequence[Call]) -> list[dict]:
    found = []
    for (kind, problems, texts), outcome in zip(calls, worker.run(calls), strict=True):
        if "values" in outcome:
            found += [{"value": value} for value in outcome["values"]]
        elif "refused" in outcome or len(texts) == 1:
            found += [outcome] * len(texts)
        else:
            found += _each(worker, [(kind, [one], [text]) for one, text in zip(problems, texts, strict=True)])
    return found


class _Worker:
    """One process, replaced when it must be killed or has ended; used by one thread at a time."""

    def __init__(self, how: dict):
        self._how, self._child, self._closed = how, None, False

    def ready(self) -> Child:
        """Its process, a new one if there is none that runs."""
        if self._child is not None and not self._child.alive:
            self.stop()
        if self._child is None and not self._closed:
            self._child = _start(self._how)
        if self._closed:  # by now, perhaps
            self.stop()
            raise concurrent.futures.CancelledError
        return self._child

    def run(self, calls: Sequence[Call]) -> list[dict]:
        """What each call comes to. One that is not done in time, or ends the process, costs no other its outcome."""
        found, seconds = [], self._how["seconds"]
        while len(found) < len(calls):
            child = self.ready()
            try:
                began = time.monotonic()
                child.send(calls[len(found) :], seconds)
                while len(found) < len(calls):
                    found.append(child.receive(seconds))
                    began = time.monotonic()
            except TimeoutError:
                found.append({"late": True})
                self.stop()
            except (OSError, EOFError, ValueError):
                if self._closed:
                    raise concurrent.futures.CancelledError from None
                late = time.monotonic() - began > seconds  # this thread did not get to run, and it ended itself
                found.append({"late": True} if late else {"raised": f"its process ended{_status(child)}"})
                self.stop()
        return found

    def close(self) -> None:
        """Kills the process, from any thread, and no other is started; `stop` must follow."""
        self._closed = True
        if (child := self._child) is not None:
            child.kill()

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None


def _start(how: dict) -> Child:
    errors = os.dup(2)  # where a user's function prints to
    try:
        child = Child(PROGRAM, [{**how, "stderr": errors}], seconds=STARTUP_SECONDS, alone=True, pass_fds=(errors,))
    except NotStarted as error:
        raise UserError(f"rewards: a worker did not start ({error})") from None
    finally:
        os.close(errors)
    if child.hello == "ready":
        return child
    child.stop()
    raise UserError(child.hello["wrong"])


def _status(child: Child) -> str:
    try:
        return f" with status {child.process.wait(1)}"
    except subprocess.TimeoutExpired:
        return ""
