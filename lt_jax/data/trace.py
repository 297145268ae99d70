"""A reasoning trace: one question, the text that a model is to write after it, and what went before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lt_jax.data.turns import Turn


@dataclasses.dataclass(frozen=True)
class Trace:
    """One question and the whole text a model is to write after it.

    Attributes:
        question: the user's turn.
        response: the whole output as text; Memento traces keep their block and summary markers. Empty only for records
            that are read for evaluation.
        system: the system turn, empty if there is none.
        history: earlier turns, oldest first, of a conversation of more than one exchange.
        between: turns between the question and the response: an agent's calls, and what its tools answered.
        reasoning, calls: of the response, see `Turn`.
        tools: descriptions of the tools that the assistant has, as chat templates take them.
        segments: the output cut into thoughts, where the data come ready cut; their concatenation need not equal
            `response` (LightThinker's thoughts_list leaves the separators out). Empty: to be cut by a segmenter.
        answer: the gold answer, empty if unknown.
        source: where the trace comes from.
        add_eos: whether the output ends with an EOS token.
        extra: small JSON values kept as they are (domain, difficulty, id, a task's metadata).
        train: whether the data say that the response is trained, or None if they do not say.
        unread: names of fields of the record and its turns that nothing was made of.
    """

    question: str
    response: str = ""
    system: str = ""
    history: tuple[Turn, ...] = ()
    segments: tuple[str, ...] = ()
    answer: str = ""
    source: str = ""
    add_eos: bool = True
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    between: tuple[Turn, ...] = ()
    reasoning: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    train: bool | None = None
    unread: tuple[str, ...] = ()

    @property
    def answered(self) -> bool:
        """Whether there is a response."""
        return bool(self.response.strip() or self.reasoning.strip() or self.calls or any(map(str.strip, self.segments)))

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The whole conversation but for the system turn; the response is the last of it, if there is one."""
        last = Turn("assistant", self.response, self.reasoning, self.calls, train=self.train)
        asked = (*self.history, Turn("user", self.question), *self.between)
        return (*asked, last) if self.answered else asked


def exchange(turns: Sequence[Turn]) -> Trace:
    """The trace of the last exchange of a conversation that has a user's turn; its last turn may be the assistant's."""
    *before, last = turns if turns[-1].role == "assistant" else (*turns, Turn("assistant"))
    asked = max(number for number, turn in enumerate(before) if turn.role == "user")
    return Trace(
        before[asked].text, last.text, history=tuple(before[:asked]), between=tuple(before[asked + 1 :]),
        reasoning=last.reasoning, calls=last.calls, train=last.train,
    )  # fmt: skip


def exchanges(trace: Trace) -> list[Trace]:
    """Every answer of a conversation as a trace of its own, after all that went before it; those left out that the data
    say are not to be trained, or that say nothing."""
    turns, found = trace.turns, []
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    for number, turn in enumerate(turns):
        if number > first and turn.role == "assistant" and turn.train is not False and not turn.empty:
            own = exchange(turns[: number + 1])
            kept = {name: getattr(trace, name) for name in ("system", "source", "extra", "tools", "unread")}
            last = {"answer": trace.answer, "segments": trace.segments} if number == len(turns) - 1 else {}
            found.append(dataclasses.replace(own, **kept, **last, add_eos=trace.add_eos))
    return found
