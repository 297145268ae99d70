"""Held-out problems, answered greedily with every key kept and, where there is a budget, within it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lt_jax.data.problem import Problem
from lt_jax.decode import Request, Sampling
from lt_jax.model import Model
from lt_jax.rl.rewards import RewardPool
from lt_jax.rl.rollout import Sampler


@dataclasses.dataclass(frozen=True)
class Validation:
    """The function (parameters, step) -> {name: value} that `training.run.train` evaluates with: the mean reward of
    greedy answers, "dense" and "sparse", and of how many tokens they are.

    Its engines are made for each call: between calls they take no memory.
    """

    model: Model
    sampler: Sampler
    problems: Sequence[Problem]
    pool: RewardPool

    def __call__(self, params: dict, step: int) -> dict[str, float]:
        self.sampler.rest()  # two caches never stand side by side
        found = self._measured(params, False, "dense")
        if self.sampler.decode_config().eviction is not None:
            found |= self._measured(params, True, "sparse")
        return found

    def _measured(self, params: dict, evicts: bool, name: str) -> dict[str, float]:
        config = dataclasses.replace(self.sampler.decode_config(evicts), horizon=0)
        engine = dataclasses.replace(self.model, params=params).engine(config)
        prompts = [self.model.ask(problem.text, problem.system) for problem in self.problems]
        new = self.sampler.config.rollout.max_new
        done = engine.complete(Request(prompt, new, sampling=Sampling(0.0)) for prompt in prompts)
        engine.close()
        rewards = self.pool(self.problems, [self.model.text(each.tokens[each.written]) for each in done])
        tokens = float(np.mean([len(each.tokens) for each in done]))
        return {f"{name}_reward": float(rewards.rewards.mean()), f"{name}_tokens": tokens}
