"""Trains the small tokenizer of the demo's base model on worked problems.

    python launch/train_tokenizer.py --out=lt_jax/assets/base
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from launch.main import run

OUT = flags.DEFINE_string("out", "lt_jax/assets/base", "the folder of tokenizer.json and tokenizer_config.json")
SIZE = flags.DEFINE_integer("vocab_size", 284, "the most tokens, special ones included")
PROBLEMS = flags.DEFINE_integer("problems", 6000, "how many worked problems it is trained on")


def main(argv) -> None:
    from lt_jax.data import tokenizer
    from lt_jax.data.tasks import Problems

    problems = Problems(PROBLEMS.value, seed=9, steps=(3, 14))
    texts = ("\n\n".join((problems[i].question, *problems[i].thoughts)) for i in range(PROBLEMS.value))
    size = tokenizer.train(texts, SIZE.value, OUT.value)
    print(f"{size} tokens written to {OUT.value}")


if __name__ == "__main__":
    run(main)
