"""Chat prompts: the reference's two templates, the tokenizer's own, and none.

Each function gives a `Prompt` in pieces, so that a compressed prompt can keep its template. A prompt's text begins with
the template's own BOS where it has one; it is tokenised without adding another.
"""

from __future__ import annotations

from collections.abc import Sequence

from lt_jax.layout import template
from lt_jax.layout.prompt import Prompt

BOXED = "Return your final response within \\boxed{}. "  # the reference puts this before every question


def qwen(question: str, system: str = "") -> Prompt:
    """ChatML as LightThinker's Qwen models were trained with; end of turn `<|im_end|>`. No system turn if empty."""
    turn = "<|im_start|>system\n", "<|im_end|>\n"
    return _prompt(turn, system, "<|im_start|>user\n", question, "<|im_end|>\n<|im_start|>assistant\n")


def llama(question: str, system: str = "") -> Prompt:
    """Llama 3's headers as LightThinker's Llama models were trained with; end of turn `<|eot_id|>`."""
    head = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    prompt = _prompt(
        (head("system"), "<|eot_id|>"), system, head("user"), question, "<|eot_id|>" + head("assistant")
    )
    return Prompt((("<|begin_of_text|>", True), *prompt.pieces))


def plain(question: str, system: str = "") -> Prompt:
    """No template: the system text, then the question."""
    return Prompt(tuple((text, False) for text in (system, question) if text))


CHATS = {"qwen": qwen, "llama": llama, "plain": plain}


def own(tokenizer, messages: Sequence[dict], tools: Sequence[dict] = (), **options) -> Prompt:
    """The tokenizer's own chat template over `messages` (see `layout.template`), ready for the assistant's turn.

    Args:
        tokenizer: a `transformers` tokenizer with a chat template.
        tools: descriptions of functions, as `apply_chat_template` takes them.
        options: passed to `apply_chat_template`, such as `enable_thinking`.

    Raises:
        UserError: there is no template, it fails, or it does not show a user's or system's text as it is.
    """
    return template.pieces(template.template_of(tokenizer, messages, tools)(messages, **options), messages)


def _prompt(turn, system, before, question, after) -> Prompt:
    opening, ending = turn
    if not system:
        return Prompt(((before, True), (question, False), (after, True)))
    return Prompt(((opening, True), (system, False), (ending + before, True), (question, False), (after, True)))
