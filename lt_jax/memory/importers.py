"""Traces that were written without a memory, as trajectories: what to commit is where the data put their cuts.

    OpenMementos      a block is a step, its summary is what is committed of it; what follows the last block answers
    plain traces      a segment is a step; its summary is its last sentence (the last one of its last line), which in
                      worked solutions says what was found; what follows the reasoning, or the last segment, answers
    chats             an assistant's turn is a step; the turns of users and tools after the first question are what a
                      tool answered. Actions are read where our marks are found; any other syntax stays text
    trajectories      as they are

Reasoning tags such as <think> are left out, since the actions take their place, and so is white space around a step.
What cannot be taken over whole is refused in one line that names the question.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence

from lt_jax.data.extract import extract
from lt_jax.data.rows import ready_thoughts
from lt_jax.data.traces import BLOCK_START, TRAJECTORY, Trace, Turn, memento_parts
from lt_jax.errors import UserError
from lt_jax.layout import thinking
from lt_jax.layout.segment import sentences
from lt_jax.memory.log import WITH_CONTENT, WITH_NUMBER, Log, LoggedTurn, from_json
from lt_jax.memory.syntax import ACTIONS, Syntax

Marks = Mapping[str, tuple[str, str]]  # {action: (opening, closing)}
Cut = Callable[[Sequence[str]], Sequence[str]]


def marks_of(syntax: Syntax) -> dict[str, tuple[str, str]]:
    """The texts of the actions' marks."""
    return {name: syntax.texts[2 * place : 2 * place + 2] for place, name in enumerate(ACTIONS)}


def as_log(trace: Trace, marks: Marks, cut: Cut) -> Log:
    """A trace as a trajectory.

    Args:
        marks: those that a chat's actions may be written in.
        cut: makes segments of the thoughts of a plain trace: one text, or as the data have cut it.

    Raises:
        UserError: it cannot be one.
    """
    named = f"trace of {trace.question[:60]!r}"
    if TRAJECTORY in trace.extra:
        return from_json(trace.extra[TRAJECTORY], named)
    try:
        _check(trace)
        if BLOCK_START in trace.response:
            turns, how = from_memento(trace), "memento"
        elif trace.history or trace.between or any(opening in trace.response for opening, _ in marks.values()):
            turns, how = from_chat(trace, marks), "chat"
        else:
            turns, how = from_plain(trace, cut), "plain"
        log = Log(
            str(trace.extra.get("id", "")), trace.turns[0].text, turns, system=trace.system, gold=trace.answer,
            extra={"from": how, "source": trace.source},
        )  # fmt: skip
        log.states()
    except UserError as error:  # of an action that was not possible as well
        raise UserError(f"{named}: {error}") from None
    return log


def _check(trace: Trace) -> None:
    """Raises UserError for what would be left out."""
    if trace.tools:
        raise UserError("it has descriptions of 'tools', which the prompt of a trajectory does not show; put them into "
                        "the system text")  # fmt: skip
    if not trace.add_eos:
        raise UserError("its output has no end (add_eos is false); a trajectory ends with its answer")
    if trace.turns[0].role != "user":
        raise UserError(f"it begins with a turn of the {trace.turns[0].role}'s; a trajectory begins with the question")


def from_memento(trace: Trace) -> tuple[LoggedTurn, ...]:
    """Blocks as steps, summaries as commits, the tail as the answer."""
    blocks, between = memento_parts(trace.response)
    turns = [
        LoggedTurn(thinking.bare(head + block), "commit", summary.strip())
        for head, (block, summary) in zip(between[:-1], blocks, strict=True)
    ]
    return (*turns, _answered(between[-1]))


def from_plain(trace: Trace, cut: Cut) -> tuple[LoggedTurn, ...]:
    """Segments as steps, their last sentences as commits; what stands behind the reasoning as the answer."""
    reasoning, response = trace.reasoning, trace.response
    if not reasoning and not trace.segments:
        size = thinking.length(response)
        reasoning, response = response[:size], response[size:]
    pieces = ready_thoughts(trace) if trace.segments else [reasoning or response]
    steps = [bare for piece in cut(pieces) if (bare := thinking.bare(piece))]
    if not reasoning:
        steps, response = steps[:-1], "".join(steps[-1:])
    return (*_committed(steps), _answered(response))


