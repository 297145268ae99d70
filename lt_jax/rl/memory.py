"""How much memory the programs of a run take, before it begins, for the longest rows there can be.

The compiler says of each program what it needs beside what is held between them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax.decode.spread import Spread
from lt_jax.model import Model
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig
from lt_jax.rl import sharing
from lt_jax.rl.config import RlConfig
from lt_jax.rl.rollout import Sampler
from lt_jax.rl.step import make_logps, make_step
from lt_jax.rl.validation import rows_of
from lt_jax.training import heap, optimizer
from lt_jax.training import mesh as meshes
from lt_jax.training import state as states

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes per device.

    Attributes:
        state: trained and frozen parameters, and the optimizer's.
        reference: the model that the KL is to, where it is another copy.
        sampler: the weights in the form that the sampler reads.
        cache, cache_dense: of the rollout, with the record of deaths, and what it would be without a budget. Where the
            budget may grow it is the largest.
        batch: a rollout as it is learned from.
        making: what it takes beside all that to make the sampler's weights: a copy of the trained ones in the dtype of
            a step, where that is another, and what the compiler needs for the largest part.
        validation: the cache of held-out problems that are answered with every key kept; 0 where there are none.
        prefill, rollout, logps, update: what each program needs beside what is held: the widest pass over prompts, the
            decode block, and the learner's two.
    """

    state: int
    reference: int
    sampler: int
    cache: int
    cache_dense: int
    batch: int
    making: int
    validation: int
    prefill: int
    rollout: int
    logps: int
    update: int

    @property
    def held(self) -> int:
        """Between the programs."""
        return self.state + self.reference + self.sampler + self.cache

    @property
    def most(self) -> int:
        """At once."""
        sampled = self.validation + max(self.prefill, self.rollout)
        return self.held + max(self.making, sampled, self.batch + max(self.logps, self.update))

    def describe(self) -> str:
        """Lines for the terminal."""
        gib = lambda size: f"{size / GIB:.2f}"
        saved = "" if self.cache == self.cache_dense else f" ({gib(self.cache_dense)} without the budget)"
        other = f", reference {gib(self.reference)}" if self.reference else ""
        measured = f", cache of the validation {gib(self.validation)}" if self.validation else ""
        return (
            f"memory per device, GiB: {gib(self.most)} at most. Held: weights and optimizer {gib(self.state)}{other}, "
            f"weights of the sampler {gib(self.sampler)}, cache {gib(self.cache)}{saved}\n"
            f"beside that, GiB: rollout {gib(self.rollout)}, its prompts {gib(self.prefill)}, making the sampler's "
            f"weights {gib(self.making)}{measured}, log-probs {gib(self.logps)}, update {gib(self.update)}; and for "
            f"the last two a batch of {gib(self.batch)}"
        )


def estimate(config: RlConfig, model: Model, sampler: Sampler, never: tuple[int, ...], mesh: Mesh) -> Estimate:
    """Compiles the programs for the longest rows, without running any of them."""
    engine, rollout = sampler.ready(), config.rollout
    record = engine.cache.record.shape[1:3] if config.replay else None
    longest = sharing.longest(config, sampler.length, sampler.new, meshes.ways(mesh, "rows"))
    learner = learning(config, model.config, never, longest, record, mesh)
    prompt = min(rollout.max_prompt, sampler.length - 1)
    block, prefill = engine.lowered(prompt, min(rollout.prompts, engine.config.rows), rollout.group > 1)
    ways = engine.spread.parts * engine.spread.ways
    dense = sampler.cache_bytes(evicts=False) // ways
    own = rows_of(engine.config.rows, config.problems.held_out, engine.spread.parts) / engine.config.rows
    found = Estimate(
        state=learner.state,
        reference=learner.reference,
        sampler=sizes(engine.weights),
        cache=(sampler.cache_bytes(level=len(rollout.budgets)) + sampler.record_bytes()) // ways,
        cache_dense=dense,
        batch=learner.batch,
        making=making(config, model.config, engine.spread, engine.form, mesh),
        validation=round(own * dense) if config.problems.held_out else 0,
        prefill=more(prefill.compile()),
        rollout=more(block.compile()),
        logps=0 if learner.logps is None else more(learner.logps),
        update=more(learner.update),
    )
    heap.give_back()
    return found


def making(config: RlConfig, model: DecoderConfig, spread: Spread, form: str, mesh: Mesh) -> int:
    """Bytes that `Sampler.load` takes beside the weights that it makes, from shapes alone."""
    trained, frozen = abstract_params(config, model, mesh)
    seen = _seen(config, model, trained)
    params = states.merge(seen, frozen)
    tables, layer = spread.making
    made = (
        tables.lower({name: x for name, x in params.items() if name != "layers"}, form),
        layer.lower(params["layers"], jax.ShapeDtypeStruct((), jnp.int32), form),
    )
    copied = 0 if model.lora or config.train.params_dtype == "float32" else sizes(seen)
    return copied + max(each.compile().memory_analysis().temp_size_in_bytes for each in made)


