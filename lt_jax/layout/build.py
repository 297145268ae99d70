"""Text to rows: tokens, roles, targets and lifetimes of every method but Memento's parsing (`memento.py`).

Differences from the reference: every segment is tokenised on its own *without* special tokens, so no BOS slips into
thoughts and gist blocks; nothing is cut off (`limit.py`); at token level an EOS that fills a chunk is not followed by
gists; the diagonal rule also holds for a gist block at the very end of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lt_jax.errors import UserError
from lt_jax.layout.closing import Closing, closing
from lt_jax.layout.memento import write_memento
from lt_jax.layout.prompt import Prompt, Tokenize, refuse_control, write_prompt
from lt_jax.layout.row import Role, Row, RowWriter
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.segment import token_chunks, without_break
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import NEVER

Segment = str | Sequence[int]


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A prompt and the response to it, as a part of a row (`build_turns`).

    Attributes:
        prompt: text, `Prompt` or ids; a later one is the text after the response before, from the end of that turn on.
        segments: the response, see `build_row`.
        reasoning: the first that many segments may be forgotten.
        forgets: numbers of earlier exchanges whose reasoning is not seen from this one on.
    """

    prompt: str | Prompt | Sequence[int]
    segments: Sequence[Segment]
    reasoning: int = 0
    forgets: tuple[int, ...] = ()


def build_row(
    scheme: Scheme,
    special: SpecialTokens,
    prompt: str | Prompt | Sequence[int],
    segments: Sequence[Segment],
    tokenize: Tokenize,
    add_eos: bool = True,
) -> Row:
    """Lays a sample out as `scheme` says (LightThinker 3.1-3.2; AnLLM; Memento).

    Thought level: S_i (ends with the trigger), instruction, gists, [o]; then EOS. Two thoughts with two gists, as
    LightThinker trains them, `see_current`, and `see_current` with `gist_rule="bidirectional"`:

        x s w c c o s w c c o e      x s w c c o s w c c o e      x s w c c o s w c c o e
        1 . . . . . . . . . . .      1 . . . . . . . . . . .      1 . . . . . . . . . . .
        1 1 . . . . . . . . . .      1 1 . . . . . . . . . .      1 1 . . . . . . . . . .
        1 1 1 . . . . . . . . .      1 1 1 . . . . . . . . .      1 1 1 . . . . . . . . .
        1 1 1 1 . . . . . . . .      . 1 1 1 . . . . . . . .      . 1 1 1 1 . . . . . . .
        1 1 1 1 1 . . . . . . .      . 1 1 1 1 . . . . . . .      . 1 1 1 1 . . . . . . .
        1 . . 1 1 1 . . . . . .      1 . . 1 1 1 . . . . . .      1 . . 1 1 1 . . . . . .
        1 . . 1 1 1 1 . . . . .      1 . . 1 1 1 1 . . . . .      1 . . 1 1 1 1 . . . . .
        1 . . 1 1 1 1 1 . . . .      1 . . 1 1 1 1 1 . . . .      1 . . 1 1 1 1 1 . . . .
        1 . . 1 1 1 1 1 1 . . .      . . . . . . 1 1 1 . . .      . . . . . . 1 1 1 1 . .
        1 . . 1 1 1 1 1 1 1 . .      . . . . . . 1 1 1 1 . .      . . . . . . 1 1 1 1 . .
        1 . . 1 1 1 . . 1 1 1 .      1 . . 1 1 1 . . 1 1 1 .      1 . . 1 1 1 . . 1 1 1 .
        1 . . 1 1 1 . . 1 1 1 1      1 . . 1 1 1 . . 1 1 1 1      1 . . 1 1 1 . . 1 1 1 1

    `exclude_continue`, `gist_rule="diagonal"`, and AnLLM (its anchors are the `c`, and are trained):

        x s w c c o s w c c o e      x s w c c o s w c c o e      x s s c s s c e
        1 . . . . . . . . . . .      1 . . . . . . . . . . .      1 . . . . . . .
        1 1 . . . . . . . . . .      1 1 . . . . . . . . . .      1 1 . . . . . .
        1 1 1 . . . . . . . . .      1 1 1 . . . . . . . . .      1 1 1 . . . . .
        1 1 1 1 . . . . . . . .      1 1 1 1 . . . . . . . .      . 1 1 1 . . . .
        1 1 1 1 1 . . . . . . .      1 1 1 . 1 . . . . . . .      1 . . 1 1 . . .
        1 . . 1 1 1 . . . . . .      1 . . 1 1 1 . . . . . .      1 . . 1 1 1 . .
        1 . . 1 1 1 1 . . . . .      1 . . 1 1 1 1 . . . . .      . . . . 1 1 1 .
        1 . . 1 1 1 1 1 . . . .      1 . . 1 1 1 1 1 . . . .      1 . . 1 . . 1 1
        1 . . 1 1 1 1 1 1 . . .      1 . . 1 1 1 1 1 1 . . .
        1 . . 1 1 1 1 1 1 1 . .      1 . . 1 1 1 1 1 . 1 . .
        1 . . 1 1 . . . 1 1 1 .      1 . . 1 1 1 . . 1 1 1 .
        1 . . 1 1 . . . 1 1 1 1      1 . . 1 1 1 . . 1 1 1 1

    Token level cuts the whole response into chunks of `scheme.step`, each full one closed by gists and [o]; vanilla
    lays the response out plainly. Both, and Memento, join the segments first, so these must be lossless (`segment.py`).

    Args:
        prompt: text, `Prompt` or ids.
        segments: the thoughts, text or ids. At thought level a text's trailing newlines give way to `special.ending`, a
            segment of white space only is left out, and a trigger inside a segment ends a thought there (which a
            native trigger can be after merging).
        tokenize: text -> ids, adding nothing (`encode.encoder`).
        add_eos: append a trained EOS.

    Raises:
        UserError: a token of the scheme is missing, the prompt is empty, or a gist or output token is in the text.
    """
    return build_turns(scheme, special, [Exchange(prompt, segments)], tokenize, add_eos)


