"""How the records of public data sets become traces.

    Bespoke-Stratos, Sky-T1    {"system", "conversations": [turn, ...]}       turns: see `turns`
    chat, agents               {"messages": [turn, ...], "tools"}
    OpenMementos, default      {"problem", "response", "domain", "source", "difficulty"}
    OpenMementos, full         the same and {"sentences", "blocks", "block_summaries"}
    LightThinker's train.jsonl {"question", "system_prompt", "thoughts_list", "gt_output", "add_eos", ...}
    plain                      {"question", "response" or "thoughts", "answer", "system", "reasoning", ...}

Reasoning that stands beside a response (`turns.REASONING`) is kept apart in the trace; `rows` joins the two as the
model's own chat template does.
LightThinker's `system_list` and `question_list` are not read: `layout` cuts a prompt into sentences itself.
The format of a file is seen from the fields of its first record, or given by name.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lt_jax.data.choices import options
from lt_jax.data.trace import Trace, exchange
from lt_jax.data.turns import REASONING, read_turn, reasoning_text
from lt_jax.errors import UserError

BLOCK_START, BLOCK_END = "<|block_start|>", "<|block_end|>"
SUMMARY_START, SUMMARY_END = "<|summary_start|>", "<|summary_end|>"
_MARKED = re.compile(
    re.escape(BLOCK_START) + r"(.*?)" + re.escape(BLOCK_END) + r"\s*"
    + re.escape(SUMMARY_START) + r"(.*?)" + re.escape(SUMMARY_END),
    re.DOTALL,
)  # fmt: skip


def convert(record: Mapping, format: str | None = None, where: str = "record", evaluation: bool = False) -> Trace:
    """A record as a `Trace`.

    Args:
        record: one JSON object or table row.
        format: a key of `FORMATS`; None to see it from the fields.
        where: file and line, for the message of an error.
        evaluation: accept a record without an output.

    Raises:
        UserError: unknown format, a missing or mistyped field, an empty question or output.
    """
    name = format or detect(record, where)
    if name not in FORMATS:
        raise UserError(f"{where}: unknown trace format {name!r}; known are {', '.join(FORMATS)}")
    trace = FORMATS[name](record, where, evaluation)
    if not trace.question.strip():
        raise UserError(f"{where}: the question is empty")
    if not evaluation and not trace.answered:
        raise UserError(f"{where}: the output is empty; a training trace needs one")
    return trace


def detect(record: Mapping[str, Any], where: str = "record") -> str:
    """The name of the format whose fields a record has."""
    for name, fields in _SIGNS.items():
        if any(field in record for field in fields):
            return name
    raise UserError(
        f"{where}: no known trace format has the fields {', '.join(sorted(record)) or '(none)'}; expected one of "
        + "; ".join(f"{name}: {' or '.join(fields)}" for name, fields in _SIGNS.items())
    )


def memento_parts(response: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Cuts a Memento response at its markers.

    Returns:
        (blocks, between): the (block, summary) texts without markers, and the texts before, between and after them
        (one more than there are blocks), so that nothing of the response is lost.

    Raises:
        UserError: a marker is left outside the pairs (an unfinished or nested block).
    """
    blocks, between, at = [], [], 0
    for match in _MARKED.finditer(response):
        between.append(response[at : match.start()])
        blocks.append((match.group(1), match.group(2)))
        at = match.end()
    between.append(response[at:])
    for text in [*between, *(part for pair in blocks for part in pair)]:
        for marker in (BLOCK_START, BLOCK_END, SUMMARY_START, SUMMARY_END):
            if marker in text:
                raise UserError(f"a Memento response has {marker} outside a finished block: ...{text[-60:]!r}")
    return blocks, between


def without_summaries(response: str) -> str:
    """A Memento response as the plain reasoning it was made from: blocks stay, summaries and markers go."""
    blocks, between = memento_parts(response)
    return "".join(head + block for head, (block, _) in zip(between[:-1], blocks, strict=True)) + between[-1]


