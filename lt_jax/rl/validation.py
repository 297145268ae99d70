"""Held-out problems, answered greedily with every key kept and, where there is a budget, within the first one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lt_jax.data.problem import Problem
from lt_jax.decode import Engine, Request, Sampling
from lt_jax.model import Model
from lt_jax.models.config import round_up
from lt_jax.rl.rewards import RewardPool
from lt_jax.rl.rollout import Sampler


class Validation:
    """The function (parameters, step) -> {name: value} that `training.run.train` evaluates with: the mean reward of
    greedy answers, "dense" and "sparse", and of how many tokens they are.

    Its engines are kept, so that they are compiled once; between calls they have no weights and the least cache. In a
    call the sampler has none: they are of the step before.
    """

    def __init__(self, model: Model, sampler: Sampler, problems: Sequence[Problem], pool: RewardPool,
                 say: Callable[[str], None] = print):  # fmt: skip
        self.model, self.sampler, self.pool = model, sampler, pool
        most = sampler.config.rollout.max_prompt
        asked = [(problem, model.ask(problem.text, problem.system)) for problem in problems]
        self.asked = [(problem, prompt) for problem, prompt in asked if len(prompt) <= most]
        if missing := len(asked) - len(self.asked):
            say(f"validation leaves out {missing} of {len(asked)} problems: longer than rollout.max_prompt ({most})")
        self.kinds = {"dense": False} | ({"sparse": True} if sampler.config.rollout.eviction is not None else {})
        self.engines: dict[str, Engine] = {}

    def __call__(self, params: dict, step: int) -> dict[str, float]:
        found = {}
        self.sampler.drop()
        for name, evicts in self.kinds.items():
            engine = self._engine(name, evicts, params)
            found |= self._measured(engine, name)
            engine.weights = None
            engine.renew()
        return found

    def _engine(self, name: str, evicts: bool, params: dict) -> Engine:
        if name in self.engines:
            self.engines[name].load(params)
            return self.engines[name]
        config = self.sampler.decode_config(evicts, level=0)
        rows = rows_of(config.rows, len(self.asked), self.model.parts)
        config = dataclasses.replace(config, rows=rows, horizon=0)
        self.engines[name] = dataclasses.replace(self.model, params=params).engine(config)
        return self.engines[name]

    def _measured(self, engine: Engine, name: str) -> dict[str, float]:
        new = self.sampler.config.rollout.max_new
        prompts = enumerate(prompt for _, prompt in self.asked)
        greedy = [Request(prompt, new, 0, number, sampling=Sampling(0.0)) for number, prompt in prompts]
        found = (each for round in self.sampler.responses.rounds(engine, greedy) for each in round)
        done = sorted(found, key=lambda each: each.id)
        texts = [self.model.text(each.tokens[each.written]) for each in done]
        rewards = self.pool([problem for problem, _ in self.asked], texts)
        tokens = float(np.mean([len(each.tokens) for each in done]))
        return {f"{name}_reward": float(rewards.rewards.mean()), f"{name}_tokens": tokens}


def rows_of(most: int, problems: int, parts: int) -> int:
    """Rows of an engine that answers so many problems, over `parts` of the mesh."""
    return round_up(min(most, 1 << max(0, problems - 1).bit_length()), parts)
