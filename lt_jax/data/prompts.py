"""Chat prompts, and what the assistant writes after them: shared by training, evaluation and generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lt_jax.data.traces import Trace, Turn
from lt_jax.errors import UserError
from lt_jax.layout import chat, template, thinking
from lt_jax.layout.prompt import Prompt
from lt_jax.layout.template import Reply

CHATS = (*chat.CHATS, "own")
LAST, ALL = "last", "all"


@dataclasses.dataclass(frozen=True)
class Prompter:
    """The function (question, system, history) -> chat prompt that training and evaluation share.

    Attributes:
        name: "qwen", "llama", "plain", or "own" for the tokenizer's own template (the only one for conversations of
            several exchanges, and for tools).
        tokenizer: a `transformers` tokenizer: for "own", and for the others to say which tokens there are.
        system: the system turn of samples that have none.
        prefix: put before every question, such as `layout.chat.BOXED`.
        suffix: put after it, such as `layout.chat.STEP_BY_STEP`. The prompts of Sparse-RL's release are
            Prompter("qwen", tokenizer, HELPFUL, suffix=STEP_BY_STEP), and "own" in place of "qwen" for Llama.

    Raises:
        UserError: unknown name; later, a history that the template cannot show.
    """

    name: str
    tokenizer: Any = None
    system: str = ""
    prefix: str = ""
    suffix: str = ""

    def __post_init__(self):
        if self.name not in CHATS:
            raise UserError(f"chat template {self.name!r}: it must be one of {', '.join(CHATS)}")
        if self.name == "own" and self.tokenizer is None:
            raise UserError("chat template 'own' needs the model's tokenizer")
        if self.name != "own" and self.tokenizer is not None:
            chat.check_control(self.name, self.tokenizer)

    def __call__(
        self, question: str, system: str = "", history: Sequence[Turn] = (), between: Sequence[Turn] = ()
    ) -> Prompt:
        """The prompt; history: turns before the question, between: an assistant's and its tools' after it."""
        if self.name != "own":
            self._check(Trace(question, system=system, history=tuple(history), between=tuple(between)))
            bos = {"bos": chat.opening(self.tokenizer)} if self.name == "plain" and self.tokenizer is not None else {}
            return chat.CHATS[self.name](self.prefix + question + self.suffix, system or self.system, **bos)
        turns = [*history, Turn("user", question), *between]
        return chat.own(self.tokenizer, self._messages(turns, len(history), system))

    def replies(self, trace: Trace, turns: str = LAST) -> list[Reply]:
        """The assistant's turns of `trace` that are trained, with what stands before each (`template.replies`).

        Args:
            turns: "last" trains the last turn, "all" every turn of the assistant's. What the data say of a turn
                (`Turn.trained`) goes before that: one marked as trained always is, one marked otherwise never (the last
                is then the last that is not).

        Raises:
            UserError: what the template cannot show.
        """
        if self.name != "own":
            self._check(trace)
            prompt = self(trace.question, trace.system)
            here = thinking.opened(prompt.text)
            tags = (here.start, here.stop) if here else thinking.PAIRS[0]
            text = thinking.joined(trace.reasoning, trace.response, tags) if trace.reasoning else trace.response
            return [Reply(prompt, text)]
        asked = len(trace.history)
        messages = self._messages(trace.turns, asked, trace.system)
        own = [place for place, turn in enumerate(trace.turns) if turn.role == "assistant"]
        able = [place for place in own if trace.turns[place].trained is not False]
        chosen = [place for place in able if turns == ALL or trace.turns[place].trained or place == able[-1]]
        system = len(messages) - len(trace.turns)
        return template.replies(self.tokenizer, messages, [place + system for place in chosen], trace.tools)

    def _messages(self, turns: Sequence[Turn], asked: int, system: str) -> list[dict]:
        """`turns`, of which `asked` is the question, as `layout.template` takes them, after the system's."""
        messages = [turn.message() for turn in turns]
        messages[asked] |= {"content": self.prefix + turns[asked].text + self.suffix}
        before = system or self.system
        return [{"role": "system", "content": before}, *messages] if before else messages

    def _check(self, trace: Trace) -> None:
        if trace.history or trace.between:
            raise UserError(
                f"a conversation of several exchanges (last question: {trace.question[:60]!r}) does not fit the chat "
                f"template {self.name!r}; use 'own' with a tokenizer that has a chat template"
            )
        if trace.tools or trace.calls:
            raise UserError(
                f"tools (question: {trace.question[:60]!r}) do not fit the chat template {self.name!r}; use 'own' with "
                "a tokenizer whose chat template shows tools"
            )
