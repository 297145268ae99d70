"""A trace as a laid-out row: the chat prompt, the thoughts, `layout.build_row`.

to_row = RowMaker(scheme=scheme, special=special, tokenizer=tokenizer, prompt=prompter("qwen"))
row = to_row(trace)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from lt_jax.data.traces import BLOCK_START, Trace, memento_parts, without_summaries
from lt_jax.errors import UserError
from lt_jax.layout import chat
from lt_jax.layout.build import build_row
from lt_jax.layout.encode import encoder
from lt_jax.layout.prompt import Prompt
from lt_jax.layout.row import Row
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.segment import SEGMENTERS, merge, token_chunks, without_ending
from lt_jax.layout.special import SpecialTokens

Prompter = Callable[[str, str, Sequence[tuple[str, str]]], Prompt]
CHATS = (*chat.CHATS, "own")
READY, CHUNK = "ready", "chunk"


def prompter(name: str, tokenizer=None, system: str = "", prefix: str = "") -> Prompter:
    """The function (question, system, history) -> chat prompt that training and evaluation share.

    Args:
        name: "qwen", "llama", "plain", or "own" for the tokenizer's own template (the only one for conversations of
            several exchanges).
        tokenizer: a `transformers` tokenizer, for "own".
        system: the system turn of samples that have none.
        prefix: put before every question, such as `layout.chat.BOXED`.

    Raises:
        UserError: unknown name; later, a history that the template cannot show.
    """
    if name not in CHATS:
        raise UserError(f"chat template {name!r}: it must be one of {', '.join(CHATS)}")
    if name == "own" and tokenizer is None:
        raise UserError("chat template 'own' needs the model's tokenizer")

    def prompt(question: str, own_system: str = "", history: Sequence[tuple[str, str]] = ()) -> Prompt:
        turn, before = prefix + question, own_system or system
        if name != "own":
            if history:
                raise UserError(
                    f"a conversation of several exchanges (last question: {question[:60]!r}) does not fit the chat "
                    f"template {name!r}; use 'own' with a tokenizer that has a chat template"
                )
            return chat.CHATS[name](turn, before)
        opening = [("system", before)] if before else []
        turns = [*opening, *history, ("user", turn)]
        return chat.own(tokenizer, [{"role": role, "content": text} for role, text in turns])

    return prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowMaker:
    """Trace -> Row. Deterministic, without state, safe in several threads.

    Attributes:
        scheme, special: the method.
        tokenizer: a `tokenizers` or `transformers` tokenizer.
        prompt: see `prompter`.
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
    segment: str | None = None
    minimum: int = 0
    maximum: int | None = None

    def __post_init__(self):
        check_cutting(self.scheme, self.segment, self.minimum, self.maximum)
        object.__setattr__(self, "_encode", encoder(self.tokenizer))

    def __call__(self, trace: Trace) -> Row:
        """Lays one trace out. UserError as `build_row`, or the trace is not cut and `segment` is "ready"."""
        prompt = self.prompt(trace.question, trace.system, trace.history)
        segments = self.segments(trace)
        return build_row(self.scheme, self.special, prompt, segments, self._encode, add_eos=trace.add_eos)

    def segments(self, trace: Trace) -> list[str] | list[list[int]]:
        """What `build_row` gets: thoughts, or the whole response for a method that does not cut there."""
        if self.scheme.method == "memento":
            return [trace.response]
        if self.scheme.method == "vanilla" or self.scheme.level == "token":
            return [plain_response(trace)]
        if self.segment == CHUNK:
            return token_chunks(self._encode(plain_response(trace)), self.maximum, max(1, self.minimum), self.maximum)
        if self.segment == READY or (self.segment is None and trace.segments):
            pieces = ready_thoughts(trace)
        else:
            pieces = SEGMENTERS[self.segment or "paragraph"](plain_response(trace))
        if not self.minimum and self.maximum is None:
            return pieces
        return merge(pieces, self.minimum, self.maximum, lambda text: len(self._encode(text)))


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
        whole = lambda text: text if without_ending(text) != text else text + "\n\n"
        return [*map(whole, trace.segments[:-1]), trace.segments[-1]]
    if BLOCK_START not in trace.response:
        raise UserError(
            f"data.segment is 'ready' but the trace of {trace.question[:60]!r} has neither thoughts nor blocks; "
            "choose 'paragraph' or 'sentence'"
        )
    blocks, between = memento_parts(trace.response)
    pieces = [head + block for head, (block, _) in zip(between[:-1], blocks, strict=True)]
    return [*pieces, between[-1]] if between[-1].strip() else pieces
