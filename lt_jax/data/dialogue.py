"""The turns of a conversation, and the many ways in which public data write one.

    {"role": "assistant", "content": "4"}            also "from" and "value", under `messages` or `conversations`
    ... "reasoning_content": "2 and 2"               or another name of `REASONING`
    ... "content": [{"type": "thinking", "thinking": "2 and 2"}, {"type": "text", "text": "4"}]
    ... "content": null, "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]
    ... "train": false                               or "weight": 0, "loss": 0: see `Turn.trained`
    {"role": "tool", "content": "4"}                 also "from": "observation"

Whatever else a turn carries in words is refused, so that nothing is dropped without a word.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lt_jax.data.fields import text
from lt_jax.errors import UserError
from lt_jax.layout import thinking

REASONING = (
    "reasoning_content", "reasoning", "thinking", "thinking_content", "think", "thought", "thoughts", "cot",
    "chain_of_thought", "reasoning_details", "thinking_blocks", "deepseek_reasoning", "deepseek_thinking_trajectory",
)  # fmt: skip
ROLES = {role: role for role in ("user", "assistant", "system", "tool")} | {
    "human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "developer": "system", "observation": "tool", "function": "tool", "ipython": "tool", "tool_response": "tool",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
_CALLING = ("function_call", "tool_call")  # LLaMA-Factory: the value of such a turn is the call, as JSON
_FLAGS = ("train", "trained", "training", "loss", "weight")
_CALLS = ("tool_calls", "function_call")
_READ = ("role", "from", "content", "value", *REASONING, *_FLAGS, *_CALLS, "name", "tool_call_id")
# What says something about a turn and is no part of it.
_ABOUT = ("id", "uuid", "timestamp", "created_at", "date", "model", "source", "metadata", "meta", "info", "usage")
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text"}
_REASONING_PARTS = {"thinking": "thinking", "reasoning": "text", "reasoning.text": "text", "thought": "text"}


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: "user", "assistant", "system" or "tool".
        text: what was said.
        reasoning: what an assistant thought before, where the data keep it apart from the text.
        trained: whether the data want this turn trained (flags of Axolotl and OpenAI); None if they do not say.
        more: what else a chat template may show: `tool_calls`, `name`, `tool_call_id`, as JSON values.
    """

    role: str
    text: str = ""
    reasoning: str = ""
    trained: bool | None = None
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def message(self) -> dict[str, Any]:
        """The turn as `layout.template` takes it."""
        return {"role": self.role, "content": self.text, "reasoning": self.reasoning, **self.more}


def turns(listed, field: str, where: str) -> list[Turn]:
    """The turns of a record's list `field`. UserError, naming the turn, for anything that is not understood."""
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise UserError(f"{where}: field {field!r} must be a list of turns")
    found = []
    for number, value in enumerate(listed):
        spot = f"{where}: turn {number} of {field!r}"
        if not isinstance(value, Mapping):
            raise UserError(f"{spot} must be an object with 'role' and 'content', or 'from' and 'value'")
        found += _turns(value, spot)
    return found


def _turns(turn: Mapping, spot: str) -> list[Turn]:
    """One turn; results of tools inside a user's turn (Anthropic) come before it as turns of their own."""
    key = "from" if turn.get("role") is None and "from" in turn else "role"
    named = text(turn, key, spot)
    if named not in ROLES:
        raise UserError(f"{spot}: unknown role {named!r}; known are {', '.join(ROLES)}")
    role = ROLES[named]
    for name, value in turn.items():
        words = " " in value.strip() if isinstance(value, str) else value and isinstance(value, Mapping | list | tuple)
        if words and name not in (*_READ, *_ABOUT):
            raise UserError(f"{spot} has a field {name!r}, which would not be used; leave it out, or name it "
                            "'content', or 'reasoning_content' if it is what the assistant thought")  # fmt: skip
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    calls = _calls(turn, spot)
    if named in _CALLING:
        calls, content = [*calls, *_calls({"tool_calls": content}, spot)], None
    if role == "tool" and not isinstance(content, str) and not _typed(content):
        content = None if content is None else json.dumps(content, ensure_ascii=False)
    said, thought, used, results = _parts(content, spot)
    calls += used
    if content is None and not calls:
        text(turn, "content" if key == "role" else "value", spot)  # says that it is missing
    thought = reasoning(turn, spot, thought)
    if thought and role != "assistant":
        raise UserError(f"{spot}: a {role}'s turn has reasoning; only the assistant's can")
    if calls and role != "assistant":
        raise UserError(f"{spot}: a {role}'s turn has tool calls; only the assistant's can")
    trained = _flag(turn, spot)
    if trained and role != "assistant":
        raise UserError(f"{spot}: a {role}'s turn is marked as trained; only the assistant's can be")
    more = {name: turn[name] for name in ("name", "tool_call_id") if turn.get(name)}
    more |= {"tool_calls": calls} if calls else {}
    own = Turn(role, said, apart(thought, said, spot), trained, more)
    return [*results, own] if said or not results else results


