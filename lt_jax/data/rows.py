"""A trace as a laid-out row: the chat prompt, the thoughts, `layout.build_row`.

to_row = RowMaker(scheme=scheme, special=special, tokenizer=tokenizer, prompt=Prompter("qwen"))
row = to_row(trace)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lt_jax.data.trace import Trace, exchanges
from lt_jax.data.traces import BLOCK_START, memento_parts, without_summaries
from lt_jax.data.turns import Turn
from lt_jax.errors import UserError
from lt_jax.layout import chat, thinking
from lt_jax.layout.build import build_conversation, build_row
from lt_jax.layout.encode import encoder
from lt_jax.layout.prompt import Prompt
from lt_jax.layout.row import Row
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.segment import SEGMENTERS, merge, token_chunks, without_ending
from lt_jax.layout.special import SpecialTokens

CHATS = (*chat.CHATS, "own")
READY, CHUNK = "ready", "chunk"
TURNS = ("last", "all", "each")


@dataclasses.dataclass(frozen=True)
class Prompter:
    """The chat prompt before an answer, which training and evaluation share, and the answer as it goes on from there.

    Attributes:
        name: "qwen", "llama", "plain", or "own" for the tokenizer's own template (the only one for conversations of
            several exchanges, and for tools).
        tokenizer: a `transformers` tokenizer: for "own", and for the others to say which tokens there are.
        system: the system turn of samples that have none.
        prefix: put before every question, such as `layout.chat.BOXED`.

    Raises:
        UserError: unknown name; later, turns that the template cannot show.
    """

    name: str
    tokenizer: Any = None
    system: str = ""
    prefix: str = ""

    def __post_init__(self):
        if self.name not in CHATS:
            raise UserError(f"chat template {self.name!r}: it must be one of {', '.join(CHATS)}")
        if self.name == "own" and self.tokenizer is None:
            raise UserError("chat template 'own' needs the model's tokenizer")
        if self.name != "own" and self.tokenizer is not None:
            chat.check_control(self.name, self.tokenizer)

    def __call__(
        self, question: str, system: str = "", history: Sequence[Turn] = (), between: Sequence[Turn] = (),
        tools: Sequence[Mapping] = (),
    ) -> Prompt:  # fmt: skip
        """The prompt. history: turns before the question; between: turns after it; tools: see `Trace`."""
        turn, before = self.prefix + question, system or self.system
        if self.name != "own":
            self._check_single(question, history, between, tools)
            bos = {"bos": chat.opening(self.tokenizer)} if self.name == "plain" and self.tokenizer is not None else {}
            return chat.CHATS[self.name](turn, before, **bos)
        return chat.own(self.tokenizer, self._messages(turn, before, history, between), **_options(tools))

    def going_on(self, trace: Trace, prompt: Prompt) -> Trace:
        """The trace with its response as text that goes on from `prompt`: reasoning and tool calls written out as the
        template does, tags around reasoning opened and closed once (`layout.thinking`).

        Raises:
            UserError: the response calls tools, which the template does not show.
        """
        response, segments = trace.response, trace.segments
        if trace.calls or trace.reasoning:
            written = self._written(trace, prompt) if self.name == "own" else None
            if written is None and trace.calls:
                raise UserError(
                    f"the answer to {trace.question[:60]!r} calls tools, which the chat template {self.name!r} does "
                    "not show; use 'own' with a tokenizer whose template has tools"
                )
            response = thinking.joined(trace.reasoning, response) if written is None else written
            segments = (thinking.joined(trace.reasoning, ""), *segments) if segments else ()
        (response,) = thinking.fitted(prompt.text, [response])
        segments = tuple(thinking.fitted(prompt.text, segments))
        return dataclasses.replace(trace, response=response, segments=segments, reasoning="", calls=())

    def _written(self, trace: Trace, prompt: Prompt) -> str | None:
        before = self._messages(self.prefix + trace.question, trace.system or self.system, trace.history, trace.between)
        last = Turn("assistant", trace.response, trace.reasoning, trace.calls).message()
        return chat.own_answer(self.tokenizer, [*before, last], prompt.text, **_options(trace.tools))

    def _check_single(self, question: str, history, between, tools) -> None:
        if tools or between:
            raise UserError(
                f"a conversation with tools (last question: {question[:60]!r}) does not fit the chat template "
                f"{self.name!r}; use 'own' with a tokenizer whose chat template has tools"
            )
        if history:
            raise UserError(
                f"a conversation of several exchanges (last question: {question[:60]!r}) does not fit the chat "
                f"template {self.name!r}; use 'own' with a tokenizer that has a chat template"
            )

    def _messages(self, question: str, system: str, history, between) -> list[dict]:
        opening = [Turn("system", system)] if system else []
        return [turn.message() for turn in (*opening, *history, Turn("user", question), *between)]


def _options(tools: Sequence[Mapping]) -> dict:
    return {"tools": [dict(tool) for tool in tools]} if tools else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowMaker:
    """Trace -> Row. Deterministic, without state, safe in several threads.

    Attributes:
        scheme, special: the method.
        tokenizer: a `tokenizers` or `transformers` tokenizer.
        prompt: see `Prompter`.
        segment: how a response becomes thoughts, where the scheme works on thoughts: "paragraph", "sentence", "chunk"
            (`maximum` tokens each, whatever they say), or "ready" (cut in the data: thoughts_list, Memento's blocks).
            None: as cut in the data where a trace has `segments`, else by paragraphs.
        minimum, maximum: thoughts are joined and cut to lie between these many tokens; 0 and None leave them be. For
            schemes that do not work on thoughts, segment and both are refused.
        turns: which answers of a conversation are trained, one of `TURNS`. "last": the last one. "all": every one, in
            one row; for vanilla, whose answers stay as they are when more turns follow. "each": every one as a sample
            of its own, after what the template shows of the turns before it, as it will be when the model is asked; the
            source is to be prepared so (`builder.prepare`). Answers that the data say are not to be trained are not.
    """

    scheme: Scheme
    special: SpecialTokens
    tokenizer: Any
    prompt: Prompter
    segment: str | None = None
    minimum: int = 0
    maximum: int | None = None
    turns: str = "last"

    def __post_init__(self):
        check_cutting(self.scheme, self.segment, self.minimum, self.maximum)
        check_turns(self.turns, self.scheme, self.prompt.name)
        object.__setattr__(self, "_encode", encoder(self.tokenizer))

    def __call__(self, trace: Trace) -> Row:
        """Lays one trace out. UserError as `build_row`, or the trace is not cut and `segment` is "ready"."""
        if self.turns == "all":
            return self._conversation(trace)
        prompt = self.prompt(trace.question, trace.system, trace.history, trace.between, trace.tools)
        segments = self.segments(self.prompt.going_on(trace, prompt))
        return build_row(self.scheme, self.special, prompt, segments, self._encode, add_eos=trace.add_eos)

    def _conversation(self, trace: Trace) -> Row:
        """A whole conversation in one row, every answer trained that is to be."""
        spans, written = [], ""
        end = self.prompt.tokenizer.convert_ids_to_tokens(self.special.eos)
        for own in exchanges(trace):
            prompt = self.prompt(own.question, own.system, own.history, own.between, own.tools)
            if not prompt.text.startswith(written):
                raise UserError(
                    f"the chat template shows an earlier answer otherwise once more turns follow (question: "
                    f"{own.question[:60]!r}), as templates do that take reasoning out; with it, data.turns must be "
                    "'each' or 'last'"
                )
            answer = self.prompt.going_on(dataclasses.replace(own, response=own.response.strip()), prompt).response
            spans += [(prompt.text[len(written) :], False), (answer, True)]
            written = prompt.text + answer + end
        if not spans:
            raise UserError(f"no answer of the conversation that begins {trace.question[:60]!r} is to be trained")
        return build_conversation(self.special, spans, self._encode, add_eos=trace.add_eos)

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


def check_turns(turns: str, scheme: Scheme, template: str) -> None:
    """Raises UserError for a choice of answers that cannot be, or that the scheme or the template cannot show."""
    if turns not in TURNS:
        raise UserError(f"data.turns is {turns!r}; it must be one of {', '.join(TURNS)}")
    if turns == "all" and scheme.method != "vanilla":
        raise UserError(
            f"data.turns is 'all', but scheme.method {scheme.method!r} compresses an answer while it is written, and "
            "the turns after it are asked with its text; choose 'each'"
        )
    if turns != "last" and template != "own":
        raise UserError(f"data.turns is {turns!r}, but data.chat {template!r} shows one exchange alone; choose 'own'")


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
