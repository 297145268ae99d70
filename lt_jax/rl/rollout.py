"""Responses of the policy that is trained, sampled under its KV budget.

What differs: in the paper's release a budget saves no memory, because evicted keys keep their place in the cache; here
a row of the cache has budget + buffer slots. The prompt of a group is read once. What a row draws depends on its
problem and its place in the run alone (`seed_of`), so a rollout that is made again is the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from lt_jax.cache.policies import Eviction
from lt_jax.decode import Completion, DecodeConfig, Engine, Request, Sampling
from lt_jax.decode.request import sample_seed
from lt_jax.decode.setup import cache_bytes
from lt_jax.errors import UserError
from lt_jax.layout.closing import closing
from lt_jax.layout.row import Row
from lt_jax.model import Model
from lt_jax.rl.config import RlConfig
from lt_jax.training import state as states
from lt_jax.training.run import Stopped


def one_request_each(engine: Engine, requests: Sequence[Request]) -> Iterator[list[Completion]]:
    """Responses as the engine gives them."""
    with contextlib.closing(engine.events(requests)) as rounds:
        for events in rounds:
            yield [event.completion for event in events if event.completion is not None]


@dataclasses.dataclass(frozen=True)
class Responses:
    """What a response is: what the engine writes to a request, unless another room makes more of it (`memory.rl`).

    Attributes:
        rounds: (engine, requests) -> after each block of decoding steps the completions that are finished, with `id`
            and `sample` as of the requests.
        length: tokens of the longest row; None is what `most_new` allows.
        never: ids that are not sampled, besides those of the engine.
        added: completions -> [N] float32, what comes to the reward of each.
        said: completions -> {name: value} of a rollout, to be watched.
        described: JSON values that tell runs apart.
    """

    rounds: Callable[[Engine, Sequence[Request]], Iterator[list[Completion]]] = one_request_each
    length: int | None = None
    never: tuple[int, ...] = ()
    added: Callable[[Sequence[Completion]], np.ndarray] = lambda completions: np.zeros(len(completions), np.float32)
    said: Callable[[Sequence[Completion]], dict[str, float]] = lambda completions: {}
    described: Mapping = dataclasses.field(default_factory=dict)


PLAIN = Responses()


class Sampler:
    """Samples groups of responses; its engine is made anew when the budget changes.

    Attributes:
        level: which of the budgets is used: 0 is the first, `rollout.budgets` follow.
        new, length: most tokens of a response, and of a row, see `most_new`.
    """

    def __init__(self, model: Model, config: RlConfig, responses: Responses = PLAIN):
        """Raises UserError if model, method and budget do not go together."""
        self.model, self.config, self.responses, self.level = model, config, responses, 0
        rule = closing(model.scheme, model.special, model.tokenize)
        self.closing = 0 if rule is None else len(rule)  # tokens that closing a thought adds
        prompt = config.rollout.max_prompt
        self.new = most_new(config, self.closing) if responses.length is None else responses.length - prompt
        self.length = min(prompt + self.new, model.config.max_positions)
        self.engine: Engine | None = None
        self.params: dict | None = None  # from which the engine is made, where there is none
        self._evictions: dict[int, Eviction] = {}
        self._bytes: dict[tuple, int] = {}
        try:
            model.check(self.decode_config(), [], config.rollout.max_new)
        except UserError as error:
            raise UserError(_as_rollout(str(error))) from None

    def decode_config(self, evicts: bool = True, level: int | None = None) -> DecodeConfig:
        """The engine's settings; without eviction where it is not wanted; `level` None is the present one."""
        rollout = self.config.rollout
        eviction = self._eviction(self.level if level is None else level) if evicts else None
        return DecodeConfig(
            rows=rollout.rows or rollout.responses,
            capacity=rollout.max_prompt + rollout.max_new + self.closing + 1,
            block_steps=rollout.block_steps,
            sampling=Sampling(rollout.temperature),
            max_thought=rollout.max_thought,
            eviction=eviction,
            horizon=self.length + 1 if eviction is not None and self.config.replay else 0,
        )

    def _eviction(self, level: int) -> Eviction | None:
        """The KV budget of a level; made once, as SepLLM looks through the vocabulary for its separators."""
        settings = self.config.rollout.eviction
        if settings is None:
            return None
        if level not in self._evictions:
            budget = self.config.rollout.budgets[level - 1] if level else settings["budget"]
            self._evictions[level] = self.model.eviction(**{**settings, "budget": budget})
        return self._evictions[level]

    @property
    def never(self) -> tuple[int, ...]:
        """Ids that no response may draw."""
        return tuple(sorted({*self.model.rules(self.decode_config()).never, *self.responses.never}))

    @property
    def budget(self) -> int:
        """Keys that a row keeps, or all of a row."""
        eviction = self.decode_config().eviction
        return self.length if eviction is None else eviction.most

    def load(self, params: dict) -> None:
        """Takes new weights; the sampler computes with what a step computes with."""
        self.params = None
        params = states.computed(params, self.model.config, self.config.train.params_dtype)
        if self.engine is None:
            self.params = params
        else:
            self.engine.load(params)

    def drop(self) -> None:
        """Lets go of the weights; others must be loaded before anything is sampled."""
        if self.engine is not None:
            self.engine.weights = None

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
        self, prompts: Sequence[Row], numbers: Sequence[int], done: Callable[[int, list[Completion]], None],
        ended: Callable[[], bool] = lambda: False,
    ) -> list[list[Completion]]:  # fmt: skip
        """A group of responses to each prompt.

        Args:
            numbers: of the problems in the run, from which their seeds follow.
            done: told the place of a prompt and its group, as soon as all of it is there.
            ended: asked after every block of decoding steps.

        Raises:
            Stopped: `ended` says so; what was sampled is given up.
            UserError: a prompt cannot be asked.
        """
        rollout, groups = self.config.rollout, [[] for _ in prompts]
        requests = [
            Request(prompt, rollout.max_new, seed_of(self.config.train.seed, number), place, rollout.group)
            for place, (prompt, number) in enumerate(zip(prompts, numbers, strict=True))
        ]
        engine = self.ready()
        with contextlib.closing(self.responses.rounds(engine, requests)) as rounds:
            for completion in (each for finished in _until(ended, rounds) for each in finished):
                if completion.finish == "refused":
                    raise UserError(f"problem {numbers[completion.id]} of the run cannot be asked: {completion.why}")
                groups[completion.id].append(completion)
                if len(groups[completion.id]) == rollout.group:
                    groups[completion.id].sort(key=lambda each: each.sample)
                    done(completion.id, groups[completion.id])
        engine.renew()
        return groups

    def ready(self) -> Engine:
        """The engine, made if need be. It begins every rollout with an empty cache, so that what was sampled before,
        or was not because the run was resumed, changes no rounding. Where no thoughts are put away it has room for the
        longest row at once, as every row may become that long."""
        if self.engine is None:
            self.engine = dataclasses.replace(self.model, params=self.params).engine(self.decode_config())
            self.params = None
        if not self.model.scheme.has_gists:
            self.engine.reserve(self.length)
        return self.engine

    def cache_bytes(self, evicts: bool = True, level: int | None = None) -> int:
        """Of all rows, from the shapes of the arrays at their largest; as they are, or as they would be for rows of
        this length with every key kept. Without the record of deaths, see `record_bytes`."""
        config = self.decode_config(evicts, level)
        if (key := (evicts, level, self.level)) not in self._bytes:
            each = cache_bytes(self.model.config, config, self.model.rules(config))
            self._bytes[key] = round(config.rows * each)
        return self._bytes[key]

    def record_bytes(self) -> int:
        """Of the record of deaths of all rows, as the engine keeps it; 0 where there is no engine."""
        record = None if self.engine is None else self.engine.cache.record
        return 0 if record is None else record.nbytes


def _until(ended: Callable[[], bool], rounds: Iterable) -> Iterator:
    """`rounds`, but Stopped once `ended` says so."""
    for each in rounds:
        if ended():
            raise Stopped
        yield each


def most_new(config: RlConfig, closing: int) -> int:
    """Tokens of the longest response that a rollout may come to. Where thoughts are closed, what that adds may be as
    much as what is sampled: thoughts are as long as what closes them, on average at least. A row beyond that is cut
    off.

    Args:
        closing: tokens that closing a thought adds; 0 where none is closed.
    """
    return (2 if closing else 1) * config.rollout.max_new + closing


def _as_rollout(line: str) -> str:
    """A complaint of the engine's in the words of a config for rollouts."""
    words = {"decode.rows": "rollout.rows", "decode.capacity": "rollout.max_prompt + rollout.max_new",
             "eviction.buffer": "rollout.buffer"}  # fmt: skip
    for old, new in words.items():
        line = line.replace(old, new)
    return line


def seed_of(seed: int, number: int) -> int:
    """The seed of the problem with this number of a run with that seed."""
    return sample_seed(seed, number + 1)
