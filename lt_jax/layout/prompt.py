"""Prompts, whole or compressed.

A compressed prompt is chunks A_j, each followed by a gist block CP_j of the same gist tokens as a thought's, without an
output token (LightThinker's `aug` mode). Nothing of a prompt is trained. Differences from the reference: chunks of
tokens that are not full have no gists and stay visible, as at token level; `see_current` and `gist_rule` hold inside a
prompt only with `prefill_compress`, since without it the prompt is plainly causal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from lt_jax.errors import UserError
from lt_jax.layout.row import Role, Row, RowWriter
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.segment import sentences, token_chunks
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import NEVER

Tokenize = Callable[[str], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A chat prompt in pieces: (text, is_template). Template pieces can be kept out of the compression."""

    pieces: tuple[tuple[str, bool], ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)


def build_prompt(
    scheme: Scheme, special: SpecialTokens, prompt: str | Prompt | Sequence[int], tokenize: Tokenize
) -> Row:
    """The prompt's row, for prefill: exactly how the training row begins.

    A key with `death <= len(row)` is dropped once the prompt is in the cache. Two chunks of two tokens between template
    tokens t, one gist each; `prefill_compress` true, then false (where the last row is a token after the prompt):

        t x x c x x c t          t x x c x x c t s
        1 . . . . . . .          1 . . . . . . . .
        1 1 . . . . . .          1 1 . . . . . . .
        1 1 1 . . . . .          1 1 1 . . . . . .
        1 1 1 1 . . . .          1 1 1 1 . . . . .
        1 . . 1 1 . . .          1 1 1 1 1 . . . .
        1 . . 1 1 1 . .          1 1 1 1 1 1 . . .
        1 . . 1 1 1 1 .          1 1 1 1 1 1 1 . .
        1 . . 1 . . 1 1          1 1 1 1 1 1 1 1 .
                                 1 . . 1 . . 1 1 1

    Args:
        prompt: text, a `Prompt`, or ids (which cannot be cut at sentences).
        tokenize: text -> ids, adding nothing (`encode.encoder`).

    Raises:
        UserError: the prompt is empty or contains a gist or output token.
    """
    special.check(scheme)
    writer = RowWriter()
    write_prompt(writer, scheme, special, prompt, tokenize)
    return writer.row()


def write_prompt(writer: RowWriter, scheme, special, prompt, tokenize) -> None:
    """Appends a prompt; the row's first one must not be empty."""
    chunks = _chunks(scheme, prompt, tokenize)
    dying = []
    for ids, compressed in chunks:
        refuse_control(ids, scheme, special, "the prompt")
        start = writer.write(ids, Role.PROMPT)
        if not compressed:
            continue
        inside = scheme.prefill_compress
        since = start if inside and scheme.current_only else 0
        stop = writer.write(
            special.gists[: scheme.gist_tokens], Role.GIST, since=since, gist=writer.new_block() if inside else -1
        )
        dying.append((start, stop, len(writer)))
    if not len(writer):
        raise UserError("the prompt is empty; the first token of a response needs at least one token before it")
    for start, stop, end in dying:
        writer.end(start, stop, end if scheme.prefill_compress else len(writer))


def refuse_control(ids, scheme, special, where) -> None:
    """Raises UserError if `ids` hold a token that only the layout may write."""
    if not scheme.has_gists:
        return
    control = {*special.gists, special.output} - {None}
    for index, token in enumerate(ids):
        if int(token) in control:
            raise UserError(f"{where} has the token {int(token)} at place {index}, a gist or output token of the table")


def _chunks(scheme, prompt, tokenize) -> list[tuple[Sequence[int], bool]]:
    """The prompt as (ids, is compressed)."""
    text = prompt.text if isinstance(prompt, Prompt) else prompt
    if scheme.prompt is None:
        return [(tokenize(text) if isinstance(text, str) else text, False)]
    if not isinstance(text, str):
        if scheme.prompt == "sentences":
            raise UserError("scheme.prompt is 'sentences' but the prompt is token ids; give its text")
        return _full(token_chunks(prompt, scheme.prompt_step), scheme)
    keep = isinstance(prompt, Prompt) and scheme.save_template
    chunks = []
    for piece, template in prompt.pieces if keep else [(text, False)]:
        if template:
            chunks.append((tokenize(piece), False))
        elif scheme.prompt == "tokens":
            chunks += _full(token_chunks(tokenize(piece), scheme.prompt_step), scheme)
        else:
            chunks += [(tokenize(sentence), True) for sentence in sentences(piece)]
    return [(ids, compressed) for ids, compressed in chunks if len(ids)]


def _full(chunks, scheme):
    return [(chunk, len(chunk) == scheme.prompt_step) for chunk in chunks]


def dropped_after_prefill(row: Row) -> int:
    """How many keys of a prompt's row are dead when the first response token is fed."""
    return int(((row.death != NEVER) & (row.death <= len(row))).sum())