@dataclasses.dataclass(frozen=True)
class Learning:
    """The learner's programs, compiled; `state`, `reference` and `batch` are as in `Estimate`. `logps` is None where
    the update alone needs log-probs (`RlConfig.fresh`, no KL)."""

    logps: jax.stages.Compiled | None
    update: jax.stages.Compiled
    state: int
    reference: int
    batch: int


def learning(config: RlConfig, model: DecoderConfig, never: tuple[int, ...], wanted: sharing.Sizes,
             record: tuple[int, int] | None, mesh: Mesh) -> Learning:  # fmt: skip
    """Compiles log-probs and update from shapes alone, for the devices of `mesh`, which need not be there.

    Args:
        wanted: sizes of the rows.
        record: layers and heads that deaths are recorded of, [Lr, Kr]; None where the learner does not see them.
    """
    tx = optimizer.make(config.train.optim, config.train.steps * config.updates)
    trained, frozen = abstract_params(config, model, mesh)
    opt_state = jax.eval_shape(tx.init, trained)
    shardings = meshes.param_shardings(mesh, model)
    opt_state = jax.tree.map(_shape, opt_state, meshes.like_params(mesh, opt_state, shardings))
    scalar = meshes.sharding(mesh)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=scalar)
    state = states.TrainState(_shape(np.zeros((), np.int32), scalar), trained, opt_state, key)
    batch = abstract_batch(config, wanted, record, mesh)
    given = {name: x for name, x in batch.items() if name not in ("logp_old", "logp_reference")}
    copied = config.loss.kl_weight and not model.lora
    logps = None
    if config.loss.kl_weight or not config.fresh:
        logps = make_logps(model, config, never, mesh).lower(states.merge(trained, frozen), given).compile()
    return Learning(
        logps,
        make_step(config, never)(model, config.train, tx, mesh, state).lower(state, frozen, batch).compile(),
        state=sizes((trained, frozen, opt_state)),
        reference=sizes(_seen(config, model, trained)) if copied else 0,
        batch=sizes(batch),
    )


def abstract_params(config: RlConfig, model: DecoderConfig, mesh: Mesh) -> tuple[dict, dict]:
    """The shapes of trained and frozen parameters, with their shardings."""
    stored = jnp.dtype(config.train.params_dtype if model.lora else "float32")
    params = jax.tree.map(_shape, parameters.abstract(model, stored), meshes.param_shardings(mesh, model))
    trained, frozen = states.split(params, states.trainable_mask(model))
    return jax.tree.map(lambda x: _shape(x, x.sharding, jnp.dtype("float32")), trained), frozen


def _seen(config: RlConfig, model: DecoderConfig, trained: dict) -> dict:
    """The shapes of what a step computes with, in place of `trained`."""
    seen = jax.eval_shape(lambda trained: states.computed(trained, model, config.train.params_dtype), trained)
    return jax.tree.map(lambda x, like: _shape(x, like.sharding), seen, trained)


def abstract_batch(config: RlConfig, wanted: sharing.Sizes, record: tuple[int, int] | None, mesh: Mesh) -> dict:
    """The shapes of a batch with rows of these sizes, with their shardings; `record` as of `learning`."""
    empty = sharing.batch(config, wanted, (), pad=0)
    shapes = {name: (x.shape, x.dtype) for name, x in empty.items()}
    rows = config.rollout.responses
    shapes |= {"group": ((rows,), np.int32), "rewards": ((rows,), np.float32)}
    if not config.fresh:
        shapes["logp_old"] = shapes["logp_sampler"]
    if config.loss.kl_weight:
        shapes["logp_reference"] = shapes["logp_sampler"]
    if config.dense_kl:
        shapes["dense_death"] = shapes["death"]
    if record is not None:
        shapes["death"] = ((rows, *record, wanted.length), np.int32)
    placed = lambda shape, kind: jax.ShapeDtypeStruct(
        shape, kind, sharding=meshes.sharding(mesh, *meshes.batch_axes(jax.ShapeDtypeStruct(shape, kind)))
    )
    return {name: placed(*shape) for name, shape in shapes.items()}


def _shape(x, where, dtype=None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=where)


def more(program: jax.stages.Compiled) -> int:
    """Bytes that a program takes beside its arguments: temporaries, and outputs that reuse no argument."""
    found = program.memory_analysis()
    return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def sizes(tree) -> int:
    """Bytes of arrays, or of their shapes, on a single device."""
    local = lambda x: x.shape if getattr(x, "sharding", None) is None else x.sharding.shard_shape(x.shape)
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(local(x), dtype=np.int64)) * np.dtype(x.dtype).itemsize for x in leaves)
