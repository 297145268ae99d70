"""Lets a model work on questions with tools: prints success and the context by round, and writes the trajectories.

    python launch/agent.py --config=configs/agent.py --config.model.path=DIR --config.embedded=100
    python launch/agent.py --config=configs/agent.py --config.model.path=DIR --config.questions.path=questions.csv \\
        --config.corpus=pages.jsonl

The first command takes questions of the embedded world, and the second those of a file, in the style of BrowseComp and
xBench. A run may be stopped at any time; the same command goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_collections import config_flags

from launch.main import compile_cache, resolved, run
from launch.settings import agent_config

CONFIG = config_flags.DEFINE_config_file("config", None, "the config of agents, such as configs/agent.py")


def main(argv) -> None:
    config = resolved(CONFIG, example="configs/agent.py")
    compile_cache(config.compile_cache)
    from lt_jax.evaluation import agent_run

    agent_run.run(agent_config(config))


if __name__ == "__main__":
    run(main)
