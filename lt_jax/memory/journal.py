"""Trajectories on disk as they come: a line each, safe as soon as it is written, in whatever order they end.

A process may be killed at any moment. The last line may then be torn; it is cut off when the journal is opened again,
and its problem is worked on anew. `write_sorted` makes the file in the order of the problems, under a temporary name
that is then changed, so that it is whole or not there.
"""

from __future__ import annotations

import bisect
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

from lt_jax.data.readers import read_records
from lt_jax.errors import UserError
from lt_jax.memory.log import Log, from_json

START = b'{"number": '  # how every line begins


class Numbers:
    """A set of whole numbers that come nearly in order, kept as runs: a million of them take no more than a few."""

    def __init__(self):
        self.starts, self.stops = array("q"), array("q")
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __contains__(self, number: int) -> bool:
        place = bisect.bisect_right(self.starts, number) - 1
        return place >= 0 and number < self.stops[place]

    def add(self, number: int) -> None:
        if number in self:
            return
        place = bisect.bisect_right(self.starts, number)
        before = place > 0 and self.stops[place - 1] == number
        behind = place < len(self.starts) and self.starts[place] == number + 1
        if before and behind:
            self.stops[place - 1] = self.stops.pop(place)
            self.starts.pop(place)
        elif before:
            self.stops[place - 1] = number + 1
        elif behind:
            self.starts[place] = number
        else:
            self.starts.insert(place, number)
            self.stops.insert(place, number + 1)
        self.count += 1


class Journal:
    """The file; a context manager.

    Attributes:
        done: numbers of the problems whose trajectories are in it.
        torn: bytes of a last line that were cut off when it was opened.
    """

    def __init__(self, path: str | Path):
        """Opens it, or makes it.

        Raises:
            UserError: it has a line that is none of a journal's, or cannot be written.
        """
        self.path, self.done, self.torn = Path(path), Numbers(), 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "a+b")
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        self.file.seek(0)
        end = 0
        for line, raw in enumerate(self.file, 1):
            if not raw.endswith(b"\n"):
                self.torn = len(raw)
                break
            self.done.add(_number(raw, f"{path}:{line}"))
            end += len(raw)
        self.file.truncate(end)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def write(self, number: int, log: Log) -> None:
        """Appends a trajectory; it is on the disk when this returns.

        Raises:
            UserError: the disk is full.
        """
        line = json.dumps({"number": number, "log": log.to_json()}, ensure_ascii=False) + "\n"
        try:
            self.file.write(line.encode())
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}; what was finished is kept") from None
        self.done.add(number)

    def write_sorted(self, path: str | Path) -> None:
        """Writes all trajectories by their numbers, one line of JSON each. Memory: 8 bytes for each."""
        places = array("q", [-1]) * (max(self.done.stops, default=0))
        self.file.seek(0)
        at = 0
        for raw in self.file:
            number = _number(raw, str(self.path))
            if places[number] < 0:
                places[number] = at
            at += len(raw)
        partial = Path(f"{path}.partial")
        try:
            with open(partial, "wb") as out:
                for place in places:
                    if place >= 0:
                        self.file.seek(place)
                        raw = self.file.readline()
                        out.write(raw[raw.index(b'"log": ') + 7 : -2] + b"\n")
                out.flush()
                os.fsync(out.fileno())
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(f"{path}: cannot be written: {error.strerror}; nothing was left") from None


def read_logs(path: str | Path) -> Iterator[Log]:
    """Streams the trajectories of a file, one line of JSON each.

    Raises:
        UserError: with file and line, what cannot be read.
    """
    for where, record in read_records(Path(path)):
        yield from_json(record, where)


def _number(raw: bytes, where: str) -> int:
    digits = raw[len(START) :].partition(b",")[0]
    if not raw.startswith(START) or not digits.isdigit():
        raise UserError(f"{where}: not a line of a journal of trajectories; give another folder, or take the file away")
    return int(digits)
