"""The state of a run: what a step changes. Frozen parameters (the base under LoRA) stay outside of it.

    trained, frozen = split(params, trainable_mask(model))        params = merge(trained, frozen)
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig
from lt_jax.training import mesh as meshes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step reads and writes, and what a checkpoint holds.

    Attributes:
        step: int32 scalar, optimizer steps done.
        trained: the trained leaves of the parameter tree, in float32 whatever a step computes in (`computed`).
        opt_state: of the optimizer, over `trained`, in float32 too.
        key: typed random key of the run; a step that draws uses `fold_in(key, step)`.
    """

    step: jax.Array
    trained: dict
    opt_state: optax.OptState
    key: jax.Array


def trainable_mask(config: DecoderConfig) -> dict:
    """The parameter tree as bools: everything without LoRA; adapters and new vocabulary rows with it."""
    return jax.tree.map(lambda spec: config.lora is None or spec.adapter, parameters.specs(config))


def split(params: dict, mask: dict) -> tuple[dict, dict]:
    """A tree -> (trained, frozen): nested dicts without the other's leaves; `merge` is its inverse."""
    return _pick(params, mask, True), _pick(params, mask, False)


def _pick(tree: dict, mask: dict, wanted: bool) -> dict:
    out = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            if inner := _pick(value, mask[name], wanted):
                out[name] = inner
        elif mask[name] == wanted:
            out[name] = value
    return out


def merge(a: dict, b: dict) -> dict:
    """The union of two nested dicts that share no leaf."""
    out = dict(a)
    for name, value in b.items():
        out[name] = merge(a[name], value) if name in a else value
    return out


def computed(trained: dict, config: DecoderConfig, dtype: str) -> dict:
    """The trained leaves as a step computes with them: whole weights in `dtype`, adapters in the float32 they are.

    The embedding is rounded to `dtype` and stays a float32 array: its gradient is a sum over the places of a token, and
    a bfloat16 sum would stand still after some hundred places.
    """
    if config.lora or dtype == "float32":
        return trained
    info = jnp.finfo(dtype)
    embed = jax.lax.reduce_precision(trained["embed"], info.nexp, info.nmant)
    return {**jax.tree.map(lambda x: x.astype(dtype), trained), "embed": embed}


def create(
    params: dict, config: DecoderConfig, tx: optax.GradientTransformation, key: jax.Array, mesh: Mesh, keep: bool = True
) -> tuple[TrainState, dict]:
    """The state at step 0 and the frozen parameters, placed on the mesh.

    Args:
        params: start values.
        keep: leave the trained arrays of `params` alone (a copy is trained); False lets the first step overwrite those
            that are float32.
    """
    shardings = meshes.param_shardings(mesh, config)
    mask = trainable_mask(config)
    trained, frozen = split(jax.device_put(params, shardings), mask)
    trained = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=keep), trained)
    opt_shardings = meshes.like_params(mesh, jax.eval_shape(tx.init, trained), shardings)
    opt_state = jax.jit(tx.init, out_shardings=opt_shardings)(trained)
    scalar = meshes.sharding(mesh)
    step = jax.device_put(np.zeros((), np.int32), scalar)
    return TrainState(step, trained, opt_state, place_key(jax.random.key_data(key), scalar)), frozen


def place_key(numbers, where: jax.sharding.Sharding) -> jax.Array:
    """A typed key of its plain numbers. `device_put` of a typed key cannot place it on devices of other processes."""
    if not isinstance(numbers, jax.Array) or numbers.is_fully_addressable:
        numbers = np.asarray(numbers)
    return jax.jit(jax.random.wrap_key_data, out_shardings=where)(numbers)
