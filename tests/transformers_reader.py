"""What `transformers` makes of checkpoint folders: imported by tests (version 5), run as a program under version 4.

    PYTHONPATH=build/transformers4 python tests/transformers_reader.py FOLDER ... < tokens, text and chat as JSON
"""

from __future__ import annotations

import json
import sys


def read(folder: str, tokens: list[int], text: str, chat: list[dict]) -> dict:
    """Plain values: logits of `tokens`, ids of `text`, `chat` in the folder's template, what ends a row, names."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].float()
    return {
        "version": transformers.__version__.split(".")[0],
        "logits": logits.tolist(),
        "dtype": str(model.dtype),
        "ids": tokenizer(text)["input_ids"],
        "plain": tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True),
        "special": sorted(tokenizer.all_special_ids),
        "chat": tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True),
        "ends": model.generation_config.eos_token_id,
        "pad": model.generation_config.pad_token_id,
        "config": [model.config.eos_token_id, model.config.pad_token_id],
        "tokenizer": [tokenizer.eos_token_id, tokenizer.pad_token_id],
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps([read(folder, **asked) for folder in sys.argv[1:]]))
