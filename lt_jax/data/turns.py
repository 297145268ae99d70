"""Turns of a conversation, in the shapes in which public data sets keep them.

    {"role", "content"}                               chat messages (OpenAI, transformers)
    {"from", "value"}                                 ShareGPT; {"from": "function_call"} is an assistant's call
    "content": null or "" beside "tool_calls"         an assistant that calls tools
    "content": [{"type": "text" | "thinking" | ...}]  content in parts
    reasoning beside the content                      see `REASONING`
    "train", "weight", "loss", ...                    whether an assistant's turn is trained, see `FLAGS`

Everything that a turn says is read, or refused in one line. What is no text of the turn (an id, a time) is not read;
the names of such fields are kept, so that a run can say what it left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lt_jax.errors import UserError

ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant",
    "bot": "assistant", "model": "assistant", "ai": "assistant", "system": "system", "developer": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "function_response": "tool",
    "tool_response": "tool", "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
CALLING = ("function_call", "tool_call")  # roles whose text is the call
REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "reasoning_text", "cot")
FLAGS = ("train", "trained", "weight", "loss", "loss_mask", "loss_weight")
_TEXT_PARTS = {"text": "text", "output_text": "text", "input_text": "text"}
_REASONING_PARTS = {"thinking": "thinking", "reasoning": "text", "reasoning_text": "text"}
_READ = {"role", "from", "content", "value", "tool_calls", "function_call", "name", "tool_call_id", *REASONING, *FLAGS}


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one side says at a time.

    Attributes:
        role: "user", "assistant", "system" or "tool".
        text: what is said.
        reasoning: what the assistant thought before, where the data keep it apart.
        calls: the assistant's tool calls, as chat templates take them: {"type": "function", "function": {"name",
            "arguments"}}, arguments as an object where they are one.
        name: of a tool; call: id of the call that a tool answers.
        train: whether the data say that the turn is trained, or None if they do not say.
    """

    role: str
    text: str = ""
    reasoning: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    name: str = ""
    call: str = ""
    train: bool | None = None

    @property
    def empty(self) -> bool:
        """Nothing is said, thought or called."""
        return not (self.text.strip() or self.reasoning.strip() or self.calls)

    def message(self) -> dict[str, Any]:
        """The turn as chat templates take it."""
        out: dict[str, Any] = {"role": self.role, "content": self.text.strip()}
        if self.reasoning:
            out["reasoning_content"] = self.reasoning.strip()
        if self.calls:
            out["tool_calls"] = [dict(call) for call in self.calls]
        if self.name:
            out["name"] = self.name
        if self.call:
            out["tool_call_id"] = self.call
        return out


def read_turn(given: Any, where: str) -> tuple[Turn, list[str]]:
    """A turn, and the names of its fields that are not read.

    Raises:
        UserError: it is no object, its role is unknown, or it has something that cannot be trained on or shown.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"{where} must be an object with 'role' and 'content' (or 'from' and 'value')")
    role_key = next((key for key in ("role", "from") if given.get(key) is not None), None)
    if role_key is None:
        fields = ", ".join(map(str, given)) or "none"
        raise UserError(f"{where}: missing field 'role' or 'from' (fields here: {fields})")
    named = given[role_key]
    if not isinstance(named, str) or named.lower() not in ROLES:
        raise UserError(f"{where}: unknown role {named!r}; known are {', '.join(ROLES)}")
    text, thought, calls = _content(given, where)
    calls += _calls(given.get("tool_calls"), where)
    if given.get("function_call"):
        calls += _calls([given["function_call"]], where)
    if named.lower() in CALLING:
        text, calls = "", [*calls, *_calls([text], where)]
    reasoning = [thought] if thought else []
    reasoning += [found for key in REASONING if (found := reasoning_text(given.get(key), f"{where}: {key!r}"))]
    turn = Turn(
        ROLES[named.lower()], text, _only(reasoning, where), tuple(calls), _name(given, "name", where),
        _name(given, "tool_call_id", where), _flag(given, where),
    )  # fmt: skip
    if turn.role != "assistant" and (turn.calls or turn.reasoning):
        what = "tool calls" if calls else "reasoning"
        raise UserError(f"{where}: a {turn.role} turn with {what}; only an assistant's has such")
    return turn, [str(key) for key, value in given.items() if key not in _READ and value not in (None, "", [], {})]


def reasoning_text(value: Any, where: str) -> str:
    """Reasoning as data keep it: a text, a list of texts, or objects with a text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        for key in ("thinking", "text", "content", "summary"):
            if value.get(key) is not None:
                return reasoning_text(value[key], where)
    if isinstance(value, Sequence):
        return "\n\n".join(text for part in value if (text := reasoning_text(part, where)))
    raise UserError(f"{where} must be a text or a list of texts, not {type(value).__name__}")


