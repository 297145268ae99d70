"""One training step: a pure function of (state, batch), jitted once with the state donated.

A batch is the dict of [B, S] arrays that `lt_jax.data` yields: tokens, targets, weights, positions, death, since, gist.
Deaths may be [B, Hkv, S] or [B, L, Hkv, S] too, see `Lifetimes`; every other array that comes along is left alone.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from lt_jax.errors import UserError
from lt_jax.lifetimes import Lifetimes
from lt_jax.models import decoder
from lt_jax.models.config import DecoderConfig
from lt_jax.training import loss as losses
from lt_jax.training import mesh as meshes
from lt_jax.training import state as states
from lt_jax.training.config import TrainConfig
from lt_jax.training.state import TrainState

FEW = 8  # layers that compile one after the other as fast as in a loop, within a second


def lifetimes(batch: dict, gist_rule: str) -> Lifetimes:
    """The lifetimes of a batch; gist ids are only looked at where the rule needs them."""
    return Lifetimes(batch["death"], batch["since"], None if gist_rule == "causal" else batch["gist"], gist_rule)


def padding(batch: dict) -> jax.Array:
    """Which tokens are padding: they see only themselves, and no other token sees them. [B, S] bool."""
    death, index = batch["death"], jnp.arange(batch["death"].shape[-1], dtype=jnp.int32)
    return jnp.all(death == index + 1, axis=tuple(range(1, death.ndim - 1))) & (batch["since"] == index)


def sums(
    trained: dict, frozen: dict, model: DecoderConfig, config: TrainConfig, batch: dict, place=None, unroll=False
):
    """Weighted sums over a (micro)batch: (loss sum, correct sum). `place`, `unroll`: see `decoder.forward`."""
    params = states.merge(trained, frozen)
    x = decoder.forward(
        params,
        model,
        batch["tokens"],
        batch["positions"],
        lifetimes(batch, config.gist_rule),
        implementation=config.attention,
        remat=config.remat,
        sharding=place,
        split=None if place is None else meshes.split(place.mesh),
        unroll=unroll,
    )
    flat = x.reshape(-1, x.shape[-1])
    chunk = losses.chunk_size(flat.shape[0], model, config.loss_chunk)
    head = losses.head_params(trained, model), losses.head_params(frozen, model)
    return losses.token_loss(model, chunk, *head, flat, batch["targets"].reshape(-1), batch["weights"].reshape(-1))


def cut(batch: dict, pieces: int) -> dict:
    """[B, ...] -> [pieces, B / pieces, ...]; row i goes to piece i % pieces, so that a sharded B stays where it is. Not
    all arrays need have the same number of rows."""
    rows = batch["tokens"].shape[0]
    if rows % pieces:
        raise UserError(f"train.accumulate is {pieces}, which does not divide the {rows} rows of a batch")
    return jax.tree.map(lambda a: a.reshape(len(a) // pieces, pieces, *a.shape[1:]).swapaxes(0, 1), batch)


def gradients(
    trained: dict, frozen: dict, model: DecoderConfig, config: TrainConfig, batch: dict, place=None, unroll=False
):
    """Token means of loss and accuracy, and the gradients of the loss to the trained leaves, over the whole batch.

    The mean is over all trained tokens of the accumulation window, not a mean of the microbatches' means: cutting a
    batch into microbatches changes nothing but the order of summation. Weights are seen in `params_dtype`, and so is
    the gradient of a microbatch; the sum of those is float32.
    """
    trained = states.computed(trained, model, config.params_dtype)
    scale = 1.0 / jnp.maximum(jnp.sum(batch["weights"]), 1.0)

    def objective(trained, piece):
        loss, correct = sums(trained, frozen, model, config, piece, place, unroll)
        return loss * scale, correct * scale

    grad = jax.value_and_grad(objective, has_aux=True)
    if config.accumulate == 1:
        (loss, accuracy), grads = grad(trained, batch)
        return loss, accuracy, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    def body(carry, piece):
        (loss, accuracy), grads = grad(trained, piece)
        return jax.tree.map(lambda total, part: total + part.astype(total.dtype), carry, (loss, accuracy, grads)), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trained)
    totals, _ = jax.lax.scan(body, (jnp.zeros(()), jnp.zeros(()), zeros), cut(batch, config.accumulate))
    return totals


def make_step(
    model: DecoderConfig, config: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh, state: TrainState
) -> Callable:
    """The jitted step: (state, frozen, batch) -> (new state, metrics). The old state's buffers are given up.

    Metrics, float32 scalars on the device: loss (token mean), accuracy, grad_norm (before clipping), tokens (not
    padding), trained (tokens with weight).

    Args:
        state: where the new state shall lie: exactly where this one does.
    """
    place, unroll = activations(mesh), unrolled(model, config, mesh)

    def step(state: TrainState, frozen: dict, batch: dict) -> tuple[TrainState, dict]:
        loss, accuracy, grads = gradients(state.trained, frozen, model, config, batch, place, unroll)
        updates, opt_state = tx.update(grads, state.opt_state, state.trained)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "grad_norm": optax.tree.norm(grads),
            "tokens": jnp.sum(~padding(batch)).astype(jnp.float32),
            "trained": jnp.sum(batch["weights"]),
        }
        trained = optax.apply_updates(state.trained, updates)
        return TrainState(state.step + 1, trained, opt_state, state.key), metrics

    where = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(where, None))


def make_eval_step(model: DecoderConfig, config: TrainConfig, mesh: Mesh) -> Callable:
    """The jitted evaluation step: (trained, frozen, batch) -> sums of loss, correct guesses and weights."""
    place = activations(mesh)

    def evaluate(trained: dict, frozen: dict, batch: dict) -> dict:
        seen = states.computed(trained, model, config.params_dtype)
        loss, correct = sums(seen, frozen, model, config, batch, place)
        return {"loss": loss, "correct": correct, "weights": jnp.sum(batch["weights"])}

    return jax.jit(evaluate)


def unrolled(model: DecoderConfig, config: TrainConfig, mesh: Mesh) -> bool:
    """Whether a step's layers are compiled one after the other: a few, on a single CPU, with remat "none".

    There the copies that a loop makes of what the backward pass needs, into stacks and out of them, are a tenth of the
    step. On accelerators they are not, and to compute again is to save memory, which takes a loop.
    """
    alone = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    return alone and config.remat == "none" and model.layers <= FEW


def activations(mesh: Mesh) -> NamedSharding | None:
    """The sharding of the residual stream [B, S, E]; None on a single device."""
    return meshes.sharding(mesh, "rows", "tokens", None) if mesh.size > 1 else None
