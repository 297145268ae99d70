"""Text to rows: tokens, roles, targets and lifetimes of every method but Memento's parsing (`memento.py`).

Differences from the reference: every segment is tokenised on its own *without* special tokens, so no BOS slips into
thoughts and gist blocks; nothing is cut off (`limit.py`); at token level an EOS that fills a chunk is not followed by
gists; the diagonal rule also holds for a gist block at the very end of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from lt_jax.errors import UserError
from lt_jax.layout.closing import Closing, closing
from lt_jax.layout.memento import write_memento
from lt_jax.layout.prompt import Prompt, Tokenize, refuse_control, write_prompt
from lt_jax.layout.row import Role, Row, Writer
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.segment import token_chunks, without_ending
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import NEVER

Segment = str | Sequence[int]


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
    special.check(scheme)
    writer = Writer()
    write_prompt(writer, scheme, special, prompt, tokenize)
    close = closing(scheme, special, tokenize)
    if scheme.method in ("vanilla", "memento"):
        ids = _joined(segments, tokenize)
        if close is None:
            writer.write(ids, Role.TEXT, trained=True)
        else:
            write_memento(writer, ids, special)
    elif scheme.level == "token":
        return _token_level(writer, close, scheme, special, _joined(segments, tokenize), add_eos)
    else:
        _thought_level(writer, close, scheme, special, segments, tokenize)
    if add_eos:
        writer.write([special.eos], Role.EOS, trained=True)
    return writer.row()


def build_conversation(
    special: SpecialTokens, spans: Sequence[tuple[str, bool]], tokenize: Tokenize, *, add_eos: bool = True
) -> Row:
    """A vanilla row of several exchanges: (text, trained) in turn, an EOS after every trained text.

        letters   x x t e x x t t e        x: prompt, t: text of an answer, e: its EOS

    Args:
        add_eos: whether the last answer ends with one; those before it always do.

    Raises:
        UserError: the first span is trained, or empty.
    """
    writer = Writer()
    for number, (text, trained) in enumerate(spans):
        writer.write(tokenize(text), Role.TEXT if trained else Role.PROMPT, trained=trained)
        if not number and (trained or not len(writer)):
            raise UserError("the prompt is empty; the first token of a response needs at least one token before it")
        if trained and (add_eos or number < len(spans) - 1):
            writer.write([special.eos], Role.EOS, trained=True)
    return writer.row()


def _thought_level(writer, close, scheme, special, segments, tokenize):
    number, output = 0, None
    for place, segment in enumerate(segments):
        for ids in _thoughts(segment, special, tokenize, scheme.has_trigger):
            refuse_control(ids, scheme, special, f"segment {place}")
            writer.write(ids, Role.THOUGHT, trained=True, thought=number)
            output = _close(writer, close, len(ids), number, output)
            number += 1


def _token_level(writer, close, scheme, special, ids, add_eos):
    refuse_control(ids, scheme, special, "the response")
    response = [*ids, special.eos] if add_eos else list(ids)
    output = None
    for number, chunk in enumerate(token_chunks(response, close.every)):
        at_end = add_eos and (number + 1) * close.every >= len(response)
        full = len(chunk) == close.every and not at_end
        text = chunk[:-1] if full or at_end else chunk
        writer.write(text, Role.THOUGHT, trained=True, thought=number)
        if full:
            output = _close(writer, close, len(text), number, output, chunk[-1])
        elif at_end:
            writer.write(chunk[-1:], Role.EOS, trained=True, thought=number)
    return writer.row()


def _close(writer: Writer, close: Closing, length: int, number: int, output: int | None, last: int | None = None):
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
            gist=block if close.gist[offset] else -1,
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
            segment = without_ending(segment) + special.ending
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
