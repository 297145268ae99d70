"""A reasoning trace, and how the records of public data sets become one.

    Bespoke-Stratos, Sky-T1    {"system", "conversations": [{"from", "value"}, ...]}
    chat                       {"messages": [{"role", "content"}, ...], "tools"}
    OpenMementos, default      {"problem", "response", "domain", "source", "difficulty"}
    OpenMementos, full         the same and {"sentences", "blocks", "block_summaries"}
    trajectories               {"question", "turns": [{"text", "action", ...}, ...], "gold"} of `lt_jax.memory.log`
    LightThinker's train.jsonl {"question", "system_prompt", "thoughts_list", "gt_output", "add_eos", ...}
    plain                      {"question", "response" or "solution" or "thoughts", "answer", "system"}

Both ways of writing turns are read under both names, and what else `dialogue` says. Reasoning may stand apart from the
response, in a turn or in a record, under the names of `dialogue.REASONING`; multiple choices are read by `choices`.
LightThinker's `system_list` and `question_list` are not read: `layout` cuts a prompt into sentences itself.
The format of a file is seen from the fields of its first record, or given by name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lt_jax.data import choices, dialogue
from lt_jax.data.dialogue import Turn
from lt_jax.data.fields import extra as _extra
from lt_jax.data.fields import text as _text
from lt_jax.data.fields import texts as _texts
from lt_jax.errors import UserError
from lt_jax.layout import thinking

BLOCK_START, BLOCK_END = "<|block_start|>", "<|block_end|>"
SUMMARY_START, SUMMARY_END = "<|summary_start|>", "<|summary_end|>"
TRAJECTORY = "trajectory"  # a format, and where its records are kept in `Trace.extra`
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
        history: the turns before the question, oldest first, of a conversation of more than one exchange.
        segments: the output cut into thoughts, where the data come ready cut; their concatenation need not equal
            `response` (LightThinker's thoughts_list leaves the separators out). Empty: to be cut by a segmenter.
        answer: the gold answer, empty if unknown.
        source: where the trace comes from.
        add_eos: whether the output ends with an EOS token.
        extra: small JSON values kept as they are (domain, difficulty, id, a task's metadata).
        reasoning: what was thought before the response, where the data keep it apart; how the two are joined depends on
            the chat template (`layout.template`).
        between: the turns between question and response: the assistant's tool calls, and the tools' turns.
        calls: tool calls of the response, as chat templates take them.
        tools: descriptions of the functions that may be called, as chat templates take them.
        trained: whether the data want the response trained, see `Turn.trained`.
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
    reasoning: str = ""
    between: tuple[Turn, ...] = ()
    calls: tuple[Mapping, ...] = ()
    tools: tuple[Mapping, ...] = ()
    trained: bool | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The whole conversation but for the system turn; the last one is the response."""
        more = {"tool_calls": list(self.calls)} if self.calls else {}
        last = Turn("assistant", self.response, self.reasoning, self.trained, more)
        return (*self.history, Turn("user", self.question), *self.between, last)


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
    if trace.reasoning and trace.segments:
        raise UserError(f"{where}: there is a list of thoughts, and reasoning in a field of its own; keep one")
    if not evaluation:
        _check_output(trace, where)
    return trace


def _check_output(trace: Trace, where: str) -> None:
    if not any(text.strip() for text in (trace.response, trace.reasoning, *trace.segments)) and not trace.calls:
        raise UserError(f"{where}: the output is empty; a training trace needs one")
    if all(turn.trained is False for turn in trace.turns if turn.role == "assistant"):
        raise UserError(f"{where}: no turn of the assistant's is to be trained, by their flags; leave the trace out")
    said = [turn.text for turn in trace.turns if turn.role == "assistant" and turn.trained is not False]
    if trace.add_eos and any(map(thinking.starts_open, (*said, "".join(trace.segments)))):
        raise UserError(f"{where}: the reasoning of the output is never closed (it was cut off?); leave the trace out")


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


def _dialogue(record: Mapping, field: str, where: str, evaluation: bool) -> Trace:
    """The last answer of a conversation is the response, the last user turn before it the question."""
    turns = dialogue.turns(record.get(field), field, where)
    system = _text(record, "system", where, "")
    if turns[0].role == "system":
        first = turns.pop(0).text
        if system.strip() not in ("", first.strip()):
            raise UserError(f"{where}: 'system' and the system turn of {field!r} differ; keep one")
        system = first
    last = turns.pop() if turns and turns[-1].role == "assistant" else Turn("assistant")
    if last == Turn("assistant") and not evaluation:
        raise UserError(f"{where}: the last turn of {field!r} must be the assistant's, and not empty")
    asked = max((place for place, turn in enumerate(turns) if turn.role == "user"), default=None)
    if asked is None:
        raise UserError(f"{where}: {field!r} needs a user turn before the assistant's")
    reasoning = last.reasoning or _beside(record, last.text, where)
    return Trace(
        turns[asked].text, last.text, system, tuple(turns[:asked]),
        answer=_text(record, "answer", where, ""), source=_text(record, "source", where, ""),
        extra=_extra(record, "id", "domain", "difficulty"), reasoning=reasoning, between=tuple(turns[asked + 1 :]),
        calls=tuple(last.more.get("tool_calls", ())), tools=_tools(record, where), trained=last.trained,
    )  # fmt: skip


