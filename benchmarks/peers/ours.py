"""lt_jax's side of `benchmarks/rl_step.py`: the loop of `lt_jax.rl.loop.learn`, whole, with its log.

Settings are those of the library but for the sizes and `kl_weight=0`, which needs no reference; the update is cut into
pieces, which fit the processor's cache better. As with its peers, the only update of a rollout computes the log-probs
before it by itself.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from unittest import mock

from benchmarks.peers.task import RATE, Turns, given
from lt_jax.rl import loop
from lt_jax.rl.config import ProblemsConfig, RlConfig, RolloutConfig
from lt_jax.rl.experience import Experience
from lt_jax.rl.losses import LossConfig
from lt_jax.rl.rewards import RewardConfig
from lt_jax.training.config import OptimizerConfig, TrainConfig

STEPS = 10**6  # more than are asked for

TASK = given()
TURNS = Turns("jax", "jaxlib", "numpy")


class Timed(Experience):
    """The loop's own data, which waits for its turn before each rollout; the step before is done by then."""

    def before(self, params: dict) -> None:
        if self.told:
            TURNS.note(**{part: self.told[-1][f"seconds_{part}"] for part in ("logps", "update")})
        TURNS.wait()
        super().before(params)

    def __next__(self) -> dict:
        batch = super().__next__()
        TURNS.sampled(self.told[-1]["seconds_rollout"], batch["response"].sum(), batch["rewards"])
        return batch


def endless(config, mesh):
    """The folder's parameters and model, which no token ends."""
    params, model = loop_model(config, mesh)
    special = dataclasses.replace(model.special, eos=-1)
    return params, dataclasses.replace(model, card=dataclasses.replace(model.card, special=special))


loop_model = loop.read_model
optim = OptimizerConfig(learning_rate=RATE, warmup=0.0)
with mock.patch.object(loop, "Experience", Timed), mock.patch.object(loop, "read_model", endless):
    loop.learn(
        RlConfig(
            folder=str(Path(TASK.scratch) / "lt_jax"),
            model=TASK.model,
            problems=ProblemsConfig(paths=(TASK.problems,), chat="plain"),
            rollout=RolloutConfig(TASK.prompts, TASK.group, TASK.prompt, TASK.new),
            reward=RewardConfig((("benchmarks.peers.task:score", 1.0),)),
            loss=LossConfig(kl_weight=0.0),
            train=TrainConfig(steps=STEPS, accumulate=TASK.pieces, optim=optim),
        ),
        say=lambda line: print(line, file=sys.stderr),
    )
