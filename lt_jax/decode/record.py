"""What the host knows of a row under way: its log so far, and the lifetimes that follow from it."""

from __future__ import annotations

import jax
import numpy as np

from lt_jax.decode.block import COLUMNS
from lt_jax.decode.config import Completion, Request
from lt_jax.decode.control import Rules
from lt_jax.layout.row import Role, Row
from lt_jax.lifetimes import NEVER


class Record:
    """One row. `column(name)` reads the log by the names of `block.COLUMNS`."""

    def __init__(self, request: Request, id: object, rules: Rules, started: float):
        self.request, self.id, self.rules, self.started = request, id, rules, started
        self.prompt_row = request.prompt if isinstance(request.prompt, Row) else _plain(request.prompt)
        self.prompt = self.prompt_row.tokens
        self.lines = np.zeros((0, len(COLUMNS)), np.int32)
        self.prompt_held: float = len(self.prompt)

    def __len__(self) -> int:
        return len(self.lines)

    def extend(self, lines: np.ndarray) -> None:
        """Takes in what a block logged."""
        self.lines = np.concatenate([self.lines, lines])

    def column(self, name: str, start: int = 0) -> np.ndarray:
        """[N - start] of the tokens from `start` on; keys are means over the layers and heads that count their own."""
        values = self.lines[start:, COLUMNS.index(name)]
        if name in ("visible", "held") and self.rules.books > 1:
            return values / self.rules.books
        return values.copy().view(np.float32) if name == "logp" else values

    def gist(self, start: int = 0) -> np.ndarray:
        """[N - start] bool: gist tokens and anchors."""
        place = self.column("place", start)
        if self.rules.close is None:
            return np.full(len(place), False)
        return np.where(place > 0, self.rules.close.gist[place - 1], False)

    def written(self, start: int = 0) -> np.ndarray:
        """[N - start] bool, see `Completion.written`."""
        return self.column("place", start) <= 1

    def completion(self, finish: str, now: float, evicted: jax.Array | None = None) -> Completion:
        """The row as it ended; `evicted` [Lr, Kr, horizon] are the recorded deaths, on the device."""
        n, how = len(self.prompt), self.rules.eviction
        at = np.flatnonzero(self.column("place") == 1)
        death = np.concatenate([self.prompt_row.death, np.full(len(self), NEVER, np.int32)])
        since = np.concatenate([self.prompt_row.since, self.column("since")])
        block = np.concatenate([self.prompt_row.gist, np.full(len(self), -1, np.int32)])
        gist, number = self.gist(), int(self.prompt_row.gist.max(initial=-1)) + 1
        for i, (first, end) in enumerate(self.lines[at][:, [COLUMNS.index("first"), COLUMNS.index("end")]]):
            death[first:end] = n + at[i] + self.rules.close.thought_dies
            own = slice(at[i], at[i] + len(self.rules.close))
            block[n:][own] = np.where(gist[own], number + i, -1)
        return Completion(
            id=self.id,
            prompt=self.prompt,
            tokens=self.column("token"),
            forced=self.column("forced") != 0,
            written=self.written(),
            logp=self.column("logp"),
            visible=self.column("visible"),
            held=self.column("held"),
            gist=gist,
            closings=at,
            death=death,
            since=since,
            block=block,
            finish=finish,
            seconds=now - self.started,
            gist_rule=self.rules.gist_rule,
            prompt_held=self.prompt_held,
            record=evicted,
            unrecorded=how is not None and evicted is None and n + len(self) > how.least,
        )


def _plain(prompt) -> Row:
    tokens = np.asarray(prompt, np.int32).reshape(-1)
    n = len(tokens)
    fill = lambda value, kind=np.int32: np.full(n, value, kind)
    return Row(
        tokens,
        fill(Role.PROMPT, np.int8),
        fill(False, bool),
        np.arange(n, dtype=np.int32),
        fill(NEVER),
        fill(0),
        fill(-1),
        fill(-1),
    )
