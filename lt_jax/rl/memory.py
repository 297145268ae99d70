"""How much memory a run takes, before it begins: of its three programs, for the longest rows there can be.

The compiler says of each program what it needs beside what is held between them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax.layout import packing
from lt_jax.model import Model
from lt_jax.rl.config import RlConfig
from lt_jax.rl.experience import row_length
from lt_jax.rl.rollout import Sampler
from lt_jax.rl.step import make_logps, make_step
from lt_jax.training import mesh as meshes
from lt_jax.training import optimizer
from lt_jax.training import state as states

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes per device.

    Attributes:
        state: trained and frozen parameters, and the optimizer's.
        reference: the model that the KL is to, where it is another copy.
        sampler: the weights in the form that the sampler reads.
        cache, cache_dense: of the rollout, and what it would be without a budget.
        rollout, logps, update: what each program needs beside what it is given.
    """

    state: int
    reference: int
    sampler: int
    cache: int
    cache_dense: int
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
        return self.held + max(self.rollout, self.logps, self.update)

    def describe(self) -> str:
        """Lines for the terminal."""
        gib = lambda size: f"{size / GIB:.2f}"
        saved = "" if self.cache == self.cache_dense else f" ({gib(self.cache_dense)} without the budget)"
        other = f", reference {gib(self.reference)}" if self.reference else ""
        return (
            f"memory per device, GiB: {gib(self.most)} at most. Held: weights and optimizer {gib(self.state)}{other}, "
            f"weights of the sampler {gib(self.sampler)}, cache {gib(self.cache)}{saved}\n"
            f"beside that, GiB: rollout {gib(self.rollout)}, log-probs {gib(self.logps)}, update {gib(self.update)}"
        )


def estimate(config: RlConfig, model: Model, sampler: Sampler, never: tuple[int, ...], mesh: Mesh) -> Estimate:
    """Compiles the three programs for the longest rows, without running any of them."""
    tx = optimizer.make(config.train.optim, config.train.steps * config.updates)
    mask = states.trainable_mask(model.config)
    shardings = meshes.param_shardings(mesh, model.config)
    params = jax.tree.map(lambda x, where: _shape(x, where), model.params, shardings)
    trained, frozen = states.split(params, mask)
    trained = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), trained)
    opt_state = jax.eval_shape(tx.init, trained)
    opt_state = jax.tree.map(_shape, opt_state, meshes.like_params(mesh, opt_state, shardings))
    scalar = meshes.sharding(mesh)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=scalar)
    state = states.TrainState(_shape(np.zeros((), np.int32), scalar), trained, opt_state, key)
    batch = abstract_batch(config, model, sampler, mesh)
    merged = states.merge(trained, frozen)
    update = make_step(config, never)(model.config, config.train, tx, mesh, state).lower(state, frozen, batch).compile()
    given = {name: x for name, x in batch.items() if not name.startswith("logp_") or name == "logp_sampler"}
    logps = make_logps(model.config, config, never, mesh).lower(merged, given).compile()
    engine = sampler.ready()
    enough = jax.ShapeDtypeStruct((engine.spread.parts,), jnp.int32)
    block = engine.programs.block.lower(engine.weights, engine.state, engine.cache, enough).compile()
    own = lambda tree: sum(map(_on_device, jax.tree.leaves(tree)))
    copied = config.loss.kl_weight and not model.config.lora
    return Estimate(
        state=own((trained, frozen, opt_state)),
        reference=own(states.computed(params, model.config, config.train.params_dtype)) if copied else 0,
        sampler=own(engine.weights),
        cache=sampler.cache_bytes() // engine.spread.parts // engine.spread.ways,
        cache_dense=sampler.cache_bytes(evicts=False) // engine.spread.parts // engine.spread.ways,
        rollout=block.memory_analysis().temp_size_in_bytes,
        logps=logps.memory_analysis().temp_size_in_bytes,
        update=update.memory_analysis().temp_size_in_bytes,
    )


def abstract_batch(config: RlConfig, model: Model, sampler: Sampler, mesh: Mesh) -> dict:
    """The shapes of the largest batch that a rollout may come to, with their shardings."""
    rows, length = config.rollout.responses, row_length(sampler.length, sampler.length)
    one = {name: np.zeros((1, length), np.int32) for name in packing.FEATURES}
    kinds = {name: x.dtype for name, x in packing.finish(one, np.zeros((1, length), np.int32), 0).items()}
    kinds |= {"response": bool, "logp_sampler": np.float32, "logp_old": np.float32}
    if config.loss.kl_weight:
        kinds["logp_reference"] = np.float32
    if config.dense_kl:
        kinds["dense_death"] = np.int32
    shapes = {name: ((rows, length), kind) for name, kind in kinds.items()}
    shapes |= {"group": ((rows,), np.int32), "rewards": ((rows,), np.float32)}
    if config.replay:
        record = sampler.ready().cache.record
        shapes["death"] = ((rows, *record.shape[1:3], length), np.int32)
    placed = lambda shape, kind: jax.ShapeDtypeStruct(
        shape, kind, sharding=meshes.sharding(mesh, *meshes.batch_axes(jax.ShapeDtypeStruct(shape, kind)))
    )
    return {name: placed(*shape) for name, shape in shapes.items()}


def _shape(x, where) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _on_device(x) -> int:
    """Bytes of an array, or of the shape of one, on a single device."""
    shape = x.shape if getattr(x, "sharding", None) is None else x.sharding.shard_shape(x.shape)
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(x.dtype).itemsize
