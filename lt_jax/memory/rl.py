"""Reinforcement learning of the actions: a trajectory is one response of `rl.loop`, which samples, rewards and learns.

    problem ─ a group of trajectories ─ each as one Completion, over its training row ─ rewards of the final answers ─
    advantages within the group ─ corrections over the row ─ an update

The row is that of `memory.rows`, in either semantics. In `rebuild` it has every step under its own context, and the
prefixes that contexts share once: so the segments that edits of the memory cut a trajectory into are one response, with
one advantage, and what a correction says of a response (a veto, a mean of xi) it says of the whole trajectory.

What differs from the paper (LightThinker++ has no such part): the loss of a response is over all tokens that the model
wrote in it, those of turns that were not possible too, and over nothing that the environment fed. In DCPO every segment
is a row of its own with the trajectory's advantage; the sum over them is the same here, but a mean over tokens (`grpo`)
is over the trajectory, so that one with many segments weighs no more than one with few. A token that ends a turn
without an action (EOS) is not part of a row, and so is not learned from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lt_jax.data.problem import Problem
from lt_jax.data.sources import Mapped
from lt_jax.decode import Completion, Engine, Request
from lt_jax.decode.pieces import keys_kept
from lt_jax.decode.record import as_row
from lt_jax.decode.request import sample_seed
from lt_jax.errors import UserError
from lt_jax.memory.machine import NAMES, Commit, FinalAnswer
from lt_jax.memory.syntax import Syntax, syntax_of
from lt_jax.memory.tasks import Lookbacks
from lt_jax.memory.trajectories import ILLEGAL, MALFORMED, Limits, Tool, Trajectories, Trajectory
from lt_jax.model import Model
from lt_jax.rl import loop
from lt_jax.rl.config import ProblemsConfig, RlConfig
from lt_jax.rl.problems import open_problems, told_by
from lt_jax.rl.rollout import Responses

# How a trajectory ended, in the words of a completion: "stop" where it was ended for what it wrote.
ENDS = {"answered": "eos", "malformed": "stop", "turns": "length", "length": "length", "context": "capacity",
        "positions": "positions"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrajectoryConfig:
    """What a trajectory is. The tokens that the model writes in it are at most `rollout.max_new`, and the keys that it
    sees at once at most `rollout.max_prompt` + `rollout.max_new`.

    Attributes:
        turn, turns, malformed: see `Limits`.
        row: tokens of the training row, with all that the environment fed; a trajectory that comes to it ends. 0 is
            `rollout.max_prompt` + 4 x `rollout.max_new`. In `lifetimes` it is at most the model's positions.
        wrong: taken from the reward for each turn that was not possible.
        most_wrong: and in all at most this.
        looks: least and most look-backs of embedded problems, see `tasks.Lookbacks`.
    """

    turn: int = 512
    turns: int = 32
    malformed: int = 3
    row: int = 0
    wrong: float = 0.0
    most_wrong: float = 1.0
    looks: tuple[int, int] = (1, 4)

    def __post_init__(self):
        for name in ("row", "wrong", "most_wrong"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UserError(f"memory.{name} is {value}; it must be a number, 0 or more")


def learn(
    config: RlConfig, how: TrajectoryConfig, say: Callable[[str], None] = print, tools: Mapping[str, Tool] | None = None
) -> Path | None:
    """`rl.loop.learn` from trajectories.

    Args:
        tools: see `Trajectories`. Where there are any, a rollout that is made again is the same only if they answer the
            same.

    Raises:
        UserError: as there; the model has no marks of a memory; a KV budget is set.
    """
    if config.rollout.eviction is not None:
        raise UserError("rollout.kv is set: trajectories of a memory are sampled with every key kept that the memory "
                        "shows; leave rollout.kv empty")  # fmt: skip
    if config.rollout.max_thought:
        raise UserError("rollout.max_thought is set: nothing closes the thoughts of a memory by force; set memory.turn")
    if config.problems.embedded and config.problems.families:
        raise UserError(f"data.families is {config.problems.families!r}; method 'memory' has one family of problems of "
                        "its own; leave it empty")  # fmt: skip
    return loop.learn(config, say, lambda model: responses(model, config, how, tools),
                      lambda source, answers: problems(source, answers, how))  # fmt: skip


def problems(
    config: ProblemsConfig, answers: bool, how: TrajectoryConfig
) -> tuple[Sequence[Problem], Sequence[Problem], dict]:
    """As `rl.problems.open_problems`; embedded ones are those of `tasks`, which supervised training teaches."""
    if not config.embedded:
        return open_problems(config, answers)
    of = lambda size, apart: Lookbacks(size, steps=tuple(config.steps), looks=tuple(how.looks), held_out=apart)
    training = Mapped(of(config.embedded, False), lambda each: each.problem)
    return training, [each.problem for each in of(config.held_out, True)], {"told_by": told_by(training)}


def responses(
    model: Model, config: RlConfig, how: TrajectoryConfig, tools: Mapping[str, Tool] | None = None
) -> Responses:
    """Trajectories in the place of responses.

    Raises:
        UserError: the model was not trained for method "memory".
    """
    if model.scheme.method != "memory":
        raise UserError(f"the model writes by method {model.scheme.method!r}; trajectories need one that was trained "
                        "for method 'memory'")  # fmt: skip
    rollout, semantics = config.rollout, model.scheme.memory_semantics
    row = how.row or rollout.max_prompt + 4 * rollout.max_new
    if semantics == "lifetimes":  # where the index of a token is its position
        row = min(row, model.config.max_positions - 1)
    limits = Limits(semantics, how.turn, how.turns, rollout.max_new, how.malformed, row=row)
    syntax = syntax_of(model.special, model.tokenizer)
    return Responses(
        rounds=lambda engine, requests: rounds(engine, requests, syntax, limits, tools),
        length=row,
        never=syntax.reply,
        added=lambda completions: -np.asarray([_wrong(each, how) for each in completions], np.float32),
        said=said,
        described={"memory": dataclasses.asdict(how) | {"semantics": semantics, "tools": sorted(tools or {})}},
    )


def rounds(
    engine: Engine, requests: Sequence[Request], syntax: Syntax, limits: Limits, tools: Mapping[str, Tool] | None = None
) -> Iterator[list[Completion]]:
    """A trajectory for each sample of each request, as `Responses.rounds`. All requests are sampled alike."""
    if not requests:
        return
    limits = dataclasses.replace(limits, sampling=requests[0].sampling, tokens=requests[0].max_new)
    prompts = [as_row(request.prompt).tokens.tolist() for request in requests]
    # Turns of a trajectory count its seed up, so samples count the request's down: no two draws are the same.
    questions = (((place, sample), prompts[place], sample_seed(request.seed, -1 - sample))
                 for place, request in enumerate(requests) for sample in range(request.n))  # fmt: skip
    for ended in Trajectories(engine, syntax, limits, tools).rounds(questions):
        yield [completion_of(each, prompts[each.id[0]], requests[each.id[0]].id, each.id[1]) for each in ended]


def completion_of(trajectory: Trajectory, prompt: Sequence[int], id: object = None, sample: int = 0) -> Completion:
    """A trajectory as a completion over its training row, cut behind the last token that the model wrote.

    `forced` is all that the environment fed, `written` the content of the final answer (so this alone is rewarded as
    the text of the response), `closings` are the places of commits. Its `stands_for` is the trajectory.
    """
    row, start = trajectory.row.row(), len(prompt)
    own = np.flatnonzero(row.trained)
    end = int(own[-1]) + 1 if len(own) else start
    sampled = row.trained[start:end]
    logp, written = np.zeros(len(sampled), np.float32), np.zeros(len(sampled), bool)
    if len(own):
        logp[sampled] = np.concatenate([each.logp for each in trajectory.turns])
    last = trajectory.turns[-1] if trajectory.turns else None
    if last is not None and isinstance(last.turn.action, FinalAnswer) and not last.why:
        written[len(written) - len(last.turn.marked) + 1 : -1] = True
    ends = np.cumsum([len(each.logp) for each in trajectory.turns])
    commits = [own[end - 1] - start for end, each in zip(ends, trajectory.turns, strict=True)
               if isinstance(each.turn.action, Commit) and not each.why]  # fmt: skip
    seen = (keys_kept(row)[:-1] + 1)[start:end].astype(np.int32)
    return Completion(
        id=id, prompt=row.tokens[:start], tokens=row.tokens[start:end], forced=~sampled, written=written, logp=logp,
        visible=seen, held=seen, is_gist=np.zeros(len(sampled), bool), closings=np.asarray(commits, np.int32),
        death=row.death[:end], since=row.since[:end], block=row.gist[:end], position=row.position[:end],
        finish=ENDS.get(trajectory.finish, trajectory.finish), seconds=0.0, sample=sample, seed=trajectory.seed,
        read=sum(each.read for each in trajectory.turns), reused=sum(each.reused for each in trajectory.turns),
        read_again=trajectory.again, why=trajectory.why, stands_for=trajectory,
    )  # fmt: skip


def _wrong(completion: Completion, how: TrajectoryConfig) -> float:
    counts = completion.stands_for.counts
    return min(how.wrong * (counts[MALFORMED] + counts[ILLEGAL]), how.most_wrong)


def said(completions: Sequence[Completion]) -> dict[str, float]:
    """What is watched of the trajectories of a rollout: means."""
    done = [each.stands_for for each in completions]
    mean = lambda values: float(np.mean(values))
    return {f"memory_{name}": mean([each.counts[name] for each in done])
            for name in (*NAMES.values(), MALFORMED, ILLEGAL)} | {
        "memory_turns": mean([len(each.turns) for each in done]),
        "memory_peak": mean([each.peak for each in done]),
        "memory_dependency": mean([each.dependency for each in done]),
        "memory_read_again": mean([each.again for each in done]),
        "memory_row": mean([len(each.row) for each in completions]),
    }  # fmt: skip
