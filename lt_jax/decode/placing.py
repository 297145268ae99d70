"""Which request goes into which row, and what it finds there. All on the host; the engine does what is decided here."""

from __future__ import annotations

import collections
import dataclasses

from lt_jax.decode.control import Rules
from lt_jax.decode.pieces import partable
from lt_jax.decode.prefix import WORTH, Held, of_prompt, reusable
from lt_jax.decode.record import Record


@dataclasses.dataclass
class Start:
    """A request on its way into a row.

    Attributes:
        row, record: where it goes, and what it is.
        begin: tokens taken over, from the row `origin`; that may be the row itself.
        twins: rows and records of the same prompt. They take over all of it but the last token, once it is read here.
    """

    row: int
    record: Record
    begin: int = 0
    origin: int | None = None
    twins: list[tuple[int, Record]] = dataclasses.field(default_factory=list)

    @property
    def members(self) -> list[tuple[int, Record]]:
        """All rows and records that start here."""
        return [(self.row, self.record), *self.twins]


class Rows:
    """What the host knows of an engine's rows.

    Attributes:
        live: records of the rows under way.
        past: what free rows still hold, the longest finished first. Rows that are in neither hold nothing of use.
    """

    def __init__(self, count: int, rules: Rules):
        self.count, self.rules = count, rules
        self.live: dict[int, Record] = {}
        self.past: dict[int, Held] = {}

    @property
    def free(self) -> list[int]:
        """Rows that a request may go into; those that hold nothing first, then the longest finished."""
        taken = self.live.keys() | self.past.keys()
        return [row for row in range(self.count) if row not in taken] + list(self.past)

    def finished(self, row: int, held: Held | None) -> None:
        """The record of a row is done; `held` is what the row still holds, None if nothing that could be used."""
        del self.live[row]
        if held is not None and len(held) >= WORTH:
            self.past[row] = held

    def forget(self) -> None:
        """The weights have changed: no key that is there now is one that they would make."""
        self.past.clear()
        for record in self.live.values():
            record.stale = True

    def wave(self, waiting: collections.deque[Record]) -> list[Start]:
        """Takes requests out of `waiting` that can start now, each with a row of its own.

        A request whose prompt begins like one that this very wave reads stays in `waiting`: once that is read, the next
        wave finds it there. Requests with the very same prompt are twins and need not wait.
        """
        free, starts, same, later = self.free, [], {}, []
        sources = self._sources()
        while waiting and free:
            record = waiting.popleft()
            if (twin := same.get(record.prompt_key)) is not None:
                row = free.pop(0)
                self._claim(row, record, sources)
                twin.twins.append((row, record))
                continue
            begin, origin = self._best(record, sources)
            soon = [reusable(of_prompt(s.record.prompt_row), record.prompt_row, self.rules) for s in starts
                    if s.record.head == record.head and not s.record.evicts_prompt]  # fmt: skip
            if max(soon, default=0) >= begin + WORTH:
                later.append(record)
                continue
            row = origin if origin in free else free[0]
            free.remove(row)
            self._claim(row, record, sources)
            starts.append(Start(row, record, begin, origin))
            if len(record.prompt) > WORTH and partable(record.prompt_row):
                same[record.prompt_key] = starts[-1]
        waiting.extendleft(reversed(later))
        return starts

    def _claim(self, row: int, record: Record, sources: dict) -> None:
        self.past.pop(row, None)
        for rows in sources.values():
            rows.pop(row, None)
        self.live[row] = record

    def _sources(self) -> dict[bytes, dict[int, Held]]:
        """Rows that can be gone on from, by their first tokens."""
        found = collections.defaultdict(dict)
        for row, held in self.past.items():
            found[head(held.tokens)][row] = held
        for row, record in self.live.items():
            if (held := record.held()) is not None:
                found[record.head][row] = held
        return found

    def _best(self, record: Record, sources: dict) -> tuple[int, int | None]:
        """The most tokens that can be taken over, and the row that has them; a free row before one under way."""
        best = (0, False, None)
        for row, held in sources.get(record.head, {}).items():
            begin = reusable(held, record.prompt_row, self.rules)
            best = max(best, (begin, row not in self.live, row), key=lambda found: found[:2])
        return (best[0], best[2]) if best[0] else (0, None)


def head(tokens) -> bytes:
    """What prompts that have enough in common for `reusable` have in common."""
    return tokens[:WORTH].tobytes()
