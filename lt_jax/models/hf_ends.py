"""What ends a row: the one place that reads it from a checkpoint folder, and the one that writes it into an export.

Read as `generate` of transformers does: `eos_token_id` of generation_config.json, one id or several, and of config.json
where there is no generation_config.json or it names none. (There `generate` of a folder whose generation_config.json
names none would never end.) Where neither names one, the tokenizer's `eos_token` ends a row.

Written as the Trainer of transformers aligns it: an end token that a model was trained with is added before those that
generation_config.json has, and takes the place of one in config.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from lt_jax.errors import UserError
from lt_jax.models.hf_json import read_object

EOS, PAD, BOS = "eos_token_id", "pad_token_id", "bos_token_id"
CONFIG, GENERATION = "config.json", "generation_config.json"


def read_ends(folder: str | Path, tokenizer=None) -> tuple[int, ...]:
    """The ids that end a row, in the order of the file that names them; () if nothing does.

    Raises:
        UserError: a file is broken, or names an end token in another way than by ids.
    """
    for name in (GENERATION, CONFIG):
        path = Path(folder) / name
        if path.is_file() and (ids := _ids(read_object(path), path)):
            return ids
    end = getattr(tokenizer, "eos_token_id", None)
    return () if end is None else (end,)


def aligned(config: dict, eos: int | None, pad: int | None) -> dict:
    """config.json of a model that was trained with `eos` and `pad`; None leaves what is there."""
    own = config.get(EOS)
    if eos is not None and isinstance(own, list):
        eos = own if eos in own else [eos, *own]
    return config | {key: value for key, value in ((EOS, eos), (PAD, pad)) if value is not None}


def write_generation(folder: Path, source: str | Path | None, config: dict, eos: int | None, pad: int | None) -> None:
    """Writes generation_config.json into `folder`: that of `source`, brought up to date, or one of what is known.

    Args:
        source: the folder that the model came from; None for none.
        config: the config.json of the export, where BOS is looked up if `source` has no such file.
        eos, pad: that the model was trained with; None leaves what is there, and writes no file where there is none.
    """
    path = None if source is None else Path(source) / GENERATION
    there = path is not None and path.is_file()
    if not there and eos is None:
        return
    own = read_object(path) if there else {key: config[key] for key in (BOS,) if config.get(key) is not None}
    now = dict(own)
    ends = _ids(own, path) if there else ()
    if eos is not None and eos not in ends:
        now[EOS] = [eos, *ends] if ends else eos
    if pad is not None:
        now[PAD] = pad
    unchanged = there and now == own
    text = path.read_text(encoding="utf-8") if unchanged else json.dumps(now, indent=2, sort_keys=True) + "\n"
    (folder / GENERATION).write_text(text, encoding="utf-8")


def _ids(values: dict, path: Path) -> tuple[int, ...]:
    value = values.get(EOS)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
        raise UserError(f"{path}: {EOS} is {value!r}; it must be the id of a token, or a list of ids")
    return tuple(ids)
