"""Reasoning between tags: where a response has it, where a prompt opens it, and how the two are made to fit.

    prompt ends          response starts     the row reads
    assistant:           <think>\\nr          assistant:<think>\\nr
    assistant:<think>\\n  <think>\\nr          assistant:<think>\\nr                    the tag is written once
    assistant:<think>\\n  r\\n</think>\\n\\na    assistant:<think>\\nr\\n</think>\\n\\na
    assistant:<think>\\n  a (no reasoning)    assistant:<think>\\n\\n</think>\\n\\na       what was opened is closed
    assistant:           r\\n</think>\\n\\na    assistant:<think>\\nr\\n</think>\\n\\na     what is closed was opened

A prompt for decoding is the same prompt, so what a response has to write to fit it is trained, the closing tag too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

PAIRS = (
    ("<think>", "</think>"),  # Qwen3, QwQ, DeepSeek-R1 and most others
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, Bespoke-Stratos
)


@dataclasses.dataclass(frozen=True)
class Opened:
    """Reasoning that the end of a prompt opens: its tags, and the white space after the first."""

    start: str
    stop: str
    space: str

    @property
    def closing(self) -> str:
        """What closes it at once, as Qwen3's template writes reasoning that is empty."""
        block = f"{self.start}\n\n{self.stop}\n\n"
        head = self.start + self.space
        return block[len(head) :] if block.startswith(head) else f"{self.stop}\n\n"


def opened(prompt: str) -> Opened | None:
    """The reasoning that the end of `prompt` opens, None if it opens none."""
    bare = prompt.rstrip()
    for start, stop in PAIRS:
        if bare.endswith(start):
            return Opened(start, stop, prompt[len(bare) :])
    return None


def length(response: str) -> int:
    """How many characters of `response` are its reasoning: up to its closing tag and the white space after that.

    Reasoning stands at the start; its opening tag may be missing, if the prompt wrote it. 0 if there is none.
    """
    for start, stop in PAIRS:
        head, closed, rest = response.partition(stop)
        before, opens, _ = head.partition(start)
        if closed and not (opens and before.strip()):  # not opened in the midst of a text
            return len(response) - len(rest.lstrip())
    return 0


def bare(block: str) -> str:
    """Reasoning without its tags and the white space around it."""
    for tag in (tag for pair in PAIRS for tag in pair):
        block = block.replace(tag, "")
    return block.strip()


def starts_open(response: str) -> bool:
    """Whether `response` opens reasoning at its start and never closes it, as one that was cut off does."""
    return any(response.lstrip().startswith(start) and stop not in response for start, stop in PAIRS)


def joined(reasoning: str, content: str, tags: tuple[str, str] = PAIRS[0]) -> str:
    """Reasoning and what was said after it as one response, in the way that Qwen3's template writes them."""
    inner, rest = reasoning.strip("\n"), content.lstrip("\n")
    return f"{tags[0]}\n{inner}\n{tags[1]}\n\n{rest}"


def fitted(prompt: str, pieces: Sequence[str], closing: str | None = None) -> tuple[str, list[str]]:
    """Makes the start of a response fit the end of its prompt, see the top of this file.

    Args:
        prompt: text of the prompt, or its end.
        pieces: the response, whole or cut into thoughts.
        closing: what the model's own template closes reasoning with that its prompt opens; None for `Opened.closing`.

    Returns:
        (put, pieces): text that goes before the response, and the response without a tag that the prompt has written.
        Other tags than the prompt's are exchanged for the prompt's.
    """
    pieces, here, whole = list(pieces), opened(prompt), "".join(pieces)
    theirs = next((pair for pair in PAIRS if whole.lstrip().startswith(pair[0])), None)
    if here is None:
        stop = next((pair for pair in PAIRS if pair[1] in whole), None) if theirs is None else None
        opens = stop is not None and stop[0] not in whole[: whole.index(stop[1])]
        return (f"{stop[0]}\n" if opens else ""), pieces
    if theirs is None:
        inside = here.stop in whole and here.start not in whole[: whole.index(here.stop)]
        return ("" if inside else here.closing if closing is None else closing), pieces
    while not pieces[0].strip():
        pieces.pop(0)
    rest = pieces[0].lstrip()[len(theirs[0]) :]
    pieces[0] = rest[len(os.path.commonprefix([rest, here.space])) :]
    if len(pieces) > 1 and not pieces[0].strip():
        pieces.pop(0)
    if theirs[1] != here.stop:
        place = next((i for i, piece in enumerate(pieces) if theirs[1] in piece), None)
        if place is not None:
            pieces[place] = pieces[place].replace(theirs[1], here.stop, 1)
    return "", pieces
