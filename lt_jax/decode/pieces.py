"""How prompts are fed: cut into pieces of few lengths, and rows whose pieces are alike together."""

from __future__ import annotations

import collections
import dataclasses

import jax.numpy as jnp
import numpy as np

from lt_jax.decode import control
from lt_jax.decode.config import DecodeConfig
from lt_jax.decode.control import Rules
from lt_jax.decode.passes import Feed
from lt_jax.errors import UserError
from lt_jax.layout.row import Row
from lt_jax.layout.scheme import Scheme

PIECES = (16, 32, 64, 128, 256, 512)  # lengths a piece of prompt is padded to
CRUMBS = (1, 4)  # and what is left of one where the slots end before it does
TOGETHER = 512  # tokens of prompt fed in one pass


@dataclasses.dataclass(frozen=True)
class Piece:
    """`take` tokens of a prompt, fed in a pass of `padded` tokens; `evict`: then the row is cut down to its budget."""

    take: int
    padded: int
    evict: bool = False


def pieces(prompt: Row, room: int, config: DecodeConfig, begin: int = 0) -> list[Piece]:
    """Cuts a prompt into pieces that are padded to `PIECES`, never through a gist block.

    Under an eviction the row is cut down whenever it is full, and at the end if it is over its budget.

    Args:
        room: slots of a row.
        begin: tokens at the start that the row has already; nothing has been evicted of them.
    """
    how = config.eviction
    out, start, held, top = [], begin, begin, begin  # held by the layer of the smallest budget, and at most by any
    while start < len(prompt):
        rest = len(prompt) - start
        take = rest if how is None else min(rest, how.least + how.buffer - held)
        fitting = [n for n in PIECES if n >= take and top + n <= room]
        padded = fitting[0] if fitting else max(n for n in (*CRUMBS, *PIECES) if n <= take and top + n <= room)
        take = min(take, padded)
        while take and start + take < len(prompt) and _inside(prompt, start + take):
            take -= 1
        if take:
            start, held, top = start + take, held + take, top + take
            full = how is not None and held >= (how.least + how.buffer if start < len(prompt) else how.least + 1)
            out.append(Piece(take, padded, full))
        elif out and not out[-1].evict and how is not None and held > how.least:
            out[-1], full = dataclasses.replace(out[-1], evict=True), True  # no room behind them for the gist block
        else:
            raise UserError(f"a gist block of the prompt is longer than {padded} tokens")
        if full:
            held, top = min(held, how.least), min(top, how.most)
    return out


def partable(prompt: Row) -> bool:
    """Whether the last token can be fed apart from those before it: it is not in one gist block with them."""
    return len(prompt) > 1 and not _inside(prompt, len(prompt) - 1)


def last_apart(cut: list[Piece]) -> list[Piece]:
    """The same pieces, but the last token is one of its own: what samples of a prompt do not share begins with it."""
    *before, last = cut
    if last.take == 1:
        return [*before, dataclasses.replace(last, padded=1)]
    return [*before, Piece(last.take - 1, last.padded), Piece(1, 1, last.evict)]


def _inside(prompt: Row, index: int) -> bool:
    """Whether a cut before `index` goes through a gist block."""
    return prompt.gist[index] >= 0 and prompt.gist[index] == prompt.gist[index - 1]


def alike(cuts: dict[int, list[Piece]]) -> list[list[int]]:
    """Rows whose prompts can be fed together, in groups of 1, 2, 4 ... rows, so that few shapes are compiled."""
    by_shape = collections.defaultdict(list)
    for row, cut in cuts.items():
        by_shape[(*cut[:-1], cut[-1].evict, cut[-1].padded)].append(row)
    groups = []
    for shape, rows in by_shape.items():
        while rows:
            size = min(len(rows), max(1, TOGETHER // shape[-1]))
            size = 1 << (size.bit_length() - 1)
            groups.append(rows[:size])
            rows = rows[size:]
    return groups


def feed_of(prompts, rows, starts, stops, padded: int, scheme: Scheme, rules: Rules) -> Feed:
    def column(name, blank):
        out = np.full((len(prompts), padded), blank, np.int32)
        for r, (prompt, start, stop) in enumerate(zip(prompts, starts, stops, strict=True)):
            out[r, : stop - start] = getattr(prompt, name)[start:stop]
        return jnp.asarray(out)

    first = jnp.asarray(starts, jnp.int32)
    count = jnp.asarray(np.subtract(stops, starts), jnp.int32)
    tokens = column("tokens", 0)
    if scheme.prompt is None:
        return Feed(tokens, first, count, rows, mark=control.marks(rules, tokens))
    gist = column("gist", -1)
    mark = control.marks(rules, tokens, gist >= 0)
    gist = gist if scheme.gist_rule != "causal" else None
    return Feed(tokens, first, count, rows, column("death", 0), column("since", 0), gist, mark)
