r"""Lets a teacher work on problems inside the memory of LightThinker++, and writes the trajectories to learn from.

An endpoint that speaks as OpenAI's does; its key is in an environment variable, whose name is given:
    python launch/synthesize.py --config=configs/synthesize.py --config.questions.path=problems.jsonl \
        --config.endpoint.url=https://HOST/v1 --config.endpoint.model=NAME --config.endpoint.key_from=API_KEY
A checkpoint folder as the teacher:
    python launch/synthesize.py --config=configs/synthesize.py --config.teacher=local --config.local.path=DIR \
        --config.questions.embedded=100

The folder (--config.folder) gets trajectories.jsonl, pruned.jsonl with those that are worth learning from, the same for
TFDS, statistics.json and statistics.svg. Killed at any moment, the same command goes on; what is finished is not asked
again. With other switches under --config.prune, it prunes again and asks nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_collections import config_flags

from launch.main import compile_cache, resolved, run
from launch.settings import connected, questions_config, synthesis_config

CONFIG = config_flags.DEFINE_config_file("config", None, "the config of a synthesis, such as configs/synthesize.py")


def main(argv) -> None:
    config = resolved(CONFIG, example="configs/synthesize.py")
    compile_cache(config.compile_cache)
    from lt_jax.evaluation.synthesis_picture import write
    from lt_jax.memory.questions import open_questions
    from lt_jax.memory.synthesis import synthesize

    how = synthesis_config(config)
    questions, told = open_questions(questions_config(config))
    write(synthesize(questions, connected(config), how, told), how.folder)


if __name__ == "__main__":
    run(main)