def from_chat(trace: Trace, marks: Marks) -> tuple[LoggedTurn, ...]:
    """Turns of the assistant as steps, and all later turns as what they were answered.

    An assistant's turn that takes none of our actions and is answered is a call: of the functions that it calls, where
    the data keep them apart, or else of what its last line says. The last turn answers.
    """
    turns: list[LoggedTurn] = []
    said, calls = "", []
    for number, turn in enumerate(trace.turns[1:], 2):
        if turn.role == "assistant":
            if turn.trained is False:
                raise UserError(f"turn {number} is marked as not trained; a trajectory is trained whole")
            found, rest = _actions(said + "\n\n" * bool(said) + _whole(turn), marks)
            turns += found
            said, calls = rest, list(turn.more.get("tool_calls", ()))
        elif turn.role == "system":
            raise UserError(f"turn {number} is a system turn after the question, which has no place in a trajectory")
        elif said or calls:
            turns.append(_asked(said, calls, turn.text))
            said, calls = "", []
        elif turns and turns[-1].action == "call" and not turns[-1].observation:
            turns[-1] = dataclasses.replace(turns[-1], observation=turn.text)
        else:
            raise UserError(f"turn {number} answers nothing: no call and no text of the assistant's comes before it")
    if turns and turns[-1].action == "final_answer" and not said:
        return tuple(turns)
    return (*turns, _answered(said))


def _whole(turn: Turn) -> str:
    """What an assistant wrote, its reasoning first, without tags."""
    size = thinking.length(turn.text)
    parts = (turn.reasoning, thinking.bare(turn.text[:size]), turn.text[size:])
    return "\n\n".join(part.strip() for part in parts if part.strip())


def _actions(text: str, marks: Marks) -> tuple[list[LoggedTurn], str]:
    """(turns that end with one of our actions, the text behind the last of them)."""
    pairs = ((name, re.escape(opening), re.escape(closing)) for name, (opening, closing) in marks.items())
    either = "|".join(f"{opening}(?P<{name}>.*?){closing}" for name, opening, closing in pairs)
    turns, at = [], 0
    for match in re.finditer(either, text, re.DOTALL):
        name, content = match.lastgroup, match[match.lastgroup].strip()
        before = text[at : match.start()].strip()
        if name in WITH_NUMBER:
            if not (content.isascii() and content.isdigit()):
                raise UserError(f"{name} needs the number of an entity, not {content[:20]!r}")
            turns.append(LoggedTurn(before, name, number=int(content)))
        elif name in WITH_CONTENT and not content:
            raise UserError(f"{name} is empty")
        else:
            turns.append(LoggedTurn(before, name, content))
        at = match.end()
    return turns, text[at:].strip()


def _asked(said: str, calls: list, observation: str) -> LoggedTurn:
    """A call in another syntax than ours."""
    if calls:
        named = [f"{call['function']['name']}: {json.dumps(call['function']['arguments'])}" for call in calls]
        return LoggedTurn(said, "call", "\n".join(named), observation=observation)
    text, _, call = said.rpartition("\n")
    return LoggedTurn(text.strip(), "call", call.strip(), observation=observation)


def _committed(steps: Sequence[str]) -> list[LoggedTurn]:
    last = lambda text: sentences(text.splitlines()[-1])[-1].strip()
    return [LoggedTurn(step, "commit", last(step)) for step in steps]


def _answered(text: str) -> LoggedTurn:
    """The last step: what it says, and the answer that it gives; its last line where no other answer is found."""
    size = thinking.length(text)
    reasoning, said = thinking.bare(text[:size]), thinking.bare(text[size:])
    if not said:
        raise UserError("nothing answers the question after the last step")
    found = extract(said)
    return LoggedTurn(f"{reasoning}\n\n{said}".strip(), "final_answer", found or said.splitlines()[-1].strip())
