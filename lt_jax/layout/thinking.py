"""Where a prompt ends and a response begins: tags around reasoning, each opened once and closed once.

Some chat templates end the prompt with an opened tag (DeepSeek-R1, Qwen3-Thinking: `<think>` and a newline), and most
traces begin with that tag themselves. One after the other they would read `<think><think>`; and a trace without
reasoning would leave the template's tag open for ever. `fitted` makes the two fit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",
    "<|begin_of_thought|>": "<|end_of_thought|>",
}
_OPENED = re.compile("(" + "|".join(map(re.escape, TAGS)) + r")(\s*)$")


def joined(reasoning: str, response: str) -> str:
    """Reasoning that is kept apart and the response, as models write the two: `<think>`, the reasoning, `</think>`."""
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{response.strip()}"


def fitted(prompt: str, pieces: Sequence[str]) -> list[str]:
    """The pieces of a response (thoughts, or the whole) as they go on from the end of `prompt`.

        prompt ends in     response                        goes on as
        <think>\\n         <think>\\nso\\n</think>\\n\\n4      so\\n</think>\\n\\n4
        <think>\\n         so\\n</think>\\n\\n4               the same
        <think>\\n         4                               \\n</think>\\n\\n4     (the empty thought of Qwen3)
        anything else      anything                        the same
    """
    opened = _OPENED.search(prompt)
    if opened is None or not pieces:
        return list(pieces)
    tag, space = opened.groups()
    first, *rest = pieces
    if first.lstrip().startswith(tag):
        first = first.lstrip()[len(tag) :]
        return [first.lstrip("\n") if "\n" in space else first, *rest]
    if TAGS[tag] in "".join(pieces):
        return [first.lstrip("\n") if "\n" in space else first, *rest]
    newline = "" if space.count("\n") > 1 else "\n"
    return [f"{newline}{TAGS[tag]}\n\n{first}", *rest]
