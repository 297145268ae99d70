"""Trains a model. The result is a Hugging Face folder, RUN/final. The config says how it is trained:

On reasoning traces, to compress its thoughts:
    python launch/train.py --config=configs/lightthinker_qwen.py --config.model.path=DIR --config.data.path=traces.jsonl
On problems, by reinforcement learning from its own responses, which are sampled under a KV budget (Sparse-RL):
    python launch/train.py --config=configs/sparse_rl_qwen2_5_1_5b.py --config.model.path=DIR \\
        --config.data.path=problems.jsonl

Several files or folders are separated by commas: --config.data.path=a.jsonl,b.parquet

RUN is --config.folder. It also holds config.json, metrics.jsonl, checkpoints and the prepared data. The same command
continues the run from its newest checkpoint. SIGTERM saves a checkpoint and ends the script with exit code 3; where a
run has several processes (--config.distributed.processes), any of them may get the signal, and all end after the same
step.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_collections import config_flags

from launch.main import resolved, run, several
from lt_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "the config of a run, such as configs/lightthinker_qwen.py")
STOPPED = 3


def main(argv) -> None:
    config = resolved(CONFIG, example="configs/lightthinker_qwen.py")

    import jax

    if config.compile_cache:
        jax.config.update("jax_compilation_cache_dir", str(Path(config.compile_cache).expanduser()))
    if config.get("task") == "rl":
        from lt_jax.rl.loop import learn

        trained = learn(rl_config(config))
    else:
        start_processes(jax, config.distributed)
        from lt_jax.training.sft import sft

        trained = sft(sft_config(config), print if jax.process_index() == 0 else lambda *_: None)
    if trained is None:
        sys.exit(STOPPED)


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


def given(group) -> dict:
    """What a group of a config file says, without its empty texts, which mean the default."""
    return {name: value for name, value in group.items() if value != ""}


def train_config(config):
    """The `TrainConfig` of a config file."""
    from lt_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig

    return TrainConfig(
        optim=OptimizerConfig(**config.optim), mesh=MeshConfig(**config.mesh),
        **{**config.train, "attention": config.train.attention or None},
    )  # fmt: skip


def sft_config(config):
    """The `SftConfig` of a config file. Empty texts and zeros in it mean "the default" where None would."""
    from lt_jax.data.pipeline import PipelineConfig
    from lt_jax.layout.scheme import Scheme
    from lt_jax.models.config import LoraConfig
    from lt_jax.training.sft_config import SftConfig, SourceConfig, TokensConfig

    source = given(config.data) | {"maximum": config.data.maximum or None}
    source.pop("path", None)
    return SftConfig(
        folder=config.folder,
        model=config.model.path,
        dtype=config.model.dtype,
        scratch=config.model.scratch,
        lora=LoraConfig(**config.lora) if config.lora.rank else None,
        source=SourceConfig(several(config.data.path), **source),
        batches=PipelineConfig(**config.batches),
        scheme=Scheme(**{**config.scheme, "prompt": config.scheme.prompt or None}),
        tokens=TokensConfig(**given(config.tokens)),
        train=train_config(config),
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb or None,
        export_dtype=config.export_dtype or None,
    )


def changed(preset, differs: dict):
    """A preset's `MismatchConfig` with what a config file says besides; "none" turns a setting off.

    Where it turns the weights off, what the preset says of them (their threshold and normalisation) goes with them.
    """
    off = type(preset)()
    differs = {name: getattr(off, name) if str(value).lower() == NONE else value for name, value in differs.items()}
    if "rollout_is" in differs and differs["rollout_is"] is None:
        of_weights = ("rollout_is_threshold", "rollout_is_batch_normalize")
        differs = {name: getattr(off, name) for name in of_weights} | differs
    return dataclasses.replace(preset, **differs)


EVICTION = ("window", "share")  # settings of rollout that go to the KV budget, beside kv, budget and buffer
NONE = "none"


def rl_config(config):
    """The `RlConfig` of a config file: its preset, and what the file says besides."""
    from lt_jax.models.config import LoraConfig
    from lt_jax.rl.config import ProblemsConfig, RewardConfig, RlConfig, RolloutConfig, preset
    from lt_jax.rl.losses import LossConfig

    folder_says = lambda value: None if value == "-" else value
    data = dict(config.data)
    around = {name: folder_says(data.pop(name)) for name in ("chat", "system", "prefix", "suffix")}
    problems = ProblemsConfig(several(data.pop("path")), **{**data, "format": data["format"] or None}, **around)
    rollout = dict(config.rollout)
    own = {name: value for name in EVICTION if (value := rollout.pop(name))}
    budget = {"policy": rollout.pop("kv"), "budget": rollout.pop("budget"), "buffer": rollout.pop("buffer")} | own
    rollout |= {"eviction": budget if budget["policy"] else None, "max_thought": rollout["max_thought"] or None}
    arm = preset(config.preset, RolloutConfig(**rollout))
    return RlConfig(
        folder=config.folder,
        model=config.model.path,
        method=config.model.method or None,
        dtype=config.model.dtype,
        lora=LoraConfig(**config.lora) if config.lora.rank else None,
        problems=problems,
        reward=RewardConfig(**config.reward),
        advantage=config.advantage,
        count_rejected=config.count_rejected,
        **arm | {"mismatch": changed(arm["mismatch"], given(config.mismatch))},
        dense_kl=config.dense_kl,
        loss=LossConfig(**{**config.loss, "clip": config.loss.clip or None, "length": config.loss.length or None}),
        updates=config.updates,
        train=train_config(config),
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb or None,
        export_dtype=config.export_dtype or None,
    )


if __name__ == "__main__":
    run(main)
