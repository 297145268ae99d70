"""How prompts are fed: cut into pieces of few lengths, and rows whose pieces are alike together."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np

from lt_jax.decode import control
from lt_jax.decode.config import DecodeConfig
from lt_jax.decode.control import Rules
from lt_jax.decode.passes import Feed
from lt_jax.errors import UserError
from lt_jax.layout.row import Row
from lt_jax.lifetimes import NEVER

PIECES = (16, 32, 64, 128, 256, 512)  # lengths a piece of prompt is padded to
CRUMBS = (1, 4)  # and what is left of one where the slots end before it does
TOGETHER = 512  # most tokens of prompt fed in one pass


@dataclasses.dataclass(frozen=True)
class Piece:
    """`take` tokens of a prompt, fed in a pass of `padded` tokens; `evict`: then the row is cut down to its budget."""

    take: int
    padded: int
    evict: bool = False


def pieces(prompt: Row, room: int, config: DecodeConfig, begin: int = 0) -> list[Piece]:
    """Cuts a prompt into pieces that are padded to `PIECES`, never through a gist block.

    Under an eviction the row is cut down whenever it is full, and at the end if it is over its budget. Without one,
    what has died is freed after every piece.

    Args:
        room: slots of a row.
        begin: tokens at the start that the row has already; nothing has been evicted of them.
    """
    how = config.evicts
    kept = keys_kept(prompt) if how is None else np.arange(len(prompt) + 1)
    out, start, held, top = [], begin, begin, int(kept[begin])  # held by the layer of the least budget; at most by any
    while start < len(prompt):
        rest = len(prompt) - start
        take = rest if how is None else min(rest, how.least + how.buffer - held)
        fitting = [n for n in PIECES if n >= take and top + n <= room]
        padded = fitting[0] if fitting else max(n for n in (*CRUMBS, *PIECES) if n <= take and top + n <= room)
        take = min(take, padded)
        while take and start + take < len(prompt) and _inside(prompt, start + take):
            take -= 1
        if take:
            start, held, top = start + take, held + take, int(kept[start + take]) if how is None else top + take
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


def keys_kept(prompt: Row) -> np.ndarray:
    """[N + 1] int: keys that are left when the first n tokens have been fed and what has died by then is freed."""
    dead = np.bincount(np.minimum(prompt.death, len(prompt) + 1), minlength=len(prompt) + 2)[: len(prompt) + 1]
    return np.arange(len(prompt) + 1) - np.cumsum(dead)


def most_held(cut: list[Piece], prompt: Row, budgets: tuple[int, ...]) -> float:
    """Most keys held while a whole prompt is read in these pieces: the mean over the layers, whose `budgets` these are,
    if there are any."""
    kept, at = keys_kept(prompt), 0
    held, most = np.zeros(max(len(budgets), 1)), 0.0
    for piece in cut:
        held = held + piece.take if budgets else np.asarray([kept[at] + piece.take])
        at += piece.take
        most = max(most, float(held.mean()))
        if piece.evict:
            held = np.minimum(held, budgets)
    return most


def group_size(cut: list[Piece]) -> int:
    """Most rows whose prompts are fed together in these pieces: a power of two, no pass beyond `TOGETHER` tokens."""
    size = max(1, TOGETHER // max(piece.padded for piece in cut))
    return 1 << (size.bit_length() - 1)


def _inside(prompt: Row, index: int) -> bool:
    """Whether a cut before `index` goes through a gist block."""
    return prompt.gist[index] >= 0 and prompt.gist[index] == prompt.gist[index - 1]


def alike(cuts: list[list[Piece]], kinds: list, parts: list[int]) -> list[list[int]]:
    """Places of the cuts of one kind that can be fed together, in groups of 1, 2, 4 ..., so that few shapes are
    compiled. They may take different numbers of tokens in a piece. `parts` of the rows are as in `powers`."""
    by_shape = collections.defaultdict(list)
    for place, (cut, kind) in enumerate(zip(cuts, kinds, strict=True)):
        by_shape[kind, *((piece.padded, piece.evict) for piece in cut)].append(place)
    size = lambda places: group_size(cuts[places[0]])
    return [group for places in by_shape.values() for group in powers(places, size(places), parts.__getitem__)]


def powers(items: list, most: int, part: Callable = lambda item: 0) -> Iterator[list]:
    """Cuts a list into runs of 1, 2, 4 ... items of each part, `most` at most. A part has so many in a run, or none:
    all devices of a mesh run one program, in which those of another part have nothing to do."""
    own = collections.defaultdict(list)
    for item in items:
        own[part(item)].append(item)
    while longest := max(map(len, own.values()), default=0):
        size = min(1 << (longest.bit_length() - 1), most)
        run = [place for place in sorted(own) if len(own[place]) >= size]
        yield [item for place in run for item in own[place][:size]]
        own.update({place: own[place][size:] for place in run})


def living(prompt: Row) -> bool:
    """Whether the tokens of a prompt have lifetimes of their own, beyond plain causal attention."""
    return bool((prompt.death < NEVER).any() or prompt.since.any() or (prompt.gist >= 0).any())


def feed_of(prompts, rows, starts, stops, padded: int, rules: Rules) -> Feed:
    """The tokens starts..stops-1 of prompts that are all `living`, or none of them, as one pass."""

    def column(name, blank):
        out = np.full((len(prompts), padded), blank, np.int32)
        for r, (prompt, start, stop) in enumerate(zip(prompts, starts, stops, strict=True)):
            out[r, : stop - start] = getattr(prompt, name)[start:stop]
        return jnp.asarray(out)

    first = jnp.asarray(starts, jnp.int32)
    count = jnp.asarray(np.subtract(stops, starts), jnp.int32)
    tokens = column("tokens", 0)
    if not living(prompts[0]):
        return Feed(tokens, first, count, rows, mark=control.marks(rules, tokens))
    gist = column("gist", -1)
    mark = control.marks(rules, tokens, gist >= 0)
    gist = gist if rules.gist_rule != "causal" else None
    return Feed(tokens, first, count, rows, column("death", 0), column("since", 0), gist, mark)
