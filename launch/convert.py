"""Writes a Hugging Face folder: of a run's newest checkpoint, of another folder, of a released LightThinker checkpoint.

    python launch/convert.py --from=runs/lightthinker --to=DIR
    python launch/convert.py --from=OLD --to=DIR --dtype=bfloat16
    python launch/convert.py --from=LightThinker-Qwen --to=DIR --table=qwen --tokenizer=Qwen2.5-7B-Instruct
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from launch.main import run
from lt_jax.errors import UserError

FROM = flags.DEFINE_string("from", None, "run folder or Hugging Face folder")
TO = flags.DEFINE_string("to", None, "folder to write")
DTYPE = flags.DEFINE_enum("dtype", None, ("float32", "bfloat16", "float16"), "of the tensors; as they are if not given")
TABLE = flags.DEFINE_enum("table", None, ("qwen", "llama"), "add the special tokens of the released checkpoints")
TOKENIZER = flags.DEFINE_string("tokenizer", None, "folder of the tokenizer, if --from has none")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace a checkpoint folder at --to")


def main(argv) -> None:
    if FROM.value is None or TO.value is None:
        raise UserError("--from=DIR and --to=DIR are needed")
    from lt_jax.training.export import convert

    written = convert(FROM.value, TO.value, dtype=DTYPE.value, table=TABLE.value, tokenizer=TOKENIZER.value,
                      overwrite=OVERWRITE.value)  # fmt: skip
    print(f"written to {written}")


if __name__ == "__main__":
    run(main)
