"""Text to ids without anything added: the only way the layout tokenises."""

from __future__ import annotations

import re
from collections.abc import Callable

from tokenizers import Tokenizer

from lt_jax.errors import UserError

SURROGATE = re.compile("[\ud800-\udfff]")  # half a pair: no character, in no encoding; whole pairs are one in Python


def encoder(tokenizer) -> Callable[[str], list[int]]:
    """`text -> ids` of a `tokenizers.Tokenizer` or a `transformers` tokenizer, without special tokens added.

    Some post-processors (Llama's) put a BOS before every text that is tokenised on its own; this leaves them out. What
    the text itself spells, such as a chat template's BOS, becomes its id. Padding and truncation that were saved with
    the tokenizer are turned off, see `core`. A text with half a
    surrogate pair, which is no character (a command line that is not UTF-8 gives such), is a UserError.
    """
    if not callable(getattr(tokenizer, "encode", None)):
        raise UserError(f"{type(tokenizer).__name__} has no encode(); a tokenizers or transformers tokenizer is needed")
    if isinstance(tokenizer, Tokenizer) or isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        core(tokenizer)

    def encode(text: str) -> list[int]:
        if lone := SURROGATE.search(text):
            raise UserError(f"the text {text[:60]!a} has {lone.group()!a}, which is no character")
        encoded = tokenizer.encode(text, add_special_tokens=False)
        return list(getattr(encoded, "ids", encoded))

    return encode


def core(tokenizer) -> Tokenizer:
    """The `tokenizers.Tokenizer` inside, with padding and truncation turned off for good.

    A tokenizer.json may have been saved with either, if it was last used for batches. A text would then be filled up or
    cut to a fixed number of tokens.
    """
    found = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(found, Tokenizer):
        raise UserError(f"{type(tokenizer).__name__} is no fast tokenizer; one with a tokenizer.json is needed")
    if found.padding is not None:
        found.no_padding()
    if found.truncation is not None:
        found.no_truncation()
    return found