def _beside(record: Mapping, response: str, where: str) -> str:
    """Reasoning that stands beside the response in a record; "on" and "off" there are a switch (Nemotron)."""
    named = {name: value for name, value in record.items() if value not in ("on", "off")}
    return dialogue.apart(dialogue.reasoning(named, where), response, where)


def _tools(record: Mapping, where: str) -> tuple[Mapping, ...]:
    """The functions of `tools` or `functions`, a list or its JSON text, as chat templates take them."""
    value = record.get("tools") or record.get("functions") or ()
    value = dialogue.decoded(value, f"{where}: field 'tools'") if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise UserError(f"{where}: field 'tools' must be a list of objects, or the JSON text of one")
    found = tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in value)
    if not all(isinstance(tool["function"], Mapping) and tool["function"].get("name") for tool in found):
        raise UserError(f"{where}: every function of 'tools' needs a 'name'")
    return found


def _conversations(record: Mapping, where: str, evaluation: bool) -> Trace:
    return _dialogue(record, "conversations", where, evaluation)


def _messages(record: Mapping, where: str, evaluation: bool) -> Trace:
    return _dialogue(record, "messages", where, evaluation)


def _response(record: Mapping, where: str, default: str | None) -> str:
    """The output under the first of its names that the record has."""
    name = next((name for name in _OUTPUTS if record.get(name) is not None), _OUTPUTS[0])
    return _text(record, name, where, default)


def _memento(record: Mapping, where: str, evaluation: bool) -> Trace:
    response = _response(record, where, "" if evaluation or "block_summaries" in record else None)
    if BLOCK_START not in response and record.get("block_summaries"):
        response = _joined_blocks(record, where)
    try:
        memento_parts(response)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return Trace(
        _text(record, "problem", where), response, _text(record, "system", where, ""),
        answer=_text(record, "answer", where, ""), source=_text(record, "source", where, ""),
        extra=_extra(record, "id", "task_id", "domain", "difficulty"), reasoning=_beside(record, response, where),
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
        extra=_extra(record, "id"), reasoning=_beside(record, response, where),
    )  # fmt: skip


def _trajectory(record: Mapping, where: str, evaluation: bool) -> Trace:
    """A trajectory that manages a memory. It is kept whole in `extra`; the response is what was thought in it, and the
    answer, so that it can be read as a plain trace."""
    turns = record.get("turns")
    if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) for turn in turns):
        raise UserError(f"{where}: field 'turns' must be a list of objects")
    said = [_text(turn, "text", where, "") for turn in turns if not turn.get("why")]
    last = turns[-1] if turns else {}
    answer = _text(last, "content", where, "") if last.get("action") == "final_answer" else ""
    return Trace(
        _text(record, "question", where), "\n\n".join(text for text in (*said, answer) if text.strip()),
        _text(record, "system", where, ""), answer=_text(record, "gold", where, ""), extra={TRAJECTORY: dict(record)},
    )  # fmt: skip


def _plain(record: Mapping, where: str, evaluation: bool) -> Trace:
    if isinstance(record.get("thoughts"), str) and any(record.get(name) for name in _OUTPUTS):
        segments = ()  # reasoning beside a response, not thoughts that came cut
    else:
        segments, record = _texts(record, "thoughts", where), {**record, "thoughts": None}
    if not segments and not evaluation and not any(record.get(name) is not None for name in _OUTPUTS):
        fields = ", ".join(sorted(record))
        raise UserError(f"{where}: missing field 'response' or 'thoughts' (fields here: {fields})")
    response = _response(record, where, "") or "\n\n".join(segments)
    question = next((name for name in _QUESTIONS if record.get(name) is not None), _QUESTIONS[0])
    output = next((name for name in _OUTPUTS if record.get(name) is not None), _OUTPUTS[0])
    used = {"thoughts", "system", "answer", "source", question, output, *dialogue.REASONING}
    extra = {key: value for key, value in record.items() if key not in used and value is not None}
    answer = "" if evaluation else _text(record, "answer", where, "")
    if evaluation:
        answer, options = choices.read(record, where)
        extra |= {"choices": options} if options else {}
    return Trace(
        _text(record, question, where), response, _text(record, "system", where, ""), segments=segments,
        answer=answer, source=_text(record, "source", where, ""), extra=extra,
        reasoning=_beside(record, response, where),
    )  # fmt: skip


_OUTPUTS = ("response", "solution", "deepseek_solution", "deepseek_attempt")
_QUESTIONS = ("question", "question_stem", "ctx")  # of OpenBookQA, of HellaSwag

FORMATS: dict[str, Callable[[Mapping, str, bool], Trace]] = {
    "reference": _reference,
    "conversations": _conversations,
    "messages": _messages,
    "memento": _memento,
    TRAJECTORY: _trajectory,
    "plain": _plain,
}
_SIGNS = {
    "reference": ("thoughts_list", "gt_output"),
    "conversations": ("conversations",),
    "messages": ("messages",),
    "memento": ("problem",),
    TRAJECTORY: ("turns",),
    "plain": _QUESTIONS,
}
