"""Tokens to text as they come, gists marked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lt_jax.decode.record import Record


class TextStreamer:
    """Prints rows while they are decoded; hand it to `Engine.run(stream=...)`.

    The tokens that are `Completion.written` become text; what must follow the end of a thought is not printed, but a
    run of gists is shown as one mark. Text is held back until its bytes are whole characters. With several rows, each
    line begins with the row's id.

        Okay, 2 + 3 = 5.
        [9 gists for 41 keys]
        Then 5 * 4 = 20.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        write: Callable[[str], None],
        *,
        prefix: bool = False,
        mark: Callable[[int, int], str] | None = None,
    ):
        """Args:
        decode: ids -> text.
        write: takes the pieces of text.
        prefix: begin lines with the row's id.
        mark: (gists, keys they replace) -> text shown in their place; None is the one above.
        """
        self.decode, self.write, self.prefix = decode, write, prefix
        self.mark = mark or (lambda gists, keys: f"\n[{gists} gist{'s' * (gists != 1)} for {keys} keys]\n")
        self.held: dict[object, list[int]] = {}

    def __call__(self, record: Record, start: int) -> None:
        """Prints what is new in `record` from token `start` on."""
        waiting = self.held.setdefault(record.id, [])
        text, tokens = "", record.column("token", start)
        place, written = record.column("place", start), record.written(start)
        dead = record.column("end", start) - record.column("first", start)
        gists = 0 if record.rules.close is None else int(np.sum(record.rules.close.is_gist))
        for i, token in enumerate(tokens):
            if written[i]:
                waiting.append(int(token))
            if place[i] == 1:
                text += self._flush(waiting) + self.mark(gists, int(dead[i]))
        whole = self.decode(waiting)
        if waiting and not whole.endswith("\ufffd"):
            text += self._flush(waiting)
        if text:
            name = f"[{record.id}] "
            self.write(name + text.replace("\n", "\n" + name) + "\n" if self.prefix else text)

    def _flush(self, waiting: list[int]) -> str:
        text = self.decode(waiting)
        waiting.clear()
        return text

    def close(self, record_id: object) -> None:
        """Prints what is still held back of a row that is finished, and forgets it."""
        rest = self.held.pop(record_id, [])
        if rest:
            self.write(self.decode(rest))
