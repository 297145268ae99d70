"""What the host knows of one sample of a request: what was asked, its log so far, and the lifetimes that follow."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.decode.block import COLUMNS
from lt_jax.decode.completion import Completion
from lt_jax.decode.control import Rules
from lt_jax.decode.prefix import Held, head
from lt_jax.decode.request import Request
from lt_jax.layout.row import Role, Row
from lt_jax.lifetimes import NEVER


class Record:
    """One row. `column(name)` reads the log by the names of `block.COLUMNS`.

    Attributes:
        request, id, handle, sample, seed: what was asked; `id` is the request's own, or its number.
        prompt_row, prompt: the prompt and its tokens.
        lines: [N, columns] int32, the log.
        prompt_held: see `Completion`.
        reused, read_again: tokens of the prompt, see `event.Usage`.
        stale: the weights have changed since its prompt was read.
        stop_text: the text that ended it.
    """

    def __init__(self, request: Request, id: object, handle: int, sample: int, seed: int, rules: Rules):
        self.request, self.id, self.handle, self.sample, self.seed = request, id, handle, sample, seed
        self.rules, self.started = rules, time.perf_counter()
        self.prompt_row = as_row(request.prompt)
        self.prompt = self.prompt_row.tokens
        self.head = head(self.prompt)
        self.lines = np.zeros((0, len(COLUMNS)), np.int32)
        self.tops: list[tuple[np.ndarray, np.ndarray]] = []
        self.prompt_held: float = len(self.prompt)
        self.reused = self.read_again = 0
        self.stale, self.stop_text = False, ""

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def key(self) -> bytes:
        """The same for the same prompts."""
        row = self.prompt_row
        return b"".join(x.tobytes() for x in (row.tokens, row.death, row.since, row.gist))

    @property
    def read(self) -> int:
        """Tokens of the prompt that were fed."""
        return len(self.prompt) - self.reused

    def extend(self, lines: np.ndarray, tops: tuple[np.ndarray, np.ndarray]) -> None:
        """Takes in what a block logged: lines [n, columns], and the most probable tokens [n, K] with log-probs."""
        self.lines = np.concatenate([self.lines, lines])
        self.tops.append(tops)

    def cut_at_stop_text(self, start: int, detokenize) -> bool:
        """Whether one of the request's texts is complete since token `start`; what comes after it is then forgotten.

        The text of a response is what is `written` of it. A text that ends inside of a token ends the row after it.
        """
        texts = self.request.stop_text
        if not texts or len(self) == start:
            return False
        places = np.flatnonzero(self.written())
        fresh = int(np.searchsorted(places, start))
        # A text may have begun before the news: as many tokens back as it has bytes.
        first = max(0, fresh - max(len(text.encode()) for text in texts))
        read = lambda stop: detokenize(self.column("token")[places[first:stop]].tolist())
        if not any(text in read(len(places)) for text in texts):
            return False
        for stop in range(fresh + 1, len(places) + 1):
            said = read(stop)
            if found := [text for text in texts if text in said]:
                self.lines, self.stop_text = self.lines[: places[stop - 1] + 1], found[0]
                return True
        return False

    def column(self, name: str, start: int = 0) -> np.ndarray:
        """[N - start] of the tokens from `start` on; keys are means over the layers and heads that count their own."""
        values = self.lines[start:, COLUMNS.index(name)]
        if name in ("visible", "held") and self.rules.books > 1:
            return values / self.rules.books
        return values.copy().view(np.float32) if name == "logp" else values

    def is_gist(self, start: int = 0) -> np.ndarray:
        """[N - start] bool: gist tokens and anchors."""
        place = self.column("place", start)
        if self.rules.close is None:
            return np.full(len(place), False)
        return np.where(place > 0, self.rules.close.is_gist[place - 1], False)

    def written(self, start: int = 0) -> np.ndarray:
        """[N - start] bool, see `Completion.written`."""
        return self.column("place", start) <= 1

    def lived(self) -> Row:
        """Prompt and response so far, with the lifetimes they had. Roles and thoughts of the response are left open."""
        prompt, n, new = self.prompt_row, len(self.prompt), len(self)
        death = np.concatenate([prompt.death, np.full(new, NEVER, np.int32)])
        block = np.concatenate([prompt.gist, np.full(new, -1, np.int32)])
        gist, number = self.is_gist(), int(prompt.gist.max(initial=-1)) + 1
        at = np.flatnonzero(self.column("place") == 1)
        for i, (first, end) in enumerate(self.lines[at][:, [COLUMNS.index("first"), COLUMNS.index("end")]]):
            death[first:end] = n + at[i] + self.rules.close.thought_dies
            own = slice(at[i], at[i] + len(self.rules.close))
            block[n:][own] = np.where(gist[own], number + i, -1)
        fill = lambda old, value: np.concatenate([old, np.full(new, value, old.dtype)])
        return Row(
            tokens=np.concatenate([prompt.tokens, self.column("token")]),
            role=fill(prompt.role, Role.TEXT), trained=fill(prompt.trained, False),
            position=np.arange(n + new, dtype=np.int32), death=death,
            since=np.concatenate([prompt.since, self.column("since")]), gist=block, thought=fill(prompt.thought, -1),
        )  # fmt: skip

    def held(self) -> Held | None:
        """What its row holds; None where keys were evicted, or come from other weights."""
        how = self.rules.eviction
        if self.stale or (how is not None and not self._within(how.least, how.buffer)):
            return None
        row = self.lived()
        return Held(row.tokens, row.death, row.since, row.gist, len(row))

    def _within(self, budget: int, buffer: int) -> bool:
        """Whether nothing can have been evicted: a prompt over the budget is cut down at its end, a row when full."""
        return len(self.prompt) <= budget and len(self.prompt) + len(self) + self.rules.longest < budget + buffer

    def completion(self, finish: str, now: float, evicted: jax.Array | None = None) -> Completion:
        """The row as it ended; `evicted` [Lr, Kr, horizon] are the recorded deaths, on the device."""
        row, how = self.lived(), self.rules.eviction
        if evicted is not None and (self.stop_text or finish == "cancelled"):  # it was fed more than is handed out
            evicted = jnp.where(jnp.arange(evicted.shape[-1]) < len(row), evicted, NEVER)
        tops = map(np.concatenate, zip(*self.tops, strict=True)) if self.tops else (None, None)
        ids, logps = (None if top is None or not top.shape[1] else top[: len(row) - len(self.prompt)] for top in tops)
        return Completion(
            id=self.id,
            prompt=self.prompt,
            tokens=self.column("token"),
            forced=self.column("forced") != 0,
            written=self.written(),
            logp=self.column("logp"),
            visible=self.column("visible"),
            held=self.column("held"),
            is_gist=self.is_gist(),
            closings=np.flatnonzero(self.column("place") == 1),
            death=row.death,
            since=row.since,
            block=row.gist,
            finish=finish,
            seconds=now - self.started,
            gist_rule=self.rules.gist_rule,
            prompt_held=self.prompt_held,
            record=evicted,
            unrecorded=how is not None and evicted is None and len(row) > how.least,
            sample=self.sample,
            seed=self.seed,
            read=self.read,
            reused=self.reused,
            read_again=self.read_again,
            stop_text=self.stop_text,
            top_ids=ids,
            top_logps=logps,
        )


def as_row(prompt) -> Row:
    """A prompt as a row: ids live for ever, and see all that is before them.

    Raises:
        TypeError, ValueError, OverflowError: it is neither a `Row` nor whole numbers.
    """
    if isinstance(prompt, Row):
        return prompt
    given = np.asarray(prompt).reshape(-1)
    if given.size and given.dtype.kind not in "iu":
        raise TypeError(f"a prompt is a list of token ids, not of {given.dtype}")
    n = len(given)
    fill = lambda value, kind=np.int32: np.full(n, value, kind)
    outside = (given < -(2**31)) | (given >= 2**31)
    return Row(
        np.where(outside, -1, given).astype(np.int32),
        fill(Role.PROMPT, np.int8),
        fill(False, bool),
        np.arange(n, dtype=np.int32),
        fill(NEVER),
        fill(0),
        fill(-1),
        fill(-1),
    )
