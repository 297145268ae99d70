"""Cutting a text into thoughts: paragraphs (LightThinker's own), sentences, or chunks of tokens.

Every segmenter is lossless: its pieces joined are the text. (The reference splits at "\\n\\n" and forgets the newlines;
here a piece keeps them at its end, and `build_row` puts `SpecialTokens.ending` in their place.) No piece is white space
only, unless the whole text is or a piece had to be cut inside a run of white space to keep to the maximum.

A line ends with "\\n", "\\r\\n", "\\r", or one of Unicode's own line ends (U+0085, U+2028, U+2029). A line of white
space is an empty line, and U+2029 ends a paragraph by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lt_jax.errors import UserError

_BREAKS = "\n\r\x85\u2028\u2029"
_BREAK = rf"(?>\r\n|[{_BREAKS}])"  # atomic: "\r\n" is never taken for two
_MORE = rf"(?:[^\S{_BREAKS}]*{_BREAK})"  # white space and the end of its line
_PARAGRAPH = re.compile(rf"(?:{_BREAK}{_MORE}|\u2029){_MORE}*")
_SENTENCE = re.compile(rf"(?:(?<![.!?])[.!?]++[\"'”’)\]]*+(?=\s)|[。！？]+[”’」』]*){_MORE}*|{_BREAK}{_MORE}*")
_WORD = re.compile(r"\S+")  # with the white space before it, as `_cut` does
_SHORT_FORM = re.compile(r"(?:^|[\s(])(?:e\.g|i\.e|cf|vs|Mr|Mrs|Ms|Dr|Prof|Fig|Eq)\.\s*\Z")
_LIST_MARK = re.compile(r"\s*(?:\d+|[A-Za-z])\.\s*\Z")


def paragraphs(text: str) -> list[str]:
    """Pieces that end with one or more empty lines, the last one as it ends."""
    return _cut(text, _PARAGRAPH)


def sentences(text: str) -> list[str]:
    """Pieces that end with a sentence or a line. White space after a full stop begins the next piece, newlines end one.

    Not an end: the number or letter of a list item ("2. ") and common abbreviations.
    """
    joined, held = [], ""
    for piece in _cut(text, _SENTENCE):
        held += piece
        if not (_LIST_MARK.match(held) or _SHORT_FORM.search(held)):
            joined.append(held)
            held = ""
    return [*joined, held] if held else joined


def without_break(text: str) -> str:
    """The text without the line ends, empty lines and white space after its last line."""
    body = len(text.rstrip())
    end = next((place for place in range(body, len(text)) if text[place] in _BREAKS), len(text))
    return text[:end]


def token_chunks(ids: Sequence[int], step: int, minimum: int = 1, maximum: int | None = None) -> list[list[int]]:
    """Chunks of `step` ids. A remainder under `minimum` joins the chunk before if that stays within `maximum`; if not,
    it takes what it lacks from the chunk before, where that leaves this one the minimum too.
    """
    if step < 1 or minimum > step or (maximum is not None and maximum < step):
        raise UserError(f"token chunks: need 1 <= step {step}, minimum {minimum} <= step <= maximum {maximum}")
    chunks = [list(ids[start : start + step]) for start in range(0, len(ids), step)]
    if len(chunks) > 1 and len(chunks[-1]) < minimum:
        both = chunks[-2] + chunks[-1]
        if maximum is None or len(both) <= maximum:
            chunks[-2:] = [both]
        elif len(both) >= 2 * minimum:
            chunks[-2:] = [both[:-minimum], both[-minimum:]]
    return chunks


SEGMENTERS = {"paragraph": paragraphs, "sentence": sentences}


def segment(
    text: str,
    by: str = "paragraph",
    minimum: int = 0,
    maximum: int | None = None,
    measure: Callable[[str], int] = len,
) -> list[str]:
    """Cuts `text` by "paragraph" or "sentence", then brings the pieces between two lengths (see `merge`).

    Args:
        measure: length of a text; characters by default, `lambda text: len(tokenize(text))` for tokens.
    """
    if by not in SEGMENTERS:
        raise UserError(f"segment by {by!r}: it must be one of {', '.join(SEGMENTERS)}; tokens have `token_chunks`")
    return merge(SEGMENTERS[by](text), minimum, maximum, measure)


def merge(
    pieces: Sequence[str],
    minimum: int = 0,
    maximum: int | None = None,
    measure: Callable[[str], int] = len,
) -> list[str]:
    """Joins neighbours until each is at least `minimum` long and cuts what is longer than `maximum`.

    The maximum is kept strictly (one character may measure more); the minimum gives way where keeping it would break
    the maximum. Too long a piece is cut at sentences, where that is not enough at words, then at characters.
    """
    if maximum is not None and maximum < max(minimum, 1):
        raise UserError(f"segment maximum is {maximum}; it must be at least 1 and at least the minimum, {minimum}")
    fits = lambda text: maximum is None or measure(text) <= maximum
    pieces = [part for piece in pieces for part in _shorten(piece, fits)]
    merged: list[str] = []
    for piece in pieces:
        if merged and measure(merged[-1]) < minimum and fits(merged[-1] + piece):
            merged[-1] += piece
        else:
            merged.append(piece)
    if len(merged) > 1 and measure(merged[-1]) < minimum and fits(merged[-2] + merged[-1]):
        merged[-2:] = ["".join(merged[-2:])]
    return merged


def _shorten(piece, fits, splitters=None):
    """Cuts `piece` into parts that fit, the coarsest way that works, filling each part as far as it goes."""
    if fits(piece) or len(piece) <= 1:
        return [piece]
    first, *finer = [sentences, lambda text: _cut(text, _WORD), list] if splitters is None else splitters
    units = first(piece)
    if len(units) == 1:
        return _shorten(piece, fits, finer)
    parts: list[str] = []
    for part in (part for unit in units for part in _shorten(unit, fits, finer or [first])):
        if parts and fits(parts[-1] + part):
            parts[-1] += part
        else:
            parts.append(part)
    return parts


def _cut(text, pattern):
    """Cuts `text` after every match; white space alone goes with the piece after it, at the end with the one before."""
    ends = [match.end() for match in pattern.finditer(text)]
    pieces, held, start = [], "", 0
    for end in [*ends, len(text)]:
        held += text[start:end]
        start = end
        if held.strip():
            pieces.append(held)
            held = ""
    if held and pieces:
        pieces[-1] += held
    elif held:
        pieces.append(held)
    return pieces