def _only(found: list[str], where: str) -> str:
    different = list(dict.fromkeys(text.strip() for text in found if text.strip()))
    if len(different) > 1:
        raise UserError(f"{where}: two different reasonings beside one content; keep one of {', '.join(REASONING)}")
    return different[0] if different else ""


def _content(given: Mapping, where: str) -> tuple[str, str, list]:
    """(text, reasoning, tool calls) of the content."""
    key = "content" if "content" in given else "value"
    content = given.get(key)
    calling = given.get("tool_calls") or given.get("function_call") or any(given.get(name) for name in REASONING)
    if content is None:
        if key not in given and not calling:
            raise UserError(f"{where}: missing field 'content' or 'value' (fields here: {', '.join(map(str, given))})")
        return "", "", []
    if isinstance(content, str):
        return content, "", []
    if isinstance(content, Mapping) and ROLES.get(str(given.get("role", given.get("from"))).lower()) == "tool":
        return json.dumps(content, ensure_ascii=False), "", []
    if not isinstance(content, Sequence):
        raise UserError(f"{where}: field {key!r} must be text, a list of parts or null, not {type(content).__name__}")
    texts, reasoning, calls = [], [], []
    for part in content:
        kind = "text" if isinstance(part, str) else part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in _REASONING_PARTS:
            reasoning.append(reasoning_text(part.get(_REASONING_PARTS[kind], part.get("text")), where))
        elif kind == "tool_use":
            calls += _calls([{"name": part.get("name"), "arguments": part.get("input")}], where)
        else:
            raise UserError(
                f"{where}: a part of {key!r} is of type {kind!r}; only texts, reasoning and tool calls can be used"
            )
    return "".join(texts), "\n\n".join(reasoning), calls


def _calls(given: Any, where: str) -> list[Mapping[str, Any]]:
    """Tool calls in the form that chat templates take."""
    if given is None:
        return []
    if isinstance(given, str):
        given = _json(given, where)
    if not isinstance(given, Sequence):
        raise UserError(f"{where}: tool calls must be a list, not {type(given).__name__}")
    found = []
    for call in given:
        call = _json(call, where) if isinstance(call, str) else call
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise UserError(f"{where}: a tool call must be an object with the 'name' of a function, not {call!r:.80}")
        arguments = inner.get("arguments", inner.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments) if arguments.strip() else {}
            except ValueError:
                pass  # a call that was written so is trained so
        own = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        found.append({**own, "type": "function", "function": {"name": inner["name"], "arguments": arguments}})
    return found


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise UserError(f"{where}: a tool call is not JSON: {text[:60]!r}") from None


def _name(given: Mapping, field: str, where: str) -> str:
    value = given.get(field)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: field {field!r} must be text, not {type(value).__name__}")
    return value or ""


def _flag(given: Mapping, where: str) -> bool | None:
    said = {key: given[key] for key in FLAGS if given.get(key) is not None}
    values = {bool(value) for value in said.values() if value in (0, 1)}
    bad = any(not isinstance(value, bool | int | float) or value not in (0, 1) for value in said.values())
    if len(values) > 1 or bad:
        named = ", ".join(f"{key}: {value!r}" for key, value in said.items())
        raise UserError(f"{where}: {named}; whether a turn is trained must be one of true, false, 1 and 0")
    return values.pop() if values else None
