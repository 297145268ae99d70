"""Responses of the policy that is trained, sampled under its KV budget.

What differs: in the paper's release a budget saves no memory, because evicted keys keep their place in the cache; here
a row of the cache has budget + buffer slots. The prompt of a group is read once. What a row draws depends on its
problem and its place in the run alone (`seed_of`), so a rollout that is made again is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from lt_jax.decode import Completion, DecodeConfig, Engine, Request, Sampling
from lt_jax.decode.request import sample_seed
from lt_jax.decode.setup import cache_bytes
from lt_jax.errors import UserError
from lt_jax.layout.closing import closing
from lt_jax.layout.row import Row
from lt_jax.model import Model
from lt_jax.rl.config import RlConfig
from lt_jax.training import state as states


class Sampler:
    """Samples groups of responses; its engine is made anew when the budget changes.

    Attributes:
        level: which of the budgets is used: 0 is the first, `rollout.budgets` follow.
    """

    def __init__(self, model: Model, config: RlConfig):
        """Raises UserError if model, method and budget do not go together."""
        self.model, self.config, self.level = model, config, 0
        self.length = longest(model, config)
        self.engine: Engine | None = None
        self.params: dict | None = None
        model.check(self.decode_config(), [], config.rollout.max_new)

    def decode_config(self, evicts: bool = True) -> DecodeConfig:
        """The engine's settings; without eviction where it is not wanted."""
        rollout = self.config.rollout
        settings = rollout.eviction if evicts else None
        if settings is not None and self.level:
            settings = {**settings, "budget": rollout.budgets[self.level - 1]}
        eviction = None if settings is None else self.model.eviction(**settings)
        return DecodeConfig(
            rows=rollout.rows or rollout.responses,
            capacity=self.length + 1,
            block_steps=rollout.block_steps,
            sampling=Sampling(rollout.temperature),
            max_thought=rollout.max_thought,
            eviction=eviction,
            horizon=self.length + 1 if eviction is not None and self.config.replay else 0,
        )

    @property
    def budget(self) -> int:
        """Keys that a row keeps, or all of a row."""
        eviction = self.decode_config().eviction
        return self.length if eviction is None else eviction.most

    def load(self, params: dict) -> None:
        """Takes new weights; the sampler computes with what a step computes with."""
        self.params = params = states.computed(params, self.model.config, self.config.train.params_dtype)
        if self.engine is not None:
            self.engine.load(params)

    def grow(self) -> None:
        """Goes on to the next larger budget, if there is one."""
        if self.level < len(self.config.rollout.budgets):
            self.level += 1
            self.rest()

    def rest(self) -> None:
        """Gives the engine and the memory of its cache back."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def sample(
        self, prompts: Sequence[Row], numbers: Sequence[int], done: Callable[[int, list[Completion]], None]
    ) -> list[list[Completion]]:
        """A group of responses to each prompt.

        Args:
            numbers: of the problems in the run, from which their seeds follow.
            done: told the place of a prompt and its group, as soon as all of it is there.
        """
        rollout, groups = self.config.rollout, [[] for _ in prompts]
        requests = [
            Request(prompt, rollout.max_new, seed_of(self.config.train.seed, number), place, rollout.group)
            for place, (prompt, number) in enumerate(zip(prompts, numbers, strict=True))
        ]
        for completion in self.ready().run(requests):
            if completion.finish == "refused":
                raise UserError(f"a prompt of the rollout cannot be answered: {completion.why}")
            groups[completion.id].append(completion)
            if len(groups[completion.id]) == rollout.group:
                groups[completion.id].sort(key=lambda each: each.sample)
                done(completion.id, groups[completion.id])
        return groups

    def ready(self) -> Engine:
        """The engine, made if need be. Its cache has all that it will ever need from the start, so that what was
        sampled before, or was not because the run was resumed, changes no rounding."""
        if self.engine is None:
            self.engine = dataclasses.replace(self.model, params=self.params).engine(self.decode_config())
            self.engine.reserve(self.length)
        return self.engine

    def cache_bytes(self, evicts: bool = True) -> int:
        """Of all rows, from the shapes of the arrays, as they are or as they would be without a budget."""
        config = self.decode_config(evicts)
        return round(config.rows * cache_bytes(self.model.config, config, self.model.rules(config)))


def longest(model: Model, config: RlConfig) -> int:
    """Tokens of the longest row that a rollout may come to: any sampled token may close a thought."""
    rule = closing(model.scheme, model.special, model.tokenize)
    rollout = config.rollout
    need = rollout.max_prompt + rollout.max_new * (1 if rule is None else 1 + len(rule))
    return min(need, model.config.max_positions)


def seed_of(seed: int, number: int) -> int:
    """The seed of the problem with this number of a run with that seed."""
    return sample_seed(seed, number + 1)