def build_turns(
    scheme: Scheme, special: SpecialTokens, exchanges: Sequence[Exchange], tokenize: Tokenize, add_eos: bool = True
) -> Row:
    """Lays out a conversation of which several responses are trained, as one row that grew turn by turn.

    Each response is cut, compressed and trained as `build_row` does with one alone, after all that is still visible of
    the turns before: thoughts have died, their gists live on. The prompts are laid out as the first one is. The end of
    a turn, the first token of the template after it (up to the EOS, if white space is before that), is trained as an
    EOS. What a later prompt `forgets`, the reasoning of an earlier response with its gists, dies before that prompt.
    Two exchanges, vanilla; the first token of the first response is its reasoning and is forgotten:

        x t t e x t e
        1 . . . . . .
        1 1 . . . . .
        1 1 1 . . . .
        1 1 1 1 . . .
        1 . 1 1 1 . .
        1 . 1 1 1 1 .
        1 . 1 1 1 1 1

    A chunk at token level that a response does not fill stays visible. Arguments and errors as `build_row`.
    """
    special.check(scheme)
    writer = RowWriter()
    close = closing(scheme, special, tokenize)
    reasoning: list[tuple[int, int]] = []
    number = 0
    for place, exchange in enumerate(exchanges):
        prompt = _ended(writer, special, exchange.prompt, tokenize) if place else exchange.prompt
        for earlier in exchange.forgets:
            writer.forget(*reasoning[earlier])
        write_prompt(writer, scheme, special, prompt, tokenize)
        start = len(writer)
        eos = add_eos and place == len(exchanges) - 1
        stop, number = _response(writer, close, scheme, special, exchange, tokenize, eos, number)
        reasoning.append((start, stop))
    return writer.row()


def _ended(writer: RowWriter, special: SpecialTokens, prompt: str | Prompt, tokenize: Tokenize) -> Prompt:
    """Writes the end of the turn before, with which `prompt` begins; returns the rest of it."""
    (text, template), *rest = prompt.pieces if isinstance(prompt, Prompt) else ((prompt, True),)
    ids = list(tokenize(text))
    blank = len(text) - len(text.lstrip())
    before = len(tokenize(text[:blank])) if blank else 0
    ending = ids[: before + 1] if ids[before : before + 1] == [special.eos] else ids[:1]
    size = next((size for size in range(1, len(text) + 1) if list(tokenize(text[:size])) == ending), None)
    if size is None:
        raise UserError(f"the end of a turn cannot be told in {text[:40]!r}, the chat template's text after it")
    writer.write(ending, Role.EOS, trained=True)
    return Prompt(tuple(piece for piece in ((text[size:], template), *rest) if piece[0]))


