"""A checkpoint folder of a random two-layer model with the shipped tokenizer, as training would export it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

import lt_jax
from lt_jax.layout import card
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import default_table
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.models import huggingface
from lt_jax.models import params as parameters
from lt_jax.models.presets import TINY

TOKENIZER = Path(lt_jax.__file__).parent / "assets" / "base"


def make(folder: Path, scheme: Scheme | None = None, seed: int = 0) -> Path:
    """Writes the folder; None is a model that was never trained for a method."""
    tokenizer = load_tokenizer(TOKENIZER)
    files = {}
    if scheme is not None:
        special = default_table(tokenizer, scheme, eos="<|end|>", pad="<|pad|>").special
        files[card.NAME] = card.Card(scheme, special).to_json(tokenizer)
    config = dataclasses.replace(TINY, vocab_size=len(tokenizer))
    params = parameters.init(jax.random.key(seed), config)
    huggingface.save(folder, params, config, tokenizer, files=files)
    return folder
