"""Chat prompts: the reference's two templates, the tokenizer's own, and none.

Each function gives a `Prompt` in pieces, so that a compressed prompt can keep its template. A prompt's text begins with
the template's own BOS where it has one; it is tokenised without adding another.
"""

from __future__ import annotations

from collections.abc import Sequence

from lt_jax.errors import UserError
from lt_jax.layout.encode import encoder
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


def own(tokenizer, messages: Sequence[dict], **options) -> Prompt:
    """The tokenizer's own chat template over `messages` (role, content, ...), ready for the assistant's turn.

    Args:
        tokenizer: a `transformers` tokenizer with a chat template.
        options: passed to `apply_chat_template`, such as `tools` and `enable_thinking`.

    Raises:
        UserError: there is no template, it fails, or it does not show a user's or system's text as it is.
    """
    messages = [{**message, "content": message["content"].strip()} for message in messages]
    text = _rendered(tokenizer, messages, add_generation_prompt=True, **options)
    pieces, start = [], 0
    for message in messages:
        content = message["content"]
        found = text.find(content, start)
        if found < 0 and message["role"] in ("user", "system"):
            raise UserError(f"the tokenizer's chat template does not show the {message['role']}'s text as it is")
        if found < 0 or not content:
            continue
        pieces += [(text[start:found], True), (content, False)]
        start = found + len(content)
    return Prompt(tuple(piece for piece in (*pieces, (text[start:], True)) if piece[0]))


def own_answer(tokenizer, messages: Sequence[dict], prompt: str, **options) -> str | None:
    """What the template writes after `prompt` for the answer that is the last of `messages`, without the turn's end.

    None where the template cannot show the answer whole: it writes another text before it, or leaves its reasoning out
    (as templates do that strip what an assistant thought).
    """
    try:
        whole = _rendered(tokenizer, messages, add_generation_prompt=False, **options)
        end = turn_end(tokenizer, **options)
    except UserError:
        return None
    if not whole.startswith(prompt) or not whole.endswith(end):
        return None
    answer = whole[len(prompt) : len(whole) - len(end)]
    shown = [messages[-1][name] for name in ("content", "reasoning_content") if messages[-1].get(name)]
    shown += [call["function"]["name"] for call in messages[-1].get("tool_calls", ())]
    return answer if all(text.strip() in answer for text in shown) else None


def turn_end(tokenizer, **options) -> str:
    """What the template writes behind an assistant's text: the token that ends the turn, and perhaps a newline."""
    probe = "What is written here is looked for."
    messages = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": probe}]
    text = _rendered(tokenizer, messages, add_generation_prompt=False, **options)
    return text[text.rindex(probe) + len(probe) :] if probe in text else ""


def _rendered(tokenizer, messages, **options) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"the tokenizer has no chat template; choose one of {', '.join(CHATS)}")
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except Exception as error:  # the template is data and may raise anything
        raise UserError(f"the tokenizer's chat template fails on these messages: {error}") from error


def _prompt(turn, system, before, question, after) -> Prompt:
    opening, ending = turn
    if not system:
        return Prompt(((before, True), (question, False), (after, True)))
    return Prompt(((opening, True), (system, False), (ending + before, True), (question, False), (after, True)))
