"""A conversation as the tokenizer's own chat template writes it: prompts, and what an assistant's turns add to them.

A message is a dict as `apply_chat_template` takes it: `role`, `content`, and perhaps `reasoning`, `tool_calls`, `name`,
`tool_call_id`. What a template does not show is refused, but for the reasoning of earlier turns, which templates leave
out on purpose.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from lt_jax.errors import UserError
from lt_jax.layout import thinking
from lt_jax.layout.prompt import Prompt

_MARK = "\uf8fflt\uf8ff"  # stands for an assistant's text; private use, so that no real text has it
_REASONING = ("reasoning_content", "reasoning", "thinking")  # the names that templates look for
# Templates differ in what an empty turn beside tool calls should be (Qwen3's first: "", DeepSeek-R1's: None) and in
# whether arguments are an object (transformers' documentation) or its JSON text (DeepSeek-R1's).
_VARIANTS = (("", False), (None, False), ("", True), (None, True))


@dataclasses.dataclass(frozen=True)
class Reply:
    """A turn of the assistant's to lay out: what stands before it, and its text.

    Attributes:
        prompt: of the first reply the prompt; of a later one the text between the reply before and this one, which
            begins with what ends the reply before.
        text: what the assistant writes.
        closing: what closes reasoning that the prompt opens, where the template says.
        forgets: numbers of the replies whose reasoning the template no longer shows from this one on.
    """

    prompt: Prompt
    text: str
    closing: str | None = None
    forgets: tuple[int, ...] = ()


def render(tokenizer, messages: Sequence[dict], generate: bool = True, tools: Sequence[dict] = (), **options) -> str:
    """The text of `messages`, with `generate` ready for the assistant's turn.

    Raises:
        UserError: there is no template, it fails, or it does not show tools, their calls or their results.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("the tokenizer has no chat template; choose one of qwen, llama, plain")
    options = options | ({"tools": list(tools)} if tools else {})
    calls = any(message.get("tool_calls") for message in messages)
    wrong = None
    for empty, as_text in _VARIANTS if calls else _VARIANTS[:1]:
        shown = [_message(message, empty, as_text) for message in messages]
        try:
            text = tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=generate, **options)
        except Exception as error:  # the template is data and may raise anything
            wrong = wrong or f"the tokenizer's chat template fails on these messages: {' '.join(str(error).split())}"
            continue
        missing = _missing(text, shown, tools)
        if missing is None:
            return text
        wrong = f"the tokenizer's chat template does not show {missing}"
    raise UserError(wrong)


def _message(message: dict, empty: str | None, as_text: bool) -> dict:
    message = {name: value for name, value in message.items() if name != "reasoning"} | {
        name: message["reasoning"] for name in _REASONING if message.get("reasoning")
    }
    message["content"] = (message.get("content") or "").strip()
    if not message.get("tool_calls"):
        return message
    if as_text:
        message["tool_calls"] = [_arguments_as_text(call) for call in message["tool_calls"]]
    return message | {"content": message["content"] or empty}


def _arguments_as_text(call: dict) -> dict:
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        return call
    return call | {"function": function | {"arguments": json.dumps(arguments, ensure_ascii=False)}}


def _missing(text: str, messages: Sequence[dict], tools: Sequence[dict]) -> str | None:
    """What of tools, tool calls and tool results `text` does not have, for a message; None if all is there."""
    for tool in tools:
        name = (tool.get("function") or tool).get("name")
        if name not in text:
            return f"the tool {name!r} of 'tools'"
    for message in messages:
        calls = message.get("tool_calls") or ()
        for call in calls:
            if call["function"]["name"] not in text:
                return f"the tool call {call['function']['name']!r}"
        content = message.get("content") or ""
        content = content[thinking.length(content) :].strip()
        if (calls or message["role"] == "tool") and not _shows(text, content):
            return f"the text {content[:40]!r} " + ("beside a tool call" if calls else "of a tool's turn")
    return None


def _shows(text: str, content: str) -> bool:
    """Whether `text` has `content`, as it is or as a JSON text (Llama 3.1 writes results so)."""
    forms = (content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1])
    return any(form in text for form in forms)


def pieces(text: str, messages: Sequence[dict]) -> Prompt:
    """`text` cut at the contents of `messages`, in their order; the rest is the template's.

    Raises:
        UserError: a user's or system's text is not in it as it is.
    """
    found, start = [], 0
    for message in messages:
        content = (message.get("content") or "").strip()
        place = text.find(content, start)
        if place < 0 and message["role"] in ("user", "system"):
            raise UserError(f"the tokenizer's chat template does not show the {message['role']}'s text as it is")
        if place < 0 or not content:
            continue
        found += [(text[start:place], True), (content, False)]
        start = place + len(content)
    return Prompt(tuple(piece for piece in (*found, (text[start:], True)) if piece[0]))


