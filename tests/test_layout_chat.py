"""Chat prompts, letter by letter."""

import tomllib
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from lt_jax.errors import UserError
from lt_jax.layout.chat import CHATS, llama, own, plain, qwen
from tests.layout_tools import word_tokenizer

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
