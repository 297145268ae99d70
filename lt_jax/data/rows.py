"""A trace as a laid-out row: the chat prompt, the thoughts, `layout.build_turns`.

to_row = RowMaker(scheme=scheme, special=special, tokenizer=tokenizer, prompt=Prompter("qwen"))
row = to_row(trace)
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lt_jax.data.prompts import ALL, LAST, Prompter
from lt_jax.data.traces import BLOCK_START, Trace, memento_parts, without_summaries
from lt_jax.errors import UserError
from lt_jax.layout import thinking
from lt_jax.layout.build import Exchange, build_turns
from lt_jax.layout.encode import encoder
from lt_jax.layout.row import Row
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.segment import SEGMENTERS, merge, token_chunks, without_break
from lt_jax.layout.special import SpecialTokens
from lt_jax.layout.template import Reply

READY, CHUNK = "ready", "chunk"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowMaker:
    """Trace -> Row. Deterministic, without state, safe in several threads.

    Attributes:
        scheme, special: the method.
        tokenizer: a `tokenizers` or `transformers` tokenizer.
        prompt: see `prompts.Prompter`.
        turns: which of the assistant's turns are trained: "last" or "all", see `Prompter.replies`. Where they are
            several, the row is the conversation as it grew, see `layout.build.build_turns`.
        segment: how a response becomes thoughts, where the scheme works on thoughts: "paragraph", "sentence", "chunk"
            (`maximum` tokens each, whatever they say), or "ready" (cut in the data: thoughts_list, Memento's blocks).
            None: as cut in the data where a trace has `segments`, else by paragraphs.
        minimum, maximum: thoughts are joined and cut to lie between these many tokens; 0 and None leave them be. For
            schemes that do not work on thoughts, segment and both are refused.
    """

    scheme: Scheme
    special: SpecialTokens
    tokenizer: Any
    prompt: Prompter
    turns: str = LAST
    segment: str | None = None
    minimum: int = 0
    maximum: int | None = None

    def __post_init__(self):
        check_cutting(self.scheme, self.segment, self.minimum, self.maximum)
        check_turns(self.turns)
        object.__setattr__(self, "_encode", encoder(self.tokenizer))

    def __call__(self, trace: Trace) -> Row:
        """Lays one trace out. UserError as `build_turns`, or the trace is not cut and `segment` is "ready"."""
        replies = self.prompt.replies(trace, self.turns)
        forgotten = {number for reply in replies for number in reply.forgets}
        exchanges = [self._exchange(trace, reply, number in forgotten) for number, reply in enumerate(replies)]
        return build_turns(self.scheme, self.special, exchanges, self._encode, add_eos=trace.add_eos)

    def segments(self, trace: Trace) -> list[str] | list[list[int]]:
        """The last response as `build_row` gets it: thoughts, or all of it for a method that does not cut there."""
        return list(self._exchange(trace, self.prompt.replies(trace, self.turns)[-1], False).segments)

    def _exchange(self, trace: Trace, reply: Reply, forgotten: bool) -> Exchange:
        """A reply cut into segments; its reasoning, if it is `forgotten` later, apart from the rest."""
        put, pieces = thinking.fitted(reply.prompt.text, trace.segments or [reply.text], reply.closing)
        ready = tuple(pieces) if trace.segments else ()
        text = "".join(thinking.fitted(reply.prompt.text, [reply.text], reply.closing)[1])
        size = thinking.length(text) if forgotten else 0
        parts = [part for part in (text[:size], text[size:]) if part] or [""]
        cut = [
            self._cut(dataclasses.replace(trace, response=part, segments=ready), "" if place else put)
            for place, part in enumerate(parts)
        ]
        first = len(cut[0]) if size else 0
        return Exchange(reply.prompt, [piece for each in cut for piece in each], first, reply.forgets)

    def _cut(self, trace: Trace, put: str) -> list[str] | list[list[int]]:
        """The segments of `trace.response` with `put` before them, which no thought is made of alone."""
        if self.scheme.method == "memento":
            return [put + trace.response]
        if self.scheme.method == "vanilla" or self.scheme.level == "token":
            return [put + plain_response(trace)]
        if self.segment == CHUNK:
            ids = self._encode(put + plain_response(trace))
            return token_chunks(ids, self.maximum, max(1, self.minimum), self.maximum)
        if self.segment == READY or (self.segment is None and trace.segments):
            pieces = ready_thoughts(trace)
        else:
            pieces = SEGMENTERS[self.segment or "paragraph"](plain_response(trace))
        pieces = [put + pieces[0], *pieces[1:]] if pieces else [put]
        if not self.minimum and self.maximum is None:
            return pieces
        return merge(pieces, self.minimum, self.maximum, lambda text: len(self._encode(text)))


def check_turns(turns: str) -> None:
    """Raises UserError for an unknown choice of turns."""
    if turns not in (LAST, ALL):
        raise UserError(f"data.turns is {turns!r}; it must be {LAST!r} or {ALL!r}")


def check_cutting(scheme: Scheme, segment: str | None, minimum: int, maximum: int | None) -> None:
    """Raises UserError for a way of cutting responses that cannot be, or that `scheme` has no use for."""
    if segment not in (None, READY, CHUNK, *SEGMENTERS):
        raise UserError(f"data.segment is {segment!r}; it must be one of {', '.join((READY, CHUNK, *SEGMENTERS))}")
    if minimum < 0 or (maximum is not None and maximum < max(1, minimum)):
        raise UserError(f"data.maximum is {maximum}; it must be at least 1 and at least data.minimum, {minimum}")
    if segment == CHUNK and maximum is None:
        raise UserError(f"data.segment is {CHUNK!r} and needs data.maximum, the tokens of a chunk")
    if scheme.level == "thought" and scheme.method not in ("vanilla", "memento"):
        return
    why = f"scheme.level {scheme.level!r}" if scheme.level != "thought" else f"scheme.method {scheme.method!r}"
    for name, value in (("segment", segment), ("minimum", minimum), ("maximum", maximum)):
        if value:
            raise UserError(f"data.{name} is {value!r}, but {why} does not cut a response into thoughts; leave it out")


def plain_response(trace: Trace) -> str:
    """The response as one text without Memento's markers and summaries."""
    return without_summaries(trace.response) if BLOCK_START in trace.response else trace.response


def ready_thoughts(trace: Trace) -> list[str]:
    """The thoughts that came cut with the data, each but the last with the empty line between it and the next.

    Raises:
        UserError: the trace was not cut.
    """
    if trace.segments:
        whole = lambda text: text if without_break(text) != text else text + "\n\n"
        return [*map(whole, trace.segments[:-1]), trace.segments[-1]]
    if BLOCK_START not in trace.response:
        raise UserError(
            f"data.segment is 'ready' but the trace of {trace.question[:60]!r} has neither thoughts nor blocks; "
            "choose 'paragraph' or 'sentence'"
        )
    blocks, between = memento_parts(trace.response)
    pieces = [head + block for head, (block, _) in zip(between[:-1], blocks, strict=True)]
    return [*pieces, between[-1]] if between[-1].strip() else pieces
