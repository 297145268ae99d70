"""Config files as the settings of the library. Empty texts and zeros in them mean "the default" where None would."""

from __future__ import annotations

import dataclasses
import os

from launch.main import several
from lt_jax.errors import UserError


def given(group) -> dict:
    """What a group of a config file says, without its empty texts, which mean the default."""
    return {name: value for name, value in group.items() if value != ""}


def train_config(config):
    """The `TrainConfig` of a config file."""
    from lt_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig

    return TrainConfig(
        optim=OptimizerConfig(**config.optim), mesh=MeshConfig(**config.mesh),
        **{**config.train, "attention": config.train.attention or None},
    )  # fmt: skip


def sft_config(config):
    """The `SftConfig` of a config file."""
    from lt_jax.data.pipeline import PipelineConfig
    from lt_jax.layout.scheme import Scheme
    from lt_jax.models.config import LoraConfig
    from lt_jax.training.sft_config import SftConfig, SourceConfig, TokensConfig

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
        scheme=Scheme(**{**config.scheme, **{name: config.scheme[name] or None for name in ("prompt", "semantics")}}),
        tokens=TokensConfig(**given(config.tokens)),
        train=train_config(config),
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb or None,
        export_dtype=config.export_dtype or None,
    )


def lessons(config) -> dict:
    """What a supervised run is taught from, as the argument of `sft`: by default traces, for method "memory"
    trajectories."""
    memory = config.get("memory")
    if config.scheme.method != "memory":
        if memory is not None:
            raise UserError(f"the config has settings of a memory, which scheme.method {config.scheme.method!r} has no "
                            "use for; set it to 'memory', or take another config")  # fmt: skip
        return {}
    from lt_jax.memory import sft

    return {"lessons": sft.lessons(sft.MemoryConfig(**(memory or {})))}


def changed(preset, differs: dict):
    """A preset's `MismatchConfig` with what a config file says besides; "none" turns a setting off.

    Where it turns the weights off, what the preset says of them (their threshold and normalisation) goes with them.
    """
    off = type(preset)()
    differs = {name: getattr(off, name) if str(value).lower() in NONE else value for name, value in differs.items()}
    if "rollout_is" in differs and differs["rollout_is"] is None:
        of_weights = ("rollout_is_threshold", "rollout_is_batch_normalize")
        differs = {name: getattr(off, name) for name in of_weights} | differs
    return dataclasses.replace(preset, **differs)


EVICTION = ("window", "share")  # settings of rollout that go to the KV budget, beside kv, budget and buffer
NONE = ("none", "null")  # as Python and verl say it


def rl_config(config):
    """The `RlConfig` of a config file: its preset, and what the file says besides."""
    from lt_jax.models.config import LoraConfig
    from lt_jax.rl.config import ProblemsConfig, RewardConfig, RlConfig, RolloutConfig, preset
    from lt_jax.rl.losses import LossConfig

    folder_says = lambda value: None if value == "-" else value
    data = dict(config.data)
    around = {name: folder_says(data.pop(name)) for name in ("chat", "system", "prefix", "suffix")}
    problems = ProblemsConfig(several(data.pop("path")), **{**data, "format": data["format"] or None}, **around)
    rollout = dict(config.rollout)
    own = {name: value for name in EVICTION if (value := rollout.pop(name))}
    if own and not rollout["kv"]:
        raise UserError(f"rollout.{next(iter(own))} is given, but no KV policy, which it is for; set rollout.kv too")
    budget = {"policy": rollout.pop("kv"), "budget": rollout.pop("budget"), "buffer": rollout.pop("buffer")} | own
    rollout |= {"eviction": budget if budget["policy"] else None, "max_thought": rollout["max_thought"] or None}
    arm = preset(config.preset, RolloutConfig(**rollout))
    return RlConfig(
        folder=config.folder,
        model=config.model.path,
        method=config.model.method or None,
        dtype=config.model.dtype,
        lora=LoraConfig(**config.lora) if config.lora.rank else None,
        problems=problems,
        reward=RewardConfig(**config.reward),
        advantage=config.advantage or None,
        count_rejected=config.count_rejected,
        **arm | {"mismatch": changed(arm["mismatch"], given(config.mismatch))},
        dense_kl=config.dense_kl,
        loss=LossConfig(**{**config.loss, "clip": config.loss.clip or None, "length": config.loss.length or None}),
        updates=config.updates,
        train=train_config(config),
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb or None,
        export_dtype=config.export_dtype or None,
    )


