"""Which request goes into which row, and what it finds there. All on the host; the engine does what is decided here."""

from __future__ import annotations

import collections
import dataclasses

from lt_jax.decode.control import Rules
from lt_jax.decode.pieces import partable
from lt_jax.decode.prefix import WORTH, Held, common, head, of_prompt, redated, reusable
from lt_jax.decode.record import Record


@dataclasses.dataclass
class Start:
    """A request on its way into a row.

    Attributes:
        row, record: where it goes, and what it is.
        begin: tokens taken over, from the row `origin`; that may be the row itself.
        redated: some of them die at other moments than they did there.
        twins: rows and records of the same prompt. They take over all of it but the last token, once it is read here.
    """

    row: int
    record: Record
    begin: int = 0
    origin: int | None = None
    redated: bool = False
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
        whose: by row of `past`, the handle of the request that it was for.
        spoilt: free rows in whose slots there may be NaN.
        slots: of a finished row, into which nothing is written until it is taken again.
        own: rows of a part: what a row holds can be copied within its part alone, see `spread.py`.
    """

    def __init__(self, count: int, rules: Rules, own: int | None = None):
        self.count, self.rules, self.slots, self.own = count, rules, 0, own or count
        self.live: dict[int, Record] = {}
        self.past: dict[int, Held] = {}
        self.whose: dict[int, int] = {}
        self.spoilt: set[int] = set()

    @property
    def free(self) -> list[int]:
        """Rows that a request may go into; those that hold nothing first, then the longest finished."""
        taken = self.live.keys() | self.past.keys()
        return [row for row in range(self.count) if row not in taken] + list(self.past)

    def finished(self, row: int, finish: str, known: bool = True) -> None:
        """The record of a row is done.

        Args:
            known: the record has all that the row was fed. A row that was stopped while a block was under way may go on
                to its end: it then surely holds no more than the prompt, and under an eviction not even that.
        """
        record = self.live.pop(row)
        if finish == "nan":
            self.spoilt.add(row)
            return
        held = record.held()
        if held is None or not (known or self.rules.eviction is None):
            return
        held = (held if known else held.until(len(record.prompt))).within(self.slots)
        if held.most >= WORTH:
            self.past[row], self.whose[row] = held, record.handle

    def ended(self, handle: int) -> None:
        """Nobody will go on from what a finished request wrote: its rows are the first to be taken."""
        mine = {row: held for row, held in self.past.items() if self.whose[row] == handle}
        self.past = mine | {row: held for row, held in self.past.items() if row not in mine}

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
        if not free:
            return starts
        sources = self._sources({record.head for record in waiting})
        while waiting and free:
            record = waiting.popleft()
            key, row = record.key, self._next(free)
            if (first := same.get((key, row // self.own))) is not None:
                record.reused, record.read_again = len(record.prompt) - 1, 0
                first.twins.append((self._claim(free, row, record, sources), record))
                continue
            begin, origin, other = self._best(record, sources, {row // self.own for row in free})
            if origin is not None:
                row = self._near(free, origin, begin)
            if self._soon(starts, record, row // self.own) >= begin + WORTH:
                later.append(record)
                continue
            start = Start(self._claim(free, row, record, sources), record, begin, origin, other)
            starts.append(start)
            if len(record.prompt) > WORTH and partable(record.prompt_row):
                same[key, row // self.own] = start
        waiting.extendleft(reversed(later))
        return starts

    def _next(self, free: list[int], part: int | None = None) -> int:
        """The free row to take: in a given part, or in the one with the fewest rows under way."""
        if self.own == self.count:
            return free[0]
        busy = collections.Counter(row // self.own for row in self.live)
        return min((row for row in free if part in (None, row // self.own)), key=lambda row: busy[row // self.own])

    def _near(self, free: list[int], origin: int, begin: int) -> int:
        """The free row for a request that takes over `begin` tokens of the row `origin`: that row itself, if it is free
        and holds little more. What else it holds may be gone on from later, so else it is the one to be taken first."""
        if origin in free and len(self.past[origin]) - begin < WORTH:
            return origin
        return self._next(free, origin // self.own)

    def _claim(self, free: list[int], row: int, record: Record, sources: dict) -> int:
        """Gives a free row away; what it held can no longer be gone on from, except as decided before."""
        free.remove(row)
        self.past.pop(row, None)
        for rows in sources.values():
            rows.pop(row, None)
        self.live[row] = record
        return row

    def _sources(self, heads: set[bytes]) -> dict[bytes, dict[int, Held]]:
        """Rows that a new request can continue, by their first tokens, which are among `heads`.

        What an unfinished row holds is put together anew here, so it is done only for rows that begin like a waiting
        request.
        """
        found = collections.defaultdict(dict)
        for row, held in self.past.items():
            found[head(held.tokens)][row] = held
        for row, record in self.live.items():
            if record.head in heads and (held := record.held()) is not None:
                found[record.head][row] = held
        return found

    def _best(self, record: Record, sources: dict, parts: set[int]) -> tuple[int, int | None, bool]:
        """The most tokens that can be taken over, the row that has them, in one of the parts where a row is free, and
        whether they are redated; a free row before one under way."""
        best, met = (0, False, None, False), 0
        for row, held in sources.get(record.head, {}).items():
            if row // self.own not in parts:
                continue
            begin = reusable(held, record.prompt_row, self.rules)
            other = redated(held, record.prompt_row, begin)
            best = max(best, (begin, row not in self.live, row, other), key=lambda found: found[:2])
            met = max(met, common(held, record.prompt_row))
        record.reused, record.read_again = best[0], min(met, len(record.prompt)) - best[0]
        return (best[0], *best[2:]) if best[0] else (0, None, False)

    def _soon(self, starts: list[Start], record: Record, part: int) -> int:
        """The most tokens that could be taken over once the prompts of these starts are read, in the same part."""
        mine = [start for start in starts if start.row // self.own == part]
        alike = [start.record for start in mine if start.record.head == record.head]
        stay = [other.prompt_row for other in alike if other.held() is not None]
        return max((reusable(of_prompt(row), record.prompt_row, self.rules) for row in stay), default=0)
