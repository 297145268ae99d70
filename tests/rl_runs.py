"""Runs of reinforcement learning on a tiny random model, for the tests of the loop."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from lt_jax.rl.config import ProblemsConfig, RlConfig, RolloutConfig
from lt_jax.rl.losses import LossConfig
from lt_jax.rl.rewards import RewardConfig
from lt_jax.training.config import OptimizerConfig, TrainConfig

BUDGET = {"policy": "rkv", "budget": 24, "buffer": 8}
OPTIM = OptimizerConfig(learning_rate=3e-3, warmup=0.0, end_fraction=1.0, b2=0.98)


def write_problems(path: Path, count: int = 12) -> Path:
    lines = [json.dumps({"question": f"Sum {i}+{i}", "answer": str(2 * i)}) + "\n" for i in range(count)]
    path.write_text("".join(lines))
    return path


def settings(folder: Path, model: Path, path: Path, held_out: int = 0, **more) -> RlConfig:
    """4 problems x 4 responses of at most 48 tokens; fields of the groups are given as `rollout={...}`."""
    train = {"steps": 3, "log_every": 1, "optim": OPTIM, **more.pop("train", {})}
    rollout = {"prompts": 4, "group": 4, "max_prompt": 32, "max_new": 48, "block_steps": 8, **more.pop("rollout", {})}
    reward = RewardConfig((("tests.rl_rewards:vowels", 1.0),), workers=1)
    return RlConfig(**{
        "folder": str(folder), "model": str(model), "problems": ProblemsConfig((str(path),), held_out=held_out),
        "reward": reward, "rollout": RolloutConfig(**rollout), "train": TrainConfig(**train),
        "loss": LossConfig(kl_weight=1e-2), **more,
    })  # fmt: skip


def rewarded(name: str, **more) -> RewardConfig:
    return RewardConfig(((f"tests.rl_rewards:{name}", 1.0),), workers=1, **more)


def history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def without_clock(lines: list[dict]) -> list[dict]:
    """Metrics that are the same whenever they are measured."""
    timed = ("seconds", "per_second", "share_")
    return [{name: x for name, x in line.items() if not any(word in name for word in timed)} for line in lines]


def replaced(config: RlConfig, part: str, **fields) -> RlConfig:
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **fields)})
