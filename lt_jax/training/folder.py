"""A trained model as a Hugging Face folder, with what it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lt_jax.layout.card import NAME, Card
from lt_jax.models import huggingface
from lt_jax.models.config import DecoderConfig


def save_trained(folder: str | Path, params: dict, config: DecoderConfig, tokenizer: Any, card: Card | None, *,
                 source: str | Path | None = None, dtype: str | None = None,
                 overwrite: bool = False) -> Path:  # fmt: skip
    """Writes a folder that `transformers`, generate and evaluate load; whole, or not at all.

    Args:
        tokenizer: a `transformers` tokenizer that has the card's tokens.
        card: how the model writes; None for one that was not trained here, which stays as `source` has it.
        source: folder the model came from.
        dtype, overwrite: see `huggingface.save`.

    Raises:
        UserError: as `huggingface.save`.
    """
    how: dict = {"source": source, "dtype": dtype, "overwrite": overwrite}
    if card is not None:
        how |= {"files": {NAME: card.to_json(tokenizer)}, "eos": card.special.eos, "pad": tokenizer.pad_token_id}
    return huggingface.save(folder, params, config, tokenizer, **how)
