"""Which tokens of a vocabulary are separators (SepLLM, Chen et al. 2024, section 3)."""

from __future__ import annotations

from typing import Any

SEPARATORS = (".", ",", "?", "!", ";", ":", " ", "\t", "\n")


def separators(tokenizer: Any) -> tuple[int, ...]:
    """Ids of the tokens that are one of `SEPARATORS`, possibly repeated or mixed with spaces (".\n", "\n\n").

    Args:
        tokenizer: of `transformers`. Empty if it has none, as one of digits alone.
    """
    special = set(tokenizer.all_special_ids)
    marks = set(SEPARATORS)
    text = lambda i: tokenizer.decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return tuple(i for i in sorted(tokenizer.get_vocab().values()) if i not in special and _separates(text(i), marks))


def _separates(text: str, marks: set[str]) -> bool:
    """Whether a token's text is nothing but separators: one mark and white space, or white space alone."""
    return bool(text) and set(text) <= marks and len(text.strip()) <= 1
