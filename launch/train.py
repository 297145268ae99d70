"""Trains a model on reasoning traces, to compress its thoughts. The result is a Hugging Face folder, RUN/final.

    python launch/train.py --config=configs/lightthinker_qwen.py --config.model.path=DIR --config.data.path=traces.jsonl

Several files or folders are separated by commas: --config.data.path=a.jsonl,b.parquet

RUN is --config.folder. It also holds config.json, metrics.jsonl, checkpoints and the prepared data. The same command
continues the run from its newest checkpoint. SIGTERM saves a checkpoint and ends the script with exit code 3; where a
run has several processes (--config.distributed.processes), any of them may get the signal, and all end after the same
step.
"""

from __future__ import annotations

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
    start_processes(jax, config.distributed)
    from lt_jax.training.sft import sft

    talk = print if jax.process_index() == 0 else lambda *_: None
    if sft(sft_config(config), talk) is None:
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


def sft_config(config):
    """The `SftConfig` of a config file. Empty texts and zeros in it mean "the default" where None would."""
    from lt_jax.data.pipeline import PipelineConfig
    from lt_jax.layout.scheme import Scheme
    from lt_jax.models.config import LoraConfig
    from lt_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig
    from lt_jax.training.sft_config import SftConfig, SourceConfig, TokensConfig

    given = lambda group: {name: value for name, value in group.items() if value != ""}
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
        train=TrainConfig(
            optim=OptimizerConfig(**config.optim), mesh=MeshConfig(**config.mesh),
            **{**config.train, "attention": config.train.attention or None},
        ),  # fmt: skip
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb or None,
        export_dtype=config.export_dtype or None,
    )


if __name__ == "__main__":
    run(main)