def reasoning(record: Mapping, where: str, other: str = "") -> str:
    """The reasoning that a turn or a record keeps under a name of `REASONING`, or has in a list of parts (`other`).

    Raises:
        UserError: it is no text, or there are two that differ.
    """
    found = {"content": other} if other else {}
    for name in REASONING:
        value = record.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, Mapping):
            value = [value]
        if isinstance(value, list | tuple):
            said, thought, *_ = _parts(value, f"{where}: {name!r}")
            value = said + thought
        if not isinstance(value, str):
            raise UserError(f"{where}: field {name!r} must be text, not {type(value).__name__}")
        if value.strip():
            found[name] = value
    if len({value.strip() for value in found.values()}) > 1:
        raise UserError(f"{where}: reasoning stands in {' and in '.join(map(repr, found))}, and they differ; keep one")
    return next(iter(found.values()), "")


def apart(thought: str, said: str, where: str) -> str:
    """The reasoning that is not in the text as well; UserError if the text has other reasoning between tags."""
    inside = thinking.bare(said[: thinking.length(said)])
    if not thought or not inside:
        return thought
    if inside != thought.strip():
        raise UserError(f"{where}: the text has reasoning between tags and other reasoning stands beside it; keep one")
    return ""


def _typed(content) -> bool:
    """Whether a turn's content is a list of typed parts, and not a tool's result that is a list or an object itself."""
    listed = content if isinstance(content, list | tuple) else [content]
    return all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in listed)


def _parts(content, spot: str) -> tuple[str, str, list[dict], list[Turn]]:
    """(text, reasoning, tool calls, results of tools) of a turn's content, which may be a list of typed parts."""
    if content is None or isinstance(content, str):
        return content or "", "", [], []
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list | tuple):
        raise UserError(f"{spot}: its content must be text or a list of parts, not {type(content).__name__}")
    said, thought, calls, results = [], [], [], []
    for part in content:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _TEXT_PARTS:
            said.append(text(part, _TEXT_PARTS[kind], spot))
        elif kind in _REASONING_PARTS:
            field = next((name for name in (_REASONING_PARTS[kind], "text", kind) if part.get(name)), "text")
            value = part.get(field) if isinstance(part.get(field), str) else _parts(part.get(field), spot)[0]
            thought.append(value)
        elif kind == "tool_use":
            calls += _calls({"tool_calls": {**part, "arguments": part.get("input")}}, spot)
        elif kind == "tool_result":
            more = {"tool_call_id": part["tool_use_id"]} if part.get("tool_use_id") else {}
            results.append(Turn("tool", _parts(part.get("content"), spot)[0], more=more))
        else:
            raise UserError(f"{spot}: a part of type {kind!r} cannot be used; "
                            "text, thinking, reasoning, tool_use and tool_result can")  # fmt: skip
    return "".join(said), "\n\n".join(thought), calls, results


def _calls(turn: Mapping, spot: str) -> list[dict]:
    """Tool calls as chat templates take them: {"type", "function": {"name", "arguments"}}, perhaps with "id"."""
    listed = turn.get("tool_calls") or turn.get("function_call") or []
    if isinstance(listed, str):
        listed = decoded(listed, f"{spot}: its tool calls")
    listed = [listed] if isinstance(listed, Mapping) else listed
    found = []
    for call in listed:
        function = (call.get("function") or call) if isinstance(call, Mapping) else None
        if isinstance(function, str):  # TRL's short form {"function": "name", "arguments": {}}
            function = {**call, "name": function}
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise UserError(f"{spot}: a tool call must be an object with the 'name' of a function and its 'arguments'")
        arguments = function.get("arguments", function.get("parameters"))
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError):  # a model's own broken call is kept as it was written
                arguments = json.loads(arguments)
        arguments = {} if arguments is None else arguments
        own = {"id": call["id"]} if call.get("id") else {}
        found.append({**own, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return found


def decoded(value: str, where: str):
    """The JSON value of a text, as data sets keep what has no fixed fields."""
    try:
        return json.loads(value)
    except ValueError as error:
        raise UserError(f"{where} must be JSON: {error}") from None


def _flag(turn: Mapping, spot: str) -> bool | None:
    found = set()
    for name in _FLAGS:
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise UserError(f"{spot}: {name!r} is {value!r}; it must be 0 or false (not trained), or 1 or true")
        found.add(bool(value))
    if len(found) > 1:
        given = " and ".join(repr(name) for name in _FLAGS if turn.get(name) is not None)
        raise UserError(f"{spot}: {given} say different things; keep one")
    return found.pop() if found else None