def replies(tokenizer, messages: Sequence[dict], chosen: Sequence[int], tools: Sequence[dict] = ()) -> list[Reply]:
    """The assistant's turns `chosen` (places in `messages`, ascending) as they follow one another in one row.

    Every reply is what the model wrote when its turn came, reasoning included; the turns between two of them are as the
    template shows them afterwards. Where it no longer shows the reasoning of a reply (Qwen3 and DeepSeek-R1 leave that
    of earlier exchanges out), `Reply.forgets` says so, and its keys die there.

    Raises:
        UserError: what `render` raises; a turn cannot be told from what the template writes around it.
    """
    found: list[Reply] = []
    shown: list[tuple[int, str]] = []  # replies whose reasoning is still shown, and that reasoning
    last = None
    for place in chosen:
        before = list(messages[:place])
        text = render(tokenizer, before, tools=tools)
        if last is None:
            prompt = pieces(text, before)
        else:
            prompt = pieces(_between(tokenizer, before, last, text, tools), before[last + 1 :])
        gone = tuple(number for number, reasoning in shown if reasoning not in text)
        shown = [(number, reasoning) for number, reasoning in shown if number not in gone]
        said = written(tokenizer, before, messages[place], text, tools)
        reasoning = thinking.bare(said[: thinking.length(said)])
        if reasoning:
            shown.append((len(found), reasoning))
        found.append(Reply(prompt, said, no_thinking(tokenizer, before, text, tools), gone))
        last = place
    return found


def written(tokenizer, before: list[dict], message: dict, prompt: str, tools: Sequence[dict] = ()) -> str:
    """What the assistant writes in `message` after `prompt`, the text of `before`.

    A turn of text alone is its text. Reasoning and tool calls are as the template shows them between prompt and the
    end of the turn; reasoning that it does not show (DeepSeek-R1's shows none) is `thinking.joined`. Empty reasoning
    that a template adds by itself is left out.
    """
    content, reasoning = message.get("content") or "", (message.get("reasoning") or "").strip()
    if not reasoning and not message.get("tool_calls"):
        return content
    if not reasoning:
        size = thinking.length(content)
        reasoning, content = thinking.bare(content[:size]), content[size:]
        message = message | {"content": content, "reasoning": reasoning}
    here = thinking.opened(prompt)
    tags = (here.start, here.stop) if here else thinking.PAIRS[0]
    shown = _shown(tokenizer, before, message, prompt, here, tools)
    if shown is None and message.get("tool_calls"):
        raise UserError("the tokenizer's chat template does not write a turn with tool calls after its own prompt")
    if shown is not None and reasoning and reasoning in shown:
        return shown
    if not message.get("tool_calls"):
        shown = content
    else:
        shown = shown[thinking.length(shown) :]
    return thinking.joined(reasoning, shown, tags) if reasoning else shown


def _shown(tokenizer, before, message, prompt, here, tools) -> str | None:
    """The text between `prompt` (or its opened tag) and the end of the turn; None where that cannot be told."""
    whole = render(tokenizer, [*before, message], generate=False, tools=tools)
    marked = render(tokenizer, [*before, {"role": "assistant", "content": _MARK}], generate=False, tools=tools)
    _, mark, ending = marked.rpartition(_MARK)
    if not mark or not whole.endswith(ending):
        return None
    whole = whole[: len(whole) - len(ending)]
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    if here is not None:
        bare = prompt[: prompt.rindex(here.start)]
        if whole.startswith(bare):
            return whole[len(bare) :]
    return None


def _between(tokenizer, before: list[dict], last: int, text: str, tools) -> str:
    """What `text`, the prompt after `before`, has after the assistant's turn `last`, from the end of that turn on."""
    try:
        marked = render(
            tokenizer, [*before[:last], {"role": "assistant", "content": _MARK}, *before[last + 1 :]], tools=tools
        )
    except UserError:  # a template that wants a call before a tool's turn
        marked = ""
    _, mark, after = marked.rpartition(_MARK)
    if mark and text.endswith(after):
        return after
    whole = render(tokenizer, before[: last + 1], generate=False, tools=tools)
    ended = render(tokenizer, [*before[:last], {"role": "assistant", "content": _MARK}], generate=False, tools=tools)
    _, mark, ending = ended.rpartition(_MARK)
    if mark and whole.endswith(ending) and text.startswith(whole):
        return ending + text[len(whole) :]
    raise UserError(
        "the tokenizer's chat template writes an assistant's turn otherwise once others follow, so its turns cannot be "
        "trained in one row; leave data.turns at 'last'"
    )


def no_thinking(tokenizer, before: list[dict], prompt: str, tools: Sequence[dict] = ()) -> str | None:
    """What the template closes reasoning with that `prompt` opens, if it has the switch `enable_thinking`."""
    if thinking.opened(prompt) is None:
        return None
    try:
        without = render(tokenizer, before, tools=tools, enable_thinking=False)
    except UserError:
        return None
    return without[len(prompt) :] if without.startswith(prompt) and without != prompt else None
