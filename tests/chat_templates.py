"""Small chat templates that behave as those of model families do, and a tokenizer of characters to lay them out."""

from __future__ import annotations

import re

from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.layout_tools import TABLE

_HEAD = (
    "{% if tools %}<sys>{% for t in tools %}{{ t | tojson }}{% endfor %}<end>\n{% endif %}"
    "{% for m in messages %}{% if m.role in ('user', 'system') %}<{{ m.role }}>{{ m.content }}<end>\n"
    "{% elif m.role == 'tool' %}<tool>{{ m.content }}<end>\n{% else %}"
)
_CALLS = (
    "{% for c in m.tool_calls or () %}"
    "<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
)
# Qwen2.5: knows no reasoning.
SIMPLE = _HEAD + (
    "<assistant>{{ m.content }}" + _CALLS + "<end>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Qwen3: shows reasoning after the last question only, and writes it empty for a last turn that has none.
QWEN3 = (
    "{% set ns = namespace(asked=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
) + _HEAD + (
    "{% set c = m.content %}{% set r = m.reasoning_content or '' %}"
    "{% if not r and '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1] %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<assistant>{% if loop.index0 > ns.asked and (loop.last or r) %}"
    "<think>\n{{ r.strip('\n') }}\n</think>\n\n{% endif %}"
    "{{ c }}" + _CALLS + "<end>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)  # fmt: skip
# DeepSeek-R1: opens reasoning in the prompt, never shows it afterwards, wants calls without content, arguments as text.
R1 = _HEAD + (
    "<assistant>{% if m.content is none %}{% for c in m.tool_calls %}"
    "{{ '<call>' + c.function.name + ' ' + c.function.arguments + '</call>' }}{% endfor %}"
    "{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}<end>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


class Templated:
    """A `transformers`-like tokenizer of characters with a chat template; `<end>` is the EOS token."""

    def __init__(self, template: str):
        self.chat_template = template
        self._compiled = ImmutableSandboxedEnvironment(trim_blocks=True).from_string(template)

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, tools=None, **more):
        return self._compiled.render(
            messages=messages, add_generation_prompt=add_generation_prompt, tools=tools, **more
        )

    def encode(self, text, add_special_tokens=False):
        ids = []
        for part in re.split(r"(<end>|<\|block_start\|>|<\|block_end\|>|<\|summary_start\|>|<\|summary_end\|>)", text):
            markers = ("<|block_start|>", "<|block_end|>", "<|summary_start|>", "<|summary_end|>")
            if part == "<end>":
                ids.append(TABLE.eos)
            elif part in markers:
                ids.append(TABLE.memento[markers.index(part)])
            else:
                ids += [20 + ord(character) for character in part]
        return ids


def read(ids) -> str:
    """Tokens as text; the EOS as `$`, other special tokens as `#`."""
    return "".join("$" if token == TABLE.eos else chr(token - 20) if token >= 20 else "#" for token in ids)
