"""A conversation as the tokenizer's own chat template writes it: prompts, and what an assistant's turns add to them.

A message is a dict as `apply_chat_template` takes it: `role`, `content`, and perhaps `reasoning`, `tool_calls`, `name`,
`tool_call_id`. What a template does not show is refused, but for the reasoning of earlier turns, which templates leave
out on purpose.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from lt_jax.errors import UserError
from lt_jax.layout import thinking
from lt_jax.layout.prompt import Prompt

_MARK = "zQx{}xQz"  # stands for a text, to see whether and where a template shows it
_TURN = _MARK.format("T")
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


@dataclasses.dataclass(frozen=True)
class Template:
    """A tokenizer's chat template with the tools of a conversation, and how it wants tool calls (`_VARIANTS`)."""

    tokenizer: Any
    tools: Sequence[dict] = ()
    empty: str | None = ""
    as_text: bool = False

    def __call__(self, messages: Sequence[dict], generate: bool = True, **options) -> str:
        """The text of `messages`, with `generate` ready for the assistant's turn. UserError if the template fails."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise UserError("the tokenizer has no chat template; choose one of qwen, llama, plain")
        options = options | ({"tools": list(self.tools)} if self.tools else {})
        shown = [_message(message, self.empty, self.as_text) for message in messages]
        try:
            return self.tokenizer.apply_chat_template(
                shown, tokenize=False, add_generation_prompt=generate, **options
            )
        except Exception as error:  # the template is data and may raise anything
            reason = " ".join(str(error).split())
            raise UserError(f"the tokenizer's chat template fails on these messages: {reason}") from error


def template_of(tokenizer, messages: Sequence[dict], tools: Sequence[dict] = ()) -> Template:
    """The tokenizer's template in the variant that shows the tools, calls and results of `messages`.

    Raises:
        UserError: there is none, it fails, or it does not show one of them.
    """
    first = Template(tokenizer, tools)
    if not tools and all(message["role"] != "tool" and not message.get("tool_calls") for message in messages):
        return first
    marked, marked_tools, marks = _marked(messages, tools)
    wrong = None
    for empty, as_text in _VARIANTS:
        try:
            text = Template(tokenizer, marked_tools, empty, as_text)(marked, generate=False)
        except UserError as error:
            wrong = wrong or error
            continue
        missing = [what for mark, what in marks.items() if mark not in text]
        if not missing:
            return Template(tokenizer, tools, empty, as_text)
        wrong = UserError(f"the tokenizer's chat template does not show {missing[0]}")
    raise wrong


def _marked(messages, tools) -> tuple[list[dict], list[dict], dict[str, str]]:
    """`messages` and `tools` with marks for what must be shown, and what each mark stands for."""
    marks: dict[str, str] = {}

    def mark(what: str) -> str:
        marks[_MARK.format(len(marks))] = what
        return list(marks)[-1]

    found, found_tools = [], []
    for tool in tools:
        function = tool["function"]
        found_tools.append(tool | {"function": function | {"name": mark(f"the tool {function['name']!r} of 'tools'")}})
    for message in messages:
        content = message.get("content") or ""
        content, calls = content[thinking.length(content) :].strip(), message.get("tool_calls") or ()
        if content and (calls or message["role"] == "tool"):
            where = "beside a tool call" if calls else "of a tool's turn"
            message = message | {"content": mark(f"the text {content[:40]!r} {where}")}
        if calls:
            named = [
                call | {"function": call["function"] | {"name": mark(f"the tool call {call['function']['name']!r}")}}
                for call in calls
            ]
            message = message | {"tool_calls": named}
        found.append(message)
    return found, found_tools, marks


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
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return call | {"function": function | {"arguments": text}}


def pieces(text: str, messages: Sequence[dict]) -> Prompt:
    """`text` cut at the contents of `messages`, in their order; the rest is the template's.

    Raises:
        UserError: a user's or system's text is not in it as it is.
    """
    contents = [(message.get("content") or "").strip() for message in messages]
    needed = [message["role"] in ("user", "system") for message in messages]
    found, start = [], 0
    for number, content in enumerate(contents):
        place = text.find(content, start)
        if place < 0 and needed[number]:
            raise UserError(
                f"the tokenizer's chat template does not show the {messages[number]['role']}'s text as it is"
            )
        # What need not be shown may still be found by chance, in a later text: not where that hides one that is needed.
        later = next((contents[after] for after in range(number + 1, len(contents)) if needed[after]), "")
        hides = not needed[number] and place >= 0 and text.find(later, place + len(content)) < 0
        if place < 0 or not content or hides:
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
        UserError: what `template_of` raises; a turn cannot be told from what the template writes around it.
    """
    template = template_of(tokenizer, messages, tools)
    found: list[Reply] = []
    shown: list[tuple[int, str]] = []  # replies whose reasoning is still shown, and that reasoning
    last = None
    for place in chosen:
        before, message = list(messages[:place]), messages[place]
        text = template(before)
        if last is None:
            prompt = pieces(text, before)
        else:
            prompt = pieces(_between(template, before, last, text), before[last + 1 :])
        gone = tuple(number for number, reasoning in shown if reasoning not in text)
        shown = [(number, reasoning) for number, reasoning in shown if number not in gone]
        said = written(template, before, message, text)
        reasoning = (message.get("reasoning") or "").strip() or thinking.bare(said[: thinking.length(said)])
        if reasoning:
            shown.append((len(found), reasoning))
        found.append(Reply(prompt, said, no_thinking(template, before, text), gone))
        last = place
    return found


