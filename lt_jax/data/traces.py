"""A reasoning trace, and how the records of public data sets become one.

    Bespoke-Stratos, Sky-T1    {"system", "conversations": [{"from", "value"}, ...]}
    chat                       {"messages": [{"role", "content"}, ...]}
    OpenMementos, default      {"problem", "response", "domain", "source", "difficulty"}
    OpenMementos, full         the same and {"sentences", "blocks", "block_summaries"}
    LightThinker's train.jsonl {"question", "system_prompt", "thoughts_list", "gt_output", "add_eos", ...}
    plain                      {"question", "response" or "thoughts", "answer", "system"}

LightThinker's `system_list` and `question_list` are not read: `layout` cuts a prompt into sentences itself.
The format of a file is seen from the fields of its first record, or given by name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lt_jax.errors import UserError

BLOCK_START, BLOCK_END = "<|block_start|>", "<|block_end|>"
SUMMARY_START, SUMMARY_END = "<|summary_start|>", "<|summary_end|>"
_MARKED = re.compile(
    re.escape(BLOCK_START) + r"(.*?)" + re.escape(BLOCK_END) + r"\s*"
    + re.escape(SUMMARY_START) + r"(.*?)" + re.escape(SUMMARY_END),
    re.DOTALL,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trace:
    """One question and the whole text a model is to write after it.

    Attributes:
        question: the user's turn.
        response: the whole output as text; Memento traces keep their block and summary markers. Empty only for records
            that are read for evaluation.
        system: the system turn, empty if there is none.
        history: earlier turns (role, text), oldest first, of a conversation of more than one exchange.
        segments: the output cut into thoughts, where the data come ready cut; their concatenation need not equal
            `response` (LightThinker's thoughts_list leaves the separators out). Empty: to be cut by a segmenter.
        answer: the gold answer, empty if unknown.
        source: where the trace comes from.
        add_eos: whether the output ends with an EOS token.
        extra: small JSON values kept as they are (domain, difficulty, id, a task's metadata).
    """

    question: str
    response: str = ""
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()
    segments: tuple[str, ...] = ()
    answer: str = ""
    source: str = ""
    add_eos: bool = True
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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
    if not evaluation and not trace.response.strip() and not any(part.strip() for part in trace.segments):
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


_ROLES = {role: role for role in ("user", "assistant", "system", "tool")} | {"human": "user", "gpt": "assistant"}


def _dialogue(record: Mapping, field: str, role_key: str, text_key: str, where: str, evaluation: bool) -> Trace:
    """The last exchange of a conversation is the trace, what went before is its history."""
    listed = record.get(field)
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise UserError(f"{where}: field {field!r} must be a list of turns")
    turns = []
    for number, turn in enumerate(listed):
        spot = f"{where}: turn {number} of {field!r}"
        if not isinstance(turn, Mapping):
            raise UserError(f"{spot} must be an object with {role_key!r} and {text_key!r}")
        role = _text(turn, role_key, spot)
        if role not in _ROLES:
            raise UserError(f"{spot}: unknown role {role!r}; known are {', '.join(_ROLES)}")
        turns.append((_ROLES[role], _text(turn, text_key, spot)))
    system = _text(record, "system", where, "")
    if turns[0][0] == "system":
        system = turns.pop(0)[1]
    response = turns.pop()[1] if turns and turns[-1][0] == "assistant" else ""
    if not response and not evaluation:
        raise UserError(f"{where}: the last turn of {field!r} must be the assistant's")
    if turns and turns[-1][0] == "tool":
        raise UserError(f"{where}: the last answer of {field!r} follows a tool's turn; a trace must answer the user's")
    if not turns or turns[-1][0] != "user":
        raise UserError(f"{where}: {field!r} needs a user turn before the assistant's")
    *history, (_, question) = turns
    return Trace(
        question, response, system, tuple(history),
        answer=_text(record, "answer", where, ""), source=_text(record, "source", where, ""),
        extra=_extra(record, "id", "domain", "difficulty"),
    )  # fmt: skip


def _conversations(record: Mapping, where: str, evaluation: bool) -> Trace:
    return _dialogue(record, "conversations", "from", "value", where, evaluation)


def _messages(record: Mapping, where: str, evaluation: bool) -> Trace:
    return _dialogue(record, "messages", "role", "content", where, evaluation)


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
    if not segments and not evaluation and record.get("response") is None:
        raise UserError(f"{where}: missing field 'response' or 'thoughts' (fields here: {', '.join(sorted(record))})")
    if evaluation:
        _check_choices(record, where)
    return Trace(
        _text(record, "question", where), _text(record, "response", where, "") or "\n\n".join(segments),
        _text(record, "system", where, ""), segments=segments,
        answer=_text(record, "answer", where, ""), source=_text(record, "source", where, ""),
        extra={key: value for key, value in record.items() if key not in _PLAIN and value is not None},
    )  # fmt: skip


def _check_choices(record: Mapping, where: str) -> None:
    """Raises UserError if `choices`, the options of a multiple choice, is not a list of texts or numbers."""
    value = record.get("choices")
    if value is None:
        return
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not listed or not value or not all(isinstance(option, str | int | float) for option in value):
        raise UserError(f"{where}: field 'choices' must be a list of texts or numbers, the options A, B, ...")


_PLAIN = ("question", "response", "thoughts", "system", "answer", "source")

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
