"""The tokenizer of an export, in the form that transformers 4 and 5 both read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lt_jax.errors import UserError
from lt_jax.models.hf_json import read_object

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
CONFIG = "tokenizer_config.json"
# Of transformers 5 alone: how a tokenizer was loaded, and what stands for any tokenizer.json.
OF_LOADING = ("backend", "is_local", "local_files_only")
ANY = ("TokenizersBackend", "PythonBackend", "SentencePieceBackend", "MistralCommonBackend")


def write(folder: Path, tokenizer) -> None:
    """Writes a tokenizer into `folder`.

    Args:
        tokenizer: a folder to copy the files from, or a `transformers` tokenizer; None writes none.

    Raises:
        UserError: the folder has no tokenizer.
    """
    if tokenizer is None:
        return
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
        source = Path(tokenizer.name_or_path) / CONFIG
    else:
        source = Path(tokenizer) / CONFIG
        if not (source.parent / "tokenizer.json").is_file():
            raise UserError(f"{source.parent / 'tokenizer.json'}: no such file; the export would have no tokenizer")
        for name in FILES:
            if (source.parent / name).is_file():
                shutil.copyfile(source.parent / name, folder / name)
    if (folder / CONFIG).is_file():
        before = read_object(folder / CONFIG)
        now = for_both(before, read_object(source) if source.is_file() else {})
        if now != before:
            text = json.dumps(now, indent=2, ensure_ascii=False) + "\n"
            (folder / CONFIG).write_text(text, encoding="utf-8")


def for_both(written: dict, source: dict) -> dict:
    """tokenizer_config.json as transformers 5 wrote it, for transformers 4 too.

    The class is the source's again, or, where that is one of version 5 alone, the class for any tokenizer.json. Further
    special tokens are a list under the name that both versions read, `additional_special_tokens`; version 4 stops at
    a list under `extra_special_tokens`, which was there an object of named tokens and stays if it is one.
    """
    now = {key: value for key, value in written.items() if key not in OF_LOADING}
    name = source.get("tokenizer_class") or "PreTrainedTokenizerFast"
    now["tokenizer_class"] = "PreTrainedTokenizerFast" if name in ANY else name
    if isinstance(now.get("extra_special_tokens"), list):
        now["additional_special_tokens"] = now.pop("extra_special_tokens")
    return now
