"""Rows side by side in one row of fixed length. A document's keys die at its end; nothing else keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lt_jax.errors import UserError
from lt_jax.layout.row import Row

FEATURES = ("tokens", "trained", "position", "death", "since", "gist")


def features(row: Row) -> dict[str, np.ndarray]:
    """The arrays of a row that packing needs, int32 [N]: what goes into a packer such as Grain's."""
    return {name: np.asarray(getattr(row, name), np.int32) for name in FEATURES}


def pack_rows(rows: Sequence[Row], length: int, pad: int) -> dict[str, np.ndarray]:
    """Lays `rows` one after the other into one training row of `length`, the rest padding. A single row is padded.

    Documents `a a` and `b b b` in a row of 6 (no thoughts):

        a a b b b -
        1 . . . . .
        1 1 . . . .
        . . 1 . . .
        . . 1 1 . .
        . . 1 1 1 .
        . . . . . 1

    Returns:
        Arrays [length]: tokens, targets, positions, death, since, gist int32; weights float32, 1 where the target is
        trained. Positions restart in every document; padding sees only itself.

    Raises:
        UserError: the rows do not fit.
    """
    total = sum(len(row) for row in rows)
    if total > length:
        raise UserError(f"rows of {total} tokens in all do not fit into {length}; raise the length or see layout.limit")
    joined = {name: np.zeros(length, np.int32) for name in FEATURES}
    segment = np.zeros(length, np.int32)
    start = 0
    for number, row in enumerate(rows):
        for name, values in features(row).items():
            joined[name][start : start + len(row)] = values
        segment[start : start + len(row)] = number + 1
        start += len(row)
    return finish(joined, segment, pad)


def finish(joined: dict[str, np.ndarray], segment: np.ndarray, pad: int) -> dict[str, np.ndarray]:
    """Makes a training row of documents that lie side by side with their own counts, as Grain's packers leave them.

    Args:
        joined: `features` of the documents, concatenated and filled up: int [..., S].
        segment: int [..., S], a number per document, 1 or more, neighbours different; 0 is padding.
        pad: id of the padding.

    Returns:
        See `pack_rows`; arrays [..., S].
    """
    length = segment.shape[-1]
    index = np.broadcast_to(np.arange(length, dtype=np.int32), segment.shape)
    real = segment > 0
    changes = np.ones(segment.shape, bool)
    changes[..., 1:] = segment[..., 1:] != segment[..., :-1]
    start = np.maximum.accumulate(np.where(changes, index, 0), axis=-1)
    last = np.ones(segment.shape, bool)
    last[..., :-1] = changes[..., 1:]
    end = np.flip(np.minimum.accumulate(np.flip(np.where(last, index + 1, length), -1), axis=-1), -1)
    follows = ~last & real
    tokens = np.where(real, joined["tokens"], pad)
    following = np.full(segment.shape, pad, np.int32)
    following[..., :-1] = tokens[..., 1:]
    trained = np.zeros(segment.shape, bool)
    trained[..., :-1] = joined["trained"][..., 1:] > 0
    out = {
        "tokens": tokens,
        "targets": np.where(follows, following, pad),
        "positions": np.where(real, joined["position"], 0),
        "death": np.where(real, np.minimum(joined["death"] + start, end), index + 1),
        "since": np.where(real, joined["since"] + start, index),
        "gist": np.where(real & (joined["gist"] >= 0), joined["gist"] + start, -1),
    }
    out = {name: values.astype(np.int32) for name, values in out.items()}
    out["weights"] = (follows & trained).astype(np.float32)
    return out


def stack(packed: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Training rows [S] to a batch [B, S]."""
    return {name: np.stack([row[name] for row in packed]) for name in packed[0]}