def _text(record: Mapping, field: str, where: str, default: str | None = None) -> str:
    value = record.get(field)
    if value is None:
        if default is None:
            raise UserError(f"{where}: missing field {field!r} (fields here: {', '.join(sorted(record)) or 'none'})")
        return default
    if isinstance(value, bool | int | float) and field == "answer":
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: field {field!r} must be text, not {type(value).__name__}")
    return value


def _texts(record: Mapping, field: str, where: str) -> tuple[str, ...]:
    value = record.get(field)
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(part, str) for part in value):
        raise UserError(f"{where}: field {field!r} must be a list of texts")
    return tuple(value)


def _extra(record: Mapping, *fields: str) -> dict[str, Any]:
    return {field: record[field] for field in fields if record.get(field) is not None}


def _dialogue(record: Mapping, field: str, where: str, evaluation: bool) -> Trace:
    """The last exchange of a conversation is the trace, what went before is its history."""
    listed = record.get(field)
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise UserError(f"{where}: field {field!r} must be a list of turns")
    turns, unread = [], [name for name, value in record.items() if name not in _DIALOGUE and value not in _NOTHING]
    for number, given in enumerate(listed):
        turn, left = read_turn(given, f"{where}: turn {number} of {field!r}")
        turns.append(turn)
        unread += left
    system = _text(record, "system", where, "")
    if turns[0].role == "system":
        system = turns.pop(0).text
    if not evaluation and (not turns or turns[-1].role != "assistant"):
        raise UserError(f"{where}: the last turn of {field!r} must be the assistant's")
    if not any(turn.role == "user" for turn in turns):
        raise UserError(f"{where}: {field!r} needs a user turn before the assistant's")
    while not evaluation and len(turns) > 1 and (turns[-1].role != "assistant" or turns[-1].train is False):
        turns.pop()
    if not evaluation and turns[-1].role != "assistant":
        raise UserError(f"{where}: no assistant turn of {field!r} is to be trained, as its own flags say")
    trace = exchange(turns)
    return dataclasses.replace(
        trace, system=system, answer=_text(record, "answer", where, ""), source=_text(record, "source", where, ""),
        tools=_tools(record, where), extra=_extra(record, "id", "domain", "difficulty"),
        unread=tuple(dict.fromkeys(unread)),
    )  # fmt: skip


def _tools(record: Mapping, where: str) -> tuple[Mapping[str, Any], ...]:
    given = record.get("tools")
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else None
        except ValueError:
            raise UserError(f"{where}: field 'tools' is a text that is not JSON") from None
    if given is None:
        return ()
    if not isinstance(given, Sequence) or not all(isinstance(tool, Mapping) for tool in given):
        raise UserError(f"{where}: field 'tools' must be a list of objects, each the description of a tool")
    return tuple(given)


def _conversations(record: Mapping, where: str, evaluation: bool) -> Trace:
    return _dialogue(record, "conversations", where, evaluation)


def _messages(record: Mapping, where: str, evaluation: bool) -> Trace:
    return _dialogue(record, "messages", where, evaluation)


def _memento(record: Mapping, where: str, evaluation: bool) -> Trace:
    response = _text(record, "response", where, "" if evaluation or "block_summaries" in record else None)
    if BLOCK_START not in response and record.get("block_summaries"):
        response = _joined_blocks(record, where)
    try:
        memento_parts(response)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return Trace(
        _text(record, "problem", where), response, _text(record, "system", where, ""),
        answer=_text(record, "answer", where, ""), source=_text(record, "source", where, ""),
        extra=_extra(record, "id", "task_id", "domain", "difficulty"),
    )  # fmt: skip


