"""Rows over the maximum length: dropped or split, by choice, counted, never cut silently.

The reference cuts every sample at its maximum and so loses answers and EOS. Here "drop" leaves the whole sample out.
"split" cuts between thoughts into parts that each begin with the whole prompt:

    whole:   X | T0 T1 T2 T3 T4 T5 E              (T: a thought with its gists and output token)
    part 0:  X | T0 T1 T2                         trained; no EOS, as the response goes on
    part 1:  X | (T1 T2) T3 T4                    T1 T2 repeated as context, not trained; T3 T4 trained
    part 2:  X | (T3 T4) T5 E

A gist is keys, not text: it cannot be carried into another row without the thought that it was written from. So a later
part repeats the last thoughts before its cut, its gists are written in the row itself, and each trained token sees
the prompt and at least one thought's gists, but not the gists of thoughts further back. Part 0 is exactly what decoding
sees; later parts are an approximation, as any window over a long text is. Every token of the response is trained once.
Vanilla rows, which have no thoughts, may be cut anywhere; Memento rows outside block and summary. The prompts between
the turns of a conversation (`build.build_turns`) are never cut through.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lt_jax.errors import UserError
from lt_jax.layout.row import Role, Row
from lt_jax.lifetimes import NEVER

POLICIES = ("drop", "split")


def fit(row: Row, length: int, policy: str = "drop", context: float = 0.5) -> list[Row]:
    """The row itself if it fits into `length` tokens, else what `policy` makes of it; [] if it is dropped.

    Args:
        policy: "drop" or "split". A row that cannot be split (the prompt, or a thought with the one before it, is too
            long) is dropped.
        context: share of the room after the prompt that a later part may fill with repeated thoughts, at least one.

    Raises:
        UserError: unknown policy, or `context` outside 0..0.9.
    """
    if policy not in POLICIES:
        raise UserError(f"over-length policy {policy!r}: it must be one of {', '.join(POLICIES)}")
    if not 0 <= context <= 0.9:
        raise UserError(f"over-length context is {context}; it must lie between 0 and 0.9")
    if len(row) <= length:
        return [row]
    return _split(row, length, context) if policy == "split" else []


def cuts(row: Row) -> np.ndarray:
    """Indices at which a row may be cut: from the end of the prompt to its own, outside thoughts and later prompts."""
    between = np.ones(len(row) + 1, bool)
    between[1:-1] = (row.thought[1:] != row.thought[:-1]) | (row.thought[1:] < 0)
    asked = (row.role == Role.PROMPT) | ((row.role == Role.GIST) & (row.thought < 0))
    between[1:-1] &= ~(asked[1:] & asked[:-1])
    between[: row.prompt_length] = False
    return np.flatnonzero(between)


def _split(row, length, context):
    prompt = row.prompt_length
    room = length - prompt
    places = cuts(row)
    last = lambda limit: int(places[places <= limit][-1])
    parts, start = [], prompt
    while start < len(row):
        begin = start
        if start > prompt:
            enough = places[places >= start - int(room * context)][0]
            begin = min(int(enough), last(start - 1))
        end = last(max(begin + room, prompt))
        if end <= start:
            return []
        parts.append(_part(row, prompt, begin, start, end))
        start = end
    return parts


def _part(row, prompt, begin, start, end) -> Row:
    """The prompt and tokens begin..end-1, of which those from `start` on are trained."""
    taken = np.r_[0:prompt, begin:end]
    body = np.arange(len(taken)) >= prompt
    shift = prompt - begin
    columns = {field.name: getattr(row, field.name)[taken] for field in dataclasses.fields(Row)}
    death, since, gist = columns["death"], columns["since"], columns["gist"]
    columns["death"] = np.where(body & (death != NEVER), death + shift, death)
    columns["since"] = np.where(body & (since > 0), since + shift, since)
    blocks = gist[body & (gist >= 0)]
    if len(blocks):
        columns["gist"] = np.where(body & (gist >= 0), gist - blocks[0] + gist[:prompt].max(initial=-1) + 1, gist)
    columns["trained"] = columns["trained"] & (taken >= start)
    columns["position"] = np.arange(len(taken), dtype=np.int32)
    return Row(**columns)
