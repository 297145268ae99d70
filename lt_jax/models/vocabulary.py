"""Growing the vocabulary: a row for every new token, and padding so that the table divides over devices.

Tables have `vocab_padded` rows, a multiple of 128; the rows at and above `vocab_size` are padding, are never looked up,
get logit -inf, and are left out of exports. Qwen checkpoints have more rows than their tokenizer has tokens, so that
new tokens often fall on rows that exist and were never trained; those are set as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.errors import UserError
from lt_jax.models.config import DecoderConfig, round_up


def grow(
    params: dict, config: DecoderConfig, new: Sequence[tuple[int, str]], pieces: Sequence[Sequence[int]]
) -> tuple[dict, DecoderConfig]:
    """Gives new tokens their rows in the embedding and, where it is not tied, in the head.

    Args:
        new: (id, description) of every new token; ids may lie below `vocab_size` (the row is replaced) or follow it.
        pieces: for each of them the ids of its description; its row becomes the mean of their rows.

    Raises:
        UserError: a description without tokens or with an id of no row, ids that leave a gap, or LoRA is on already.
    """
    if config.lora:
        raise UserError("the vocabulary must grow before LoRA adapters are added")
    ids = [int(i) for i, _ in new]
    if not ids:
        return params, config
    for (i, text), parts in zip(new, pieces, strict=True):
        bad = [p for p in parts if not 0 <= p < config.vocab_size]
        if bad or not parts:
            what = f"token {bad[0]}, which is not in the vocabulary of {config.vocab_size:,}" if bad else "no tokens"
            raise UserError(f"new token {i}: its description {text!r} has {what}")
    size = max(config.vocab_size, max(ids) + 1)
    if gap := sorted(set(range(config.vocab_size, size)) - set(ids)):
        raise UserError(
            f"the new tokens have the ids {min(ids):,} to {size - 1:,}, but the model has rows for "
            f"{config.vocab_size:,} tokens: the tokenizer already had {min(ids) - config.vocab_size:,} more than the "
            f"model, and nothing says what id {gap[0]:,} stands for; give the tokenizer that the model came with"
        )
    # One [n, V] averaging matrix would be the size of the table; gathering row by row is not.
    mean = lambda table: jnp.stack([table[np.array(parts)].astype(jnp.float32).mean(0) for parts in pieces])
    table = max(config.vocab_padded, round_up(size))
    config = config.replace(vocab_size=size, vocab_rows=None if table == round_up(size) else table)
    at = np.array(ids)
    out = dict(params)
    rows = mean(params["embed"]).astype(params["embed"].dtype)
    out["embed"] = pad(params["embed"], config.vocab_padded, 0).at[at].set(rows)
    if "head" in params:
        columns = mean(params["head"].T).T.astype(params["head"].dtype)
        out["head"] = pad(params["head"], config.vocab_padded, 1).at[:, at].set(columns)
    return out, config


def pad(table: jax.Array, size: int, axis: int) -> jax.Array:
    """The table with zero rows (or columns) up to `size` along `axis`."""
    widths = [(0, 0)] * table.ndim
    widths[axis] = (0, size - table.shape[axis])
    return jnp.pad(table, widths) if widths[axis][1] else table
