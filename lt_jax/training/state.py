"""The state of a run, and which of its parameters are trained."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes. `opt_state` covers the trained leaves of `params` only.

    Attributes:
        step: int32 scalar, optimizer steps done.
        params: the whole parameter tree of `lt_jax.models.params`.
        opt_state: of the optimizer.
        key: typed random key of the run; a step that draws uses `fold_in(key, step)`.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    key: jax.Array


def trainable_mask(config: DecoderConfig) -> dict:
    """The parameter tree as bools: everything without LoRA; adapters and new vocabulary rows with it."""
    return jax.tree.map(lambda spec: config.lora is None or spec.adapter, parameters.specs(config))


def split(params: dict, mask: dict) -> tuple[dict, dict]:
    """A tree of arrays -> (trained, frozen), nested dicts without the other's leaves; `merge` is its inverse."""
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


def create(params: dict, config: DecoderConfig, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state at step 0 around existing parameters."""
    trained, _ = split(params, trainable_mask(config))
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(trained), key)