def agent_config(config):
    """The `AgentConfig` of a config file."""
    from lt_jax.decode import Sampling
    from lt_jax.evaluation.agent_run import AgentConfig
    from lt_jax.memory.multihop import TrailConfig
    from lt_jax.memory.tools import ToolsConfig
    from lt_jax.memory.trajectories import Limits

    trails = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in config.trails.items()}
    limits = {**config.memory, "context": config.memory.context or None, "sampling": Sampling(**config.sampling)}
    return AgentConfig(
        model=config.model.path,
        dtype=config.model.dtype or None,
        out=config.out,
        questions=config.questions.path,
        limit=config.questions.limit,
        corpus=several(config.corpus),
        embedded=config.embedded,
        trails=TrailConfig(**trails),
        seed=config.seed,
        told=config.told,
        system=config.system,
        tools=ToolsConfig(**{**config.tools, "functions": several(config.tools.functions)}),
        limits=Limits(**limits),
        **config.decode,
    )


def arms_config(config):
    """The `ArmsConfig` of a config file: every arm with every seed.

    An arm is "dense", a preset, "replay_kl" (replay with a weight for KL(dense || replay)), or one of these with a KV
    policy of its own, as in "naive:snapkv".
    """
    from lt_jax.rl_demo import ArmsConfig

    if not config.run.rollout.kv:
        raise UserError("run.rollout.kv is empty; the arms are compared under a KV budget, so name a policy")
    arms = {}
    for seed in config.seeds:
        for arm in config.arms:
            name, _, policy = arm.partition(":")
            own = config.run.copy_and_resolve_references()
            label = f"{arm.replace(':', '-')}-{seed}"
            own.folder, own.model.path = f"{config.out}/{label}", f"{config.start.folder}/final"
            own.train.seed = seed
            own.preset = "naive" if name == "dense" else name
            own.rollout.kv = "" if name == "dense" else policy or own.rollout.kv
            own.rollout.update(config.adaptive if name == "adaptive" else {})
            if name == "replay_kl":
                own.preset, own.dense_kl = "replay", config.dense_kl
            arms[label] = rl_config(own)
    plain = config.run.copy_and_resolve_references()
    plain.model.path = f"{config.start.folder}/final"
    eviction = rl_config(plain).rollout.eviction
    return ArmsConfig(config.out, sft_config(config.start), arms, config.problems, eviction)


def questions_config(config):
    """The `QuestionsConfig` of a config file."""
    from lt_jax.memory.questions import QuestionsConfig

    questions = dict(config.questions)
    paths, form = several(questions.pop("path")), questions.pop("format")
    tuples = {name: tuple(questions.pop(name)) for name in ("steps", "families")}
    return QuestionsConfig(paths, form or None, **questions, **tuples)


def synthesis_config(config):
    """The `SynthesisConfig` of a config file."""
    from lt_jax.memory.environment import Work
    from lt_jax.memory.prune import PruneConfig
    from lt_jax.memory.synthesis import SynthesisConfig
    from lt_jax.memory.trajectories import Limits
    from lt_jax.user_function import user_function

    limits = Limits(**{**config.limits, "context": config.limits.context or None})
    tools = user_function(config.tools, takes="nothing", setting="config.tools")() if config.tools else {}
    return SynthesisConfig(
        folder=config.folder, work=Work(limits, tools), at_once=config.at_once, seed=config.seed,
        leave_out=config.leave_out, prune=PruneConfig(**config.prune),
    )  # fmt: skip


def connected(config):
    """The teacher of a config file, as a `Connection`."""
    from lt_jax.memory.teachers import connect
    from lt_jax.memory.teachers.endpoint_config import EndpointConfig
    from lt_jax.memory.teachers.local import LocalConfig

    if config.teacher == "endpoint":
        endpoint = dict(config.endpoint)
        variable, body = endpoint.pop("key_from"), dict(endpoint.pop("body"))
        if variable and variable not in os.environ:
            raise UserError(f"endpoint.key_from is {variable!r}, and there is no environment variable of that name")
        free = {name: None if value == "" else float(value) for name in ("temperature", "top_p", "price_cached")
                for value in [endpoint.pop(name)]}  # fmt: skip
        how = EndpointConfig(**endpoint, **free, body=body, at_once=config.at_once)
        return connect.by_endpoint(how, os.environ.get(variable, ""))
    if config.teacher == "local":
        local = dict(config.local)
        folder, dtype = local.pop("path"), local.pop("dtype")
        return connect.by_model(folder, LocalConfig(**local, rows=config.at_once), dtype or None)
    if config.teacher == "scripted":
        return connect.by_script(config.scripted.expert)
    raise UserError(f"config.teacher is {config.teacher!r}; it must be one of endpoint, local, scripted")
