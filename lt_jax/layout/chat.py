"""Chat prompts: the reference's two templates, the tokenizer's own, and none.

Each function gives a `Prompt` in pieces, so that a compressed prompt can keep its template. A prompt's text begins with
the template's own BOS where it has one; it is tokenised without adding another.
"""

from __future__ import annotations

from collections.abc import Sequence

from lt_jax.errors import UserError
from lt_jax.layout import template
from lt_jax.layout.encode import encoder
from lt_jax.layout.prompt import Prompt

BOXED = "Return your final response within \\boxed{}. "  # the reference puts this before every question
# Sparse-RL's release puts this after every question, for Qwen and Llama alike, with `HELPFUL` as the system turn. The
# braces are doubled in its data.
STEP_BY_STEP = "\nPlease reason step by step, and put your final answer within \\boxed{{}}."
HELPFUL = "You are a helpful assistant."


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


def plain(question: str, system: str = "", bos: str = "") -> Prompt:
    """No template: the system text, then the question; before them the tokenizer's own BOS, if any (`opening`)."""
    texts = [text for text in (system, question) if text]
    first = [(bos, True)] if bos and not (texts and texts[0].startswith(bos)) else []
    return Prompt((*first, *((text, False) for text in texts)))


CHATS = {"qwen": qwen, "llama": llama, "plain": plain}
CONTROL = {
    "qwen": ("<|im_start|>", "<|im_end|>"),
    "llama": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "plain": (),
}


def check_control(name: str, tokenizer) -> None:
    """Raises UserError if a token that a template is made of is none of the tokenizer's: it would be spelt out."""
    encode = encoder(tokenizer)
    if missing := [token for token in CONTROL[name] if len(encode(token)) != 1]:
        raise UserError(
            f"chat template {name!r} is made of {', '.join(missing)}, which the tokenizer does not have as one token; "
            "choose 'own' for the model's own template, or 'plain'"
        )


def opening(tokenizer) -> str:
    """What the tokenizer itself puts before a text that is tokenised on its own: a BOS, or nothing."""
    ids = lambda special: list(tokenizer.encode("a", add_special_tokens=special))
    with_special, without = ids(True), ids(False)
    count = next((n for n in range(len(with_special)) if with_special[n : n + len(without)] == without), 0)
    return "".join(tokenizer.convert_ids_to_tokens(with_special[:count]))


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
