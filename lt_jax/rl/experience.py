"""The data of a run that the model makes itself: each batch is a rollout by the weights of that moment.

What differs: with `resample`, problems whose responses all got the same reward are replaced by others, as in DAPO; what
the paper's release does with them is nothing. Prompts that are too long are left out and counted.

What a rollout is follows from the weights, the budget, and how many problems were asked before; these are kept in the
run's checkpoints, so that a run that goes on from one makes the rollouts that it would have made. (But a reward that is
given in time by one machine and too late by another is 0 there.)
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from lt_jax.decode import Completion
from lt_jax.errors import UserError
from lt_jax.layout.row import Row
from lt_jax.model import Model
from lt_jax.rl import metrics, sharing
from lt_jax.rl.advantages import overlong
from lt_jax.rl.config import RlConfig
from lt_jax.rl.problems import Order
from lt_jax.rl.rewards import RewardPool, Rewards
from lt_jax.rl.rollout import Sampler
from lt_jax.training import heap
from lt_jax.training import mesh as meshes
from lt_jax.training.run import Stopped

WARN_ABOVE = 0.5  # the share of responses above which these are told, once
WARNINGS = {
    "truncation_rate": "were cut off at rollout.max_new or where rows end, where they can hardly be right; raise "
    "rollout.max_new",
    "repetition_rate": "mostly repeat themselves; the policy may have collapsed: look at the curves of its mismatch",
}


@dataclasses.dataclass(frozen=True)
class Group:
    """The responses to one problem.

    Attributes:
        number: of the problem in the run.
        completions: of its samples.
        rewards: of each, [G] float32, with what length takes away.
        given: what the rewards are made of.
    """

    number: int
    completions: list[Completion]
    rewards: np.ndarray
    given: Rewards

    @property
    def signal(self) -> bool:
        """Whether there is anything to learn from: rewards differ by more than length takes away."""
        return bool((self.given.rewards != self.given.rewards[0]).any())


class Experience:
    """Batches of rollouts, an endless iterator with a state of Grain's kind.

    Attributes:
        asked: problems asked so far. left_out: of them, those whose prompt was too long.
        told: what there is to say of each rollout since the start of this process, {name: value}.
    """

    def __init__(self, config: RlConfig, model: Model, sampler: Sampler, problems: Order, pool: RewardPool, mesh: Mesh,
                 say: Callable[[str], None] = print):  # fmt: skip
        self.config, self.model, self.sampler, self.mesh, self.say = config, model, sampler, mesh, say
        self.problems, self.pool = problems, pool
        self.longest = sharing.longest(config, sampler.length, sampler.new, meshes.ways(mesh, "rows"))
        self.sizes = self.longest  # of the rows of the last batch
        self.views: dict[str, Callable[[dict, dict], jax.Array]] = {}  # name -> log-probs of (params, batch)
        self.asked = self.left_out = 0
        self.stream = sys.stderr  # where a person sees how far a rollout is
        self.told: list[dict[str, float]] = []
        self.params: dict | None = None
        self.compiled: Callable[[], float] = lambda: 0.0  # of `clock.compiling`, if that time is to be told apart
        self.ended: Callable[[], bool] = lambda: False
        self._mark, self._warned, self._compiled = self._clock(), set(), 0.0
        self.resampled = 0  # groups of the last rollout that others were asked for
        self.sampled = self.seconds = 0.0  # tokens of it, and the time they took

    # Hooks of `training.run.Made`.

    def before(self, params: dict) -> None:
        """Takes the weights that the next rollout is made with."""
        self.params = jax.block_until_ready(params)
        self._lap()
        self._compiled = self.compiled()
        self.sampler.load(params)

    def after(self, values: dict) -> None:
        """Looks at how far sampler and learner agreed; the budget grows where that was too little."""
        values = jax.device_get(values)
        self.told[-1] |= {"seconds_update": self._lap(), "seconds_compile": self.compiled() - self._compiled}
        least = self.config.rollout.least_agreement
        if least and float(values["agreement_q05"]) < least:
            before = self.sampler.budget
            self.sampler.grow()
            if self.sampler.budget != before:
                self.say(
                    f"the budget grows from {before} to {self.sampler.budget} keys: the 5th percentile of agreement is "
                    f"{float(values['agreement_q05']):.3f}, below {least:g}"
                )

    def until(self, ended: Callable[[], bool]) -> None:
        """Takes what tells whether the run is asked to stop; it is asked after every block of a rollout."""
        self.ended = ended

    # The iterator.

    def __iter__(self) -> Experience:
        return self

    def __next__(self) -> dict:
        self.sampled = self.seconds = 0.0
        before = self.asked, self.left_out
        try:
            groups = self._groups()
        except Stopped:  # the same rollout is made when the run goes on
            self.asked, self.left_out = before
            raise
        found = self._said(groups)
        if self.compiled() > self._compiled:
            heap.give_back()
        rewarded = self._lap() - self.seconds
        batch = meshes.place_batch(self.mesh, self._batch(groups))
        for name, view in self.views.items():
            batch[name] = view(self.params, batch)
        jax.block_until_ready(batch)
        scored = self._lap()
        found["responses_per_row"] = float(self.sizes.together)
        clocks = {"seconds_rollout": self.seconds, "seconds_reward": rewarded, "seconds_logps": scored}
        self.told.append(found := found | clocks)
        self._warn(found)
        return batch

    def get_state(self) -> dict:
        return {"asked": self.asked, "left_out": self.left_out, "level": self.sampler.level}

    def set_state(self, state: dict) -> None:
        self.asked, self.left_out = state["asked"], state["left_out"]
        self.sampler.level = state["level"]
        self.sampler.rest()

    async def save(self, directory):
        """As Orbax asks of what has a state; the state is that of this call."""
        state = json.dumps(self.get_state())

        async def write():
            path = await directory.await_creation()
            (path / "experience.json").write_text(state)

        return write()

    async def load(self, directory):
        """As Orbax asks of what has a state."""

        async def read():
            self.set_state(json.loads((directory / "experience.json").read_text()))

        return read()

    # How a rollout is made.

    def _groups(self) -> list[Group]:
        """The groups of a rollout, in the order in which their problems were asked."""
        rollout = self.config.rollout
        kept: list[Group] = []
        spare: list[Group] = []
        for _ in range(1 + rollout.resample):
            for group in self._asked(rollout.prompts - len(kept)):
                (kept if group.signal or not rollout.resample else spare).append(group)
            if len(kept) == rollout.prompts:
                break
        self.resampled = len(kept) + len(spare) - rollout.prompts
        return sorted(kept + spare[: rollout.prompts - len(kept)], key=lambda group: group.number)

    def _asked(self, count: int) -> list[Group]:
        """Asks the next `count` problems."""
        numbers, prompts = self._prompts(count)
        problems = [self.problems[number] for number in numbers]
        waiting = {}

        def done(place: int, group: list[Completion]) -> None:
            texts = [self.model.text(each.tokens[each.written]) for each in group]
            waiting[place] = self.pool.submit([problems[place]] * len(group), texts)
            if self.stream.isatty():
                self.stream.write(f"\r\033[Krollout: {len(waiting)} of {count} groups are sampled")
                self.stream.flush()

        began = self._clock()
        groups = self.sampler.sample(prompts, numbers, done, self.ended)
        self.seconds += self._clock() - began
        self.sampled += sum((~each.forced).sum() for group in groups for each in group)
        return [self._group(number, groups[place], waiting[place]()) for place, number in enumerate(numbers)]

    def _prompts(self, count: int) -> tuple[list[int], list[Row]]:
        """Numbers and prompts of the next problems whose prompts are not too long."""
        numbers, prompts, missed = [], [], 0
        most = min(self.config.rollout.max_prompt, self.sampler.length - 1)
        while len(numbers) < count:
            problem = self.problems[self.asked]
            prompt = self.model.ask(problem.text, problem.system)
            if len(prompt) <= most:
                numbers.append(self.asked)
                prompts.append(prompt)
            else:
                self.left_out, missed = self.left_out + 1, missed + 1
                if missed == len(self.problems.problems):
                    raise UserError(
                        f"the prompts of all {missed} problems are longer than rollout.max_prompt and the model's "
                        f"positions allow ({most} tokens); the last one has {len(prompt)}"
                    )
            self.asked += 1
        return numbers, prompts

    def _group(self, number: int, completions: list[Completion], given: Rewards) -> Group:
        rewards = given.rewards
        if buffer := self.config.rollout.overlong:
            lengths = np.asarray([(~each.forced).sum() for each in completions])
            rewards = rewards + np.asarray(overlong(lengths, self.config.rollout.max_new, buffer))
        rewards = rewards + self.sampler.responses.added(completions)
        return Group(number, completions, rewards, given)

    def _batch(self, groups: list[Group]) -> dict:
        """The batch of a rollout, whose updates have whole groups."""
        rows = [(place, each, reward) for place, group in enumerate(groups)
                for each, reward in zip(group.completions, group.rewards, strict=True)]  # fmt: skip
        number, completions, rewards = zip(*(rows[place] for place in sharing.order(self.config)), strict=True)
        self.sizes = sharing.fitted(self.config, self.longest, completions)
        batch = sharing.batch(self.config, self.sizes, completions, self.model.special.pad)
        return batch | {"group": np.asarray(number, np.int32), "rewards": np.asarray(rewards, np.float32)}

    # What is told.

    def _said(self, groups: list[Group]) -> dict[str, float]:
        """What there is to say of a rollout, {name: value}."""
        completions = [each for group in groups for each in group.completions]
        lengths = np.asarray([(~each.forced).sum() for each in completions])
        real, dense = self.sampler.cache_bytes(), self.sampler.cache_bytes(evicts=False)
        parts = {
            f"reward_{kind.replace(':', '.')}": float(np.mean([group.given.parts[kind] for group in groups]))
            for kind, _ in self.config.reward.kinds
        }
        return parts | self.sampler.responses.said(completions) | {
            "response_tokens": float(lengths.mean()),
            "response_longest": float(lengths.max()),
            "truncation_rate": metrics.truncation_rate([each.finish for each in completions]),
            "repetition_rate": metrics.repetition_rate([each.tokens for each in completions]),
            "broken_responses": float(sum(each.finish == "nan" for each in completions)),
            "reward_failures": float(sum(group.given.failed.sum() for group in groups)),
            "rewards_late": float(sum(sum(group.given.timed_out.values()) for group in groups)),
            "resampled": float(self.resampled),
            "problems_asked": float(self.asked),
            "prompts_left_out": float(self.left_out),
            "compressions": float(np.mean([each.compressions for each in completions])),
            "budget": float(self.sampler.budget),
            "cache_bytes": float(real),
            "cache_bytes_dense": float(dense),
            "record_bytes": float(self.sampler.record_bytes()),
            "rollout_tokens_per_second": float(self.sampled) / max(self.seconds, 1e-9),
        }

    def _warn(self, found: dict[str, float]) -> None:
        """Says once in a run what is likely to be a mistake in its settings, and every time that logits are broken."""
        if found["broken_responses"]:
            self.say(
                f"warning: {found['broken_responses']:.0f} responses of a rollout ended where the model's logits were "
                "NaN or infinite; the weights may be broken, or their dtype too narrow"
            )
        for name, line in WARNINGS.items():
            if found[name] > WARN_ABOVE and name not in self._warned:
                self._warned.add(name)
                self.say(f"warning: {100 * found[name]:.0f} % of the responses of a rollout {line}")

    def _clock(self) -> float:
        """Seconds of a clock that stands still while JAX compiles."""
        return time.perf_counter() - self.compiled()

    def _lap(self) -> float:
        """Seconds of it since the last time this was asked."""
        now = self._clock()
        seconds, self._mark = now - self._mark, now
        return seconds
