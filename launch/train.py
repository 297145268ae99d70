"""Trains a model. The result is a Hugging Face folder, RUN/final. The config says how it is trained:

On reasoning traces, to compress its thoughts:
    python launch/train.py --config=configs/lightthinker_qwen.py --config.model.path=DIR --config.data.path=traces.jsonl
On trajectories, to manage its memory itself (LightThinker++):
    python launch/train.py --config=configs/memory_tiny.py
On problems, by reinforcement learning from its own responses, which are sampled under a KV budget (Sparse-RL):
    python launch/train.py --config=configs/sparse_rl_qwen2_5_1_5b.py --config.model.path=DIR \\
        --config.data.path=problems.jsonl
The same, where the model manages its memory by actions (LightThinker++):
    python launch/train.py --config=configs/memory_rl_tiny.py --config.model.path=DIR

Several files or folders are separated by commas: --config.data.path=a.jsonl,b.parquet

RUN is --config.folder. It also holds config.json, metrics.jsonl, checkpoints and the prepared data. The same command
continues the run from its newest checkpoint. SIGTERM saves a checkpoint and ends the script with exit code 3; a rollout
that is under way then is given up, and made again when the run goes on. Where a run has several processes
(--config.distributed.processes), any of them may get the signal, and all end after the same step.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_collections import config_flags

from launch.main import STOPPED, compile_cache, resolved, run
from launch.settings import lessons, rl_config, sft_config
from lt_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "the config of a run, such as configs/lightthinker_qwen.py")


def main(argv) -> None:
    config = resolved(CONFIG, example="configs/lightthinker_qwen.py")

    import jax

    compile_cache(config.compile_cache)
    if config.get("task") == "rl":
        trained = learn_by_reward(config)
    else:
        start_processes(jax, config.distributed)
        from lt_jax.training.sft import sft

        say = print if jax.process_index() == 0 else lambda *_: None
        trained = sft(sft_config(config), say, **lessons(config))
    if trained is None:
        sys.exit(STOPPED)


def learn_by_reward(config):
    """Reinforcement learning; from trajectories where the config has settings of a memory."""
    if "memory" in config:
        from lt_jax.memory.rl import TrajectoryConfig, learn

        return learn(rl_config(config), TrajectoryConfig(**config.memory))
    from lt_jax.rl.loop import learn

    return learn(rl_config(config))


def start_processes(jax, distributed) -> None:
    """Joins the processes of a pod if the config says so; by itself it never does, so that a pod failure is seen."""
    if distributed.processes < 1:
        raise UserError(f"distributed.processes is {distributed.processes}; it must be 1 or more")
    if distributed.processes > 1:
        by_hand = {
            "coordinator_address": distributed.coordinator,
            "num_processes": distributed.processes,
            "process_id": distributed.process,
        }
        jax.distributed.initialize(**(by_hand if distributed.coordinator else {}))
    if jax.process_count() != distributed.processes:
        raise UserError(f"distributed.processes is {distributed.processes}, but {jax.process_count()} joined")


if __name__ == "__main__":
    run(main)