def written(template: Template, before: list[dict], message: dict, prompt: str) -> str:
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
    shown = _shown(template, before, message, prompt, here)
    if shown is None and message.get("tool_calls"):
        raise UserError("the tokenizer's chat template does not write a turn with tool calls after its own prompt")
    if shown is not None and reasoning and reasoning in shown:
        return shown
    if not message.get("tool_calls"):
        shown = content
    else:
        shown = shown[thinking.length(shown) :]
    return thinking.joined(reasoning, shown, tags) if reasoning else shown


def _shown(template, before, message, prompt, here) -> str | None:
    """The text between `prompt` (or its opened tag) and the end of the turn; None where that cannot be told."""
    whole = template([*before, message], generate=False)
    mark, ending = _after_mark(template([*before, {"role": "assistant", "content": _TURN}], generate=False))
    if not mark or not whole.endswith(ending):
        return None
    whole = whole[: len(whole) - len(ending)]
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    bare = prompt[: prompt.rindex(here.start)] if here else prompt
    return whole[len(bare) :] if whole.startswith(bare) else None


def _between(template, before: list[dict], last: int, text: str) -> str:
    """What `text`, the prompt after `before`, has after the assistant's turn `last`, from the end of that turn on."""
    turn = {"role": "assistant", "content": _TURN}
    try:
        mark, after = _after_mark(template([*before[:last], turn, *before[last + 1 :]]))
    except UserError:  # a template that wants a call before a tool's turn
        mark, after = False, ""
    if mark and text.endswith(after):
        return after
    whole = template(before[: last + 1], generate=False)
    mark, ending = _after_mark(template([*before[:last], turn], generate=False))
    if mark and whole.endswith(ending) and text.startswith(whole):
        return ending + text[len(whole) :]
    raise UserError(
        "the tokenizer's chat template writes an assistant's turn otherwise once others follow, so its turns cannot be "
        "trained in one row; leave data.turns at 'last'"
    )


def _after_mark(text: str) -> tuple[bool, str]:
    _, mark, after = text.rpartition(_TURN)
    return bool(mark), after


def no_thinking(template: Template, before: list[dict], prompt: str) -> str | None:
    """What the template closes reasoning with that `prompt` opens, if it has the switch `enable_thinking`."""
    if thinking.opened(prompt) is None:
        return None
    try:
        without = template(before, enable_thinking=False)
    except UserError:
        return None
    return without[len(prompt) :] if without.startswith(prompt) and without != prompt else None
