"""Text to ids without anything added: the only way the layout tokenises."""

from __future__ import annotations

from collections.abc import Callable

from lt_jax.errors import UserError


def encoder(tokenizer) -> Callable[[str], list[int]]:
    """`text -> ids` of a `tokenizers.Tokenizer` or a `transformers` tokenizer, without special tokens added.

    Some post-processors (Llama's) put a BOS before every text that is tokenised on its own; this leaves them out. What
    the text itself spells, such as a chat template's BOS, becomes its id.
    """
    if not callable(getattr(tokenizer, "encode", None)):
        raise UserError(f"{type(tokenizer).__name__} has no encode(); a tokenizers or transformers tokenizer is needed")

    def encode(text: str) -> list[int]:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        return list(getattr(encoded, "ids", encoded))

    return encode