def _response(writer, close, scheme, special, exchange, tokenize, add_eos, number) -> tuple[int, int]:
    """Writes a response. Returns the index at which its reasoning ends, and the number of the next thought."""
    start, segments = len(writer), exchange.segments
    if scheme.level == "thought" and scheme.method not in ("vanilla", "memento"):
        stop, number = _thought_level(writer, close, scheme, special, segments, tokenize, number, exchange.reasoning)
    else:
        size = len(_joined(segments[: exchange.reasoning], tokenize)) if exchange.reasoning else 0
        ids = _joined(segments, tokenize)
        if scheme.level == "token":
            stop = start + size // close.every * (close.every - 1 + len(close))
            number = _token_level(writer, close, scheme, special, ids, add_eos, number)
            return stop, number
        stop = start + size
        if close is None:
            writer.write(ids, Role.TEXT, trained=True)
        else:
            number = write_memento(writer, ids, special, number)
    if add_eos:
        writer.write([special.eos], Role.EOS, trained=True)
    return stop, number


def _thought_level(writer, close, scheme, special, segments, tokenize, number, reasoning) -> tuple[int, int]:
    output, stop = None, len(writer)
    for place, segment in enumerate(segments):
        for ids in _thoughts(segment, special, tokenize, scheme.has_trigger):
            refuse_control(ids, scheme, special, f"segment {place}")
            writer.write(ids, Role.THOUGHT, trained=True, thought=number)
            output = _close(writer, close, len(ids), number, output)
            number += 1
        if place < reasoning:
            stop = len(writer)
    return stop, number


def _token_level(writer, close, scheme, special, ids, add_eos, first) -> int:
    refuse_control(ids, scheme, special, "the response")
    response = [*ids, special.eos] if add_eos else list(ids)
    output, number = None, first - 1
    for number, chunk in enumerate(token_chunks(response, close.every), first):
        at_end = add_eos and (number - first + 1) * close.every >= len(response)
        full = len(chunk) == close.every and not at_end
        text = chunk[:-1] if full or at_end else chunk
        writer.write(text, Role.THOUGHT, trained=True, thought=number)
        if full:
            output = _close(writer, close, len(text), number, output, chunk[-1])
        elif at_end:
            writer.write(chunk[-1:], Role.EOS, trained=True, thought=number)
    return number + 1


def _close(writer: RowWriter, close: Closing, length: int, number: int, output: int | None, last: int | None = None):
    """Writes the closing of a thought of `length` tokens just written; returns the index of its output token.

    Args:
        output: index of the previous thought's output token.
        last: the token at offset 0 where the closing has none of its own (token level).
    """
    at = len(writer)
    start = at - length
    block = writer.new_block()
    writer.end(start, at, at + close.thought_dies)
    for offset, token in enumerate(close.tokens):
        dies = int(close.death[offset])
        index = writer.write(
            [last if offset == 0 and last is not None else token],
            Role(int(close.role[offset])),
            trained=bool(close.trained[offset]),
            thought=number,
            death=NEVER if dies == NEVER else at + dies,
            since=start if close.since[offset] else 0,
            gist=block if close.is_gist[offset] else -1,
        )
        if close.role[offset] == Role.OUTPUT:
            if close.replaces_output and output is not None:
                writer.end(output, output + 1, index)
            output = index
    return output


def _thoughts(segment: Segment, special: SpecialTokens, tokenize: Tokenize, has_trigger: bool) -> list[list[int]]:
    """Ids of the thoughts of a segment, without their triggers."""
    if isinstance(segment, str):
        if not segment.strip():
            return []
        if special.ending is not None:
            segment = without_break(segment) + special.ending
        segment = tokenize(segment)
    thoughts: list[list[int]] = [[]]
    for token in segment:
        if has_trigger and token == special.trigger:
            thoughts.append([])
        else:
            thoughts[-1].append(int(token))
    return [thought for thought in thoughts if thought]


def _joined(segments: Sequence[Segment], tokenize: Tokenize) -> list[int]:
    if all(isinstance(segment, str) for segment in segments):
        return list(tokenize("".join(segments)))
    ids: list[int] = []
    for segment in segments:
        ids += list(tokenize(segment) if isinstance(segment, str) else segment)
    return [int(token) for token in ids]