def _joined_blocks(record: Mapping, where: str) -> str:
    """The marked text of the `full` fields: a block is a range [first, last] of sentences, last included."""
    sentences, summaries = _texts(record, "sentences", where), _texts(record, "block_summaries", where)
    ranges = record.get("blocks")
    if not isinstance(ranges, Sequence) or len(ranges) != len(summaries):
        raise UserError(f"{where}: 'blocks' and 'block_summaries' must be lists of the same length")
    parts = []
    for span, summary in zip(ranges, summaries, strict=True):
        good = isinstance(span, Sequence) and len(span) == 2 and 0 <= span[0] <= span[1] < len(sentences)
        if not good:
            raise UserError(f"{where}: block {span!r} is not a range of the {len(sentences)} sentences")
        block = "\n".join(sentences[span[0] : span[1] + 1])
        parts.append(f"{BLOCK_START}\n{block}\n{BLOCK_END}\n{SUMMARY_START}\n{summary}\n{SUMMARY_END}\n")
    tail = sentences[ranges[-1][1] + 1 :] if ranges else sentences
    return "<think>\n" + "".join(parts) + "</think>\n" + "\n".join(tail)


def _reference(record: Mapping, where: str, evaluation: bool) -> Trace:
    segments = _texts(record, "thoughts_list", where)
    response = _text(record, "gt_output", where, "") or "\n\n".join(segments)
    if not segments and not response and not evaluation:
        raise UserError(f"{where}: missing field 'thoughts_list' or 'gt_output'")
    add_eos = record.get("add_eos", True)
    if not isinstance(add_eos, bool):
        raise UserError(f"{where}: field 'add_eos' must be true or false")
    return Trace(
        _text(record, "question", where), response, _text(record, "system_prompt", where, ""), segments=segments,
        answer=_text(record, "answer", where, ""), source=_text(record, "source", where, ""), add_eos=add_eos,
        extra=_extra(record, "id"),
    )  # fmt: skip


def _plain(record: Mapping, where: str, evaluation: bool) -> Trace:
    segments = _texts(record, "thoughts", where)
    reasoning = [reasoning_text(record[name], f"{where}: field {name!r}") for name in _APART if record.get(name)]
    if not segments and not evaluation and record.get("response") is None and not reasoning:
        raise UserError(f"{where}: missing field 'response' or 'thoughts' (fields here: {', '.join(sorted(record))})")
    extra = {key: value for key, value in record.items() if key not in _PLAIN and value is not None}
    answer = _text(record, "answer", where, "")
    if evaluation and (found := options(record, where)) is not None:
        extra["choices"], answer = found
    return Trace(
        _text(record, "question", where), _text(record, "response", where, "") or "\n\n".join(segments),
        _text(record, "system", where, ""), segments=segments, answer=answer,
        source=_text(record, "source", where, ""), reasoning=_joined_reasoning(reasoning, where),
        tools=_tools(record, where), extra=extra,
    )  # fmt: skip


def _joined_reasoning(found: list[str], where: str) -> str:
    different = list(dict.fromkeys(text.strip() for text in found if text.strip()))
    if len(different) > 1:
        raise UserError(f"{where}: two different reasonings beside one response; keep one of {', '.join(_APART)}")
    return different[0] if different else ""


_NOTHING = (None, "", [], {}, ())
_APART = tuple(name for name in REASONING if name != "thoughts")  # `thoughts` of a plain record are its segments
_PLAIN = ("question", "response", "thoughts", "system", "answer", "source", "tools", *_APART)
_DIALOGUE = ("messages", "conversations", "system", "answer", "source", "tools", "id", "domain", "difficulty")

FORMATS: dict[str, Callable[[Mapping, str, bool], Trace]] = {
    "reference": _reference,
    "conversations": _conversations,
    "messages": _messages,
    "memento": _memento,
    "plain": _plain,
}
_SIGNS = {
    "reference": ("thoughts_list", "gt_output"),
    "conversations": ("conversations",),
    "messages": ("messages",),
    "memento": ("problem",),
    "plain": ("question",),
}
