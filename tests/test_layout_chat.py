"""Chat prompts, letter by letter."""

import tomllib
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lt_jax.data.prompts import Prompter
from lt_jax.errors import UserError
from lt_jax.layout.chat import CHATS, CONTROL, llama, own, plain, qwen
from lt_jax.layout.encode import encoder
from lt_jax.layout.prompt import build_prompt
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.layout.tokenizer import load_tokenizer
from tests.layout_tools import word_tokenizer
from tests.tiny_folder import TOKENIZER

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking %}<think>{% endif %}{% endif %}"
)


def with_template(template):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def test_qwen_prompt():
    prompt = qwen("Q?", "S.")
    assert prompt.text == (
        "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [text for text, template in prompt.pieces if not template] == ["S.", "Q?"]
    assert qwen("Q?").text == "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"


def test_llama_prompt():
    assert llama("Q?", "S.").text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert "system" not in llama("Q?").text


def test_plain_prompt():
    assert plain("Q?").pieces == (("Q?", False),) and plain("Q?", "S. ").text == "S. Q?"
    assert set(CHATS) == {"qwen", "llama", "plain"}


def test_the_tokenizers_own_template_is_cut_at_the_texts():
    messages = [{"role": "system", "content": "S."}, {"role": "user", "content": " Q? "}]
    prompt = own(with_template(CHATML), messages)
    assert prompt == qwen("Q?", "S.")
    assert own(with_template(CHATML), messages, thinking=True).text.endswith("assistant\n<think>")


@pytest.mark.parametrize(
    "template, message",
    [(None, "no chat template"), ("{{ messages[5].content.x }}", "fails"), ("hidden", "does not show the user's")],
)
def test_templates_that_do_not_work_are_refused(template, message):
    with pytest.raises(UserError, match=message):
        own(with_template(template), [{"role": "user", "content": "Q?"}])


def test_the_package_asks_for_what_a_chat_template_needs():
    """transformers imports jinja2 only when a template is used, and does not list it."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert any(line.startswith("jinja2>=3.1") for line in project["dependencies"])


def test_a_template_whose_tokens_the_tokenizer_lacks_is_refused():
    shipped = load_tokenizer(TOKENIZER)
    with pytest.raises(UserError, match="'llama' is made of <.begin_of_text.>, .* which the tokenizer does not have"):
        Prompter("llama", shipped)
    with pytest.raises(UserError, match="'qwen' is made of <.im_start.>, <.im_end.>"):
        Prompter("qwen", shipped)
    shipped.add_special_tokens({"additional_special_tokens": list(CONTROL["llama"])})
    assert Prompter("llama", shipped)("Q?").text == llama("Q?").text


def test_plain_prompts_begin_with_the_bos_that_the_tokenizer_adds():
    """As lm-eval and transformers encode a text: a BOS where the post-processor puts one, once, and none elsewhere."""
    shipped = load_tokenizer(TOKENIZER)
    assert Prompter("plain", shipped)("Q?").text == "Q?"
    bos = shipped.convert_tokens_to_ids("<|user|>")
    shipped.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", pair="$A $B", special_tokens=[("<|user|>", bos)]
    )
    ask = Prompter("plain", shipped)
    assert ask("Q?", "S. ").pieces == (("<|user|>", True), ("S. ", False), ("Q?", False))
    assert ask("<|user|>Q?").text == "<|user|>Q?"
    row = build_prompt(Scheme("vanilla"), SpecialTokens(0, 0), ask("Q?"), encoder(shipped))
    assert row.tokens.tolist() == shipped.encode("Q?", add_special_tokens=True) and row.tokens[0] == bos
