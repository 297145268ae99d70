"""Reinforcement learning of a checkpoint folder on problems, from one config to an exported folder.

    weights ── sampler: a group of responses to each of some problems, under the KV budget ──┐
       │       rewards, in processes beside it                                               │
       └────── log-probs of the responses by these weights, and by the reference ── updates ─┴─ new weights

What differs: the loop itself, with its logs, checkpoints and signals, is that of supervised training
(`training.run.train`): a step of it is a rollout with its updates. The reference of the KL is the model that the run
began with; under adapters it is the base, of which there is no second copy.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax.data.problem import Problem
from lt_jax.errors import UserError
from lt_jax.model import Model, load
from lt_jax.models import huggingface, lora
from lt_jax.models.config import DecoderConfig
from lt_jax.rl import memory, sharing
from lt_jax.rl.clock import compiling
from lt_jax.rl.config import ProblemsConfig, RlConfig
from lt_jax.rl.experience import Experience
from lt_jax.rl.problems import Order, open_problems
from lt_jax.rl.reward_worker import KINDS
from lt_jax.rl.rewards import RewardPool
from lt_jax.rl.rollout import PLAIN, Responses, Sampler
from lt_jax.rl.step import make_logps, make_step
from lt_jax.rl.validation import Validation
from lt_jax.training import mesh as meshes
from lt_jax.training import metrics, run
from lt_jax.training import state as states
from lt_jax.training.checkpoint import fingerprint
from lt_jax.training.folder import save_trained

CHECKED = 256  # problems of an endless stream that are looked at before anything is sampled


def learn(
    config: RlConfig, say: Callable[[str], None] = print, responses: Callable[[Model], Responses] = lambda _: PLAIN,
    opened: Callable[[ProblemsConfig, bool], tuple[Sequence[Problem], Sequence[Problem], dict]] = open_problems,
) -> Path | None:  # fmt: skip
    """Trains and exports; returns the exported folder, or None if the run was asked to stop before its end.

    Args:
        responses: what a response of the model is.
        opened: what gives the problems, as `open_problems` does.

    Raises:
        UserError: anything about model, problems, rewards, mesh, checkpoint or disk that the user can put right.
    """
    if jax.process_count() > 1:
        raise UserError("reinforcement learning runs in one process, over all of its devices; start one")
    mesh = meshes.make(config.train.mesh)
    check_rows(config, mesh)
    judged = any(kind in KINDS and kind != "format" for kind, _ in config.reward.kinds)
    problems, held_out, named = opened(config.problems, judged)
    params, model = read_model(config, mesh)
    folder = Path(config.folder)
    train = dataclasses.replace(config.train, gist_rule=model.scheme.gist_rule)
    config = dataclasses.replace(config, train=train)
    sampler = Sampler(model, config, responses(model))
    sampler.load(params)
    never = sampler.never
    resolved = describe(config, named, model, params) | sampler.responses.described
    say(front_line(model, mesh, config))
    with RewardPool(config.reward, say) as pool, compiling() as compiled:
        pool.check([problems[number] for number in range(min(len(problems), CHECKED))])
        data = Experience(config, model, sampler, Order(problems, train.seed), pool, mesh, say)
        data.views, data.compiled = views(config, model, params, never, mesh), compiled
        say(sharing_line(data.longest))
        made = run.Made(make_step(config, never), config.updates, functools.partial(summary, data),
                        data.before, data.after, data.until)  # fmt: skip
        say(memory.estimate(config, model, sampler, never, mesh).describe())
        validation = Validation(model, sampler, held_out, pool, say) if held_out else None
        result = run.train(
            train, model.config, params, data, evaluate=validation, folder=folder / "checkpoints", mesh=mesh,
            writers=lambda step: writers(config, folder, step), resolved=resolved, say=say, made=made,
            keep_params=False,
        )  # fmt: skip
    sampler.rest()
    if not result.finished:
        say(f"stopped after rollout {int(result.state.step)} as asked; the same command goes on from there")
        return None
    final = save_trained(folder / "final", result.params, model.config, model.tokenizer, model.card if model.trained
                         else None, source=config.model, dtype=config.export_dtype or train.params_dtype,
                         overwrite=True)  # fmt: skip
    say(f"exported to {final}")
    return final


def check_rows(config: RlConfig, mesh: Mesh) -> None:
    """Raises UserError if the mesh cannot share the responses of a rollout."""
    parts = meshes.ways(mesh, "rows")
    piece = config.rollout.responses // config.updates // config.train.accumulate
    if piece % parts:
        raise UserError(
            f"mesh: data x fsdp = {parts} does not divide the {piece} responses of a microbatch, which are "
            "rollout.prompts x rollout.group / updates / train.accumulate"
        )
    if config.rollout.rows % parts:
        raise UserError(f"mesh: data x fsdp = {parts} does not divide rollout.rows ({config.rollout.rows})")
    if meshes.ways(mesh, "tokens") > 1:
        raise UserError(
            "mesh.context must be 1: a response is sampled token by token, on one device or `tensor` of them"
        )


def read_model(config: RlConfig, mesh: Mesh) -> tuple[dict, Model]:
    """The folder's parameters on the mesh, perhaps with adapters, and its model without them: what holds them longer
    than the run does would keep a copy of them in memory."""
    raw = huggingface.read_config(config.model, config.dtype)
    dtype = config.train.params_dtype if config.lora else "float32"
    shardings = meshes.param_shardings(mesh, raw)
    loaded = huggingface.load(config.model, dtype, compute_dtype=config.dtype, shardings=shardings)
    of = config.problems
    model = load(config.model, config.method, chat=of.chat, system=of.system, prefix=of.prefix, suffix=of.suffix,
                 weights=loaded)  # fmt: skip
    params, sizes = loaded
    if config.lora:
        params, sizes = lora.add(params, sizes, config.lora, jax.random.key(config.train.seed))
    params = jax.device_put(params, meshes.param_shardings(mesh, sizes))  # where training will have them
    return params, dataclasses.replace(model, params={}, config=sizes, split=meshes.split(mesh))


def views(config: RlConfig, model: Model, params: dict, never: tuple[int, ...], mesh: Mesh) -> dict[str, Callable]:
    """What is known of a rollout's tokens before it is learned from: log-probs by the old policy, unless the update
    computes them (`RlConfig.fresh`), and by the reference where a KL to it is part of the loss."""
    found = {} if config.fresh else {"logp_old": make_logps(model.config, config, never, mesh)}
    if config.loss.kl_weight:
        other, sizes = reference(config, model.config, params)
        of = make_logps(sizes, config, never, mesh)
        found["logp_reference"] = lambda _, batch: of(other, batch)
    return found


def reference(config: RlConfig, model: DecoderConfig, params: dict) -> tuple[dict, DecoderConfig]:
    """The model that the run begins with, in the form that a step computes with; its arrays are not given up."""
    if model.lora:
        return states.split(params, states.trainable_mask(model))[1], model.replace(lora=None)
    return jax.tree.map(jnp.copy, states.computed(params, model, config.train.params_dtype)), model


def describe(config: RlConfig, problems: dict, model: Model, params: dict) -> dict:
    """The run as JSON values, written into its checkpoints. What is left out changes no number of it."""
    values = dataclasses.asdict(config)
    for name in ("folder", "model", "train", "tensorboard", "wandb", "export_dtype"):
        del values[name]
    del values["problems"]["paths"]
    for name in ("workers", "chunk"):
        del values["reward"][name]
    base = {"weights": int(fingerprint(params)), "scheme": dataclasses.asdict(model.scheme)}
    prompt = {name: getattr(model.prompt, name) for name in ("name", "system", "prefix", "suffix")}
    return json.loads(json.dumps(values | problems | {"model": base, "prompt": prompt}))


def summary(data: Experience, window: list[dict], last: int, seconds: float) -> dict[str, float]:
    """Means over the rollouts of a window: what the step says of each, and what its making told.

    Raises:
        UserError: the loss or a gradient is not a number.
    """
    for number, values in enumerate(window, last - len(window) + 1):
        loss, norm = float(values["loss"]), float(values["grad_norm"])
        if not (np.isfinite(loss) and np.isfinite(norm)):
            raise UserError(
                f"the loss is {loss} and the gradient norm {norm} at rollout {number}; lower optim.learning_rate, or "
                "choose a correction that bounds its weights (mismatch)"
            )
    found = [dict(values) | told for values, told in zip(window, data.told[-len(window) :], strict=True)]
    mean = {name: float(_over(name)([values[name] for values in found])) for name in found[0]}
    parts = [mean[f"seconds_{name}"] for name in ("rollout", "reward", "logps", "update")]
    tokens = sum(float(values["tokens"]) for values in window)
    return mean | {
        "seconds": sum(parts),
        "share_rollout": parts[0] / max(sum(parts), 1e-9),
        "update_tokens_per_second": tokens / len(window) / max(parts[2] + parts[3], 1e-9),
        "tokens_per_second": tokens / max(seconds, 1e-9),
    }


LAST = ("problems_asked", "prompts_left_out", "budget", "cache_bytes", "cache_bytes_dense", "record_bytes")
ALL = ("reward_failures", "rewards_late", "broken_responses")


def _over(name: str) -> Callable:
    """What a metric of several rollouts is: their mean, but the last of what is counted on, and the sum of failures."""
    if name == "response_longest":
        return np.max
    return np.sum if name in ALL else (lambda values: values[-1]) if name in LAST else np.mean


def writers(config: RlConfig, folder: Path, step: int) -> list[metrics.MetricWriter]:
    """config.json and the metric writers."""
    values = dataclasses.asdict(config)
    metrics.write_whole(folder / "config.json", json.dumps(values, indent=2) + "\n")
    found = [metrics.Terminal(config.train.steps, first_step=step), metrics.Jsonl(folder / "metrics.jsonl", step)]
    if config.tensorboard:
        found.append(metrics.TensorBoard(folder / "tensorboard", step))
    if config.wandb:
        found.append(metrics.WeightsAndBiases(config.wandb, folder.name, values, folder / "wandb_id", step))
    return found


def front_line(model: Model, mesh: Mesh, config: RlConfig) -> str:
    """What is about to be done, for the terminal."""
    rollout, how = config.rollout, config.rollout.eviction
    kept = "every key kept" if how is None else f"{how['policy']} with {how['budget']} + {how['buffer']} keys"
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    return (
        f"model: {model.config.model_type}, {model.scheme.method}, on {sizes}\n"
        f"a rollout: {rollout.prompts} problems x {rollout.group} responses of at most {rollout.max_new} tokens, "
        f"{kept}; "
        f"{config.updates} update{'s' * (config.updates > 1)}"
    )


def sharing_line(rows: sharing.Sizes) -> str:
    """How a rollout will be learned from, for the terminal."""
    if rows.together == 1:
        return "the learner reads a prompt once for each of its responses"
    return f"the learner reads a prompt once for {rows.together} of its responses: rows of at most {rows.shared} tokens"
