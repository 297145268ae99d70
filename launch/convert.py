"""Writes a Hugging Face folder from the newest checkpoint of a training run, or from another Hugging Face folder.

    python launch/convert.py --from=runs/lightthinker_qwen --to=DIR
    python launch/convert.py --from=OLD --to=DIR --dtype=bfloat16
    python launch/convert.py --from=LightThinker-Qwen --to=DIR --table=qwen --tokenizer=Qwen2.5-7B-Instruct

The second command stores the tensors in another type. The third adds to a checkpoint of the LightThinker release what
this library has to know of its special tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from launch.main import run
from lt_jax.errors import UserError

FROM = flags.DEFINE_string("from", None, "the folder of a training run, or a Hugging Face folder")
TO = flags.DEFINE_string("to", None, "the folder that is written")
DTYPE = flags.DEFINE_enum(
    "dtype", None, ("float32", "bfloat16", "float16"), "the type of the written tensors; as they are if not given"
)
TABLE = flags.DEFINE_enum(
    "table", None, ("qwen", "llama"), "describe the special tokens of the LightThinker release, for this model family"
)
TOKENIZER = flags.DEFINE_string("tokenizer", None, "the folder of the tokenizer, if --from has none")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace the checkpoint that is in --to")


def main(argv) -> None:
    if FROM.value is None or TO.value is None:
        raise UserError("--from=DIR and --to=DIR are needed")
    from lt_jax.training.export import convert

    written = convert(FROM.value, TO.value, dtype=DTYPE.value, table=TABLE.value, tokenizer=TOKENIZER.value,
                      overwrite=OVERWRITE.value)  # fmt: skip
    print(f"written to {written}")


if __name__ == "__main__":
    run(main)
