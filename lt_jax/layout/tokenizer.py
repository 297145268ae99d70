"""Opening the tokenizer of a checkpoint folder, which splits text exactly as its tokenizer.json says."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from pathlib import Path

from lt_jax.errors import UserError
from lt_jax.layout.encode import core


def load_tokenizer(folder: str | Path):
    """The `transformers` tokenizer of a folder.

    Not by `AutoTokenizer`: for model types such as qwen2 it takes the family's own class whatever the folder says, and
    with it another way of splitting text than a distilled or newly trained model's tokenizer.json has.

    Raises:
        UserError: the folder has no tokenizer.json, or a broken one.
    """
    with _no_advice_on_torch():
        from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: no tokenizer.json; a checkpoint folder needs its tokenizer")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # any file of the tokenizer may be broken in any way
        raise UserError(f"{folder}: the tokenizer cannot be read: {' '.join(str(error).split())[:200]}") from None
    core(tokenizer)
    return tokenizer


@contextlib.contextmanager
def _no_advice_on_torch():
    """`transformers` warns, when it is first imported, that there is no PyTorch. Nothing here needs it."""
    other = lambda record: not record.getMessage().startswith("PyTorch was not found")
    logger = logging.getLogger("transformers")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def rows_needed(tokenizer) -> int:
    """Rows that a model's table must have for every id of a `transformers` tokenizer, added tokens included."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_hash(folder: str | Path) -> str:
    """The SHA-256 of a folder's tokenizer.json."""
    return hashlib.sha256((Path(folder) / "tokenizer.json").read_bytes()).hexdigest()
