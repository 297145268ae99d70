"""The two programs of the learner: log-probs of a rollout by given weights, and its updates.

What differs: the release corrects, normalises and divides within what one device sees at a time. Here a rollout is cut
into updates, and an update into microbatches, without changing any of its numbers but by rounding. Advantages are made
from the whole rollout.

A batch is what `batch_of` makes, one response per row, with group [B] int32, rewards [B] float32, logp_old and, where
it is part of the loss, logp_reference [B, S]. With `dense_kl` there is dense_death [B, S], the deaths of the method
alone.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lt_jax.models.config import DecoderConfig
from lt_jax.rl import losses, metrics
from lt_jax.rl.advantages import ADVANTAGES, signal
from lt_jax.rl.config import RlConfig
from lt_jax.rl.mismatch import correct
from lt_jax.training import mesh as meshes
from lt_jax.training import score as scoring
from lt_jax.training import state as states
from lt_jax.training import step as steps
from lt_jax.training.config import TrainConfig
from lt_jax.training.divergence import token_kl
from lt_jax.training.state import TrainState


def logps(
    params: dict, model: DecoderConfig, config: RlConfig, never: tuple[int, ...], batch: dict, mesh: Mesh
) -> jax.Array:
    """Log-probs [B, S] of the tokens of a batch by `params` (not its base under adapters, unless `model` has none).

    Computed in as many pieces as a step is, so that it takes no more memory than that.
    """
    pieces = steps.cut(batch, config.updates * config.train.accumulate)
    found = jax.lax.map(lambda piece: _seen(params, model, config, never, piece, mesh)[0], pieces)
    return found.swapaxes(0, 1).reshape(batch["tokens"].shape)


def make_logps(model: DecoderConfig, config: RlConfig, never: tuple[int, ...], mesh: Mesh) -> Callable:
    """The jitted `logps`: (params, batch) -> [B, S], rows and tokens cut over the mesh."""
    where = meshes.sharding(mesh, "rows", "tokens")

    def named(params, batch):
        return logps(states.computed(params, model, config.train.params_dtype), model, config, never, batch, mesh)

    return jax.jit(named, out_shardings=where)


def make_step(config: RlConfig, never: tuple[int, ...]) -> Callable:
    """A function with the arguments of `training.step.make_step` that gives the jitted step of a rollout: (state,
    frozen, batch) -> (new state, metrics). The state's step counts rollouts.

    Args:
        never: ids that the sampler could not draw, see `score.score`.
    """

    def make(model: DecoderConfig, train: TrainConfig, tx: optax.GradientTransformation, mesh: Mesh, state: TrainState):
        def step(state: TrainState, frozen: dict, batch: dict) -> tuple[TrainState, dict]:
            correction = correct(config.mismatch, batch["logp_old"], batch["logp_sampler"], batch["response"])
            counted = jnp.ones_like(correction.accepted) if config.count_rejected else correction.accepted
            advantages = ADVANTAGES[config.advantage](batch["rewards"], batch["group"], counted)
            found = watched(config, batch, correction, counted, advantages)

            def update(carry, part):
                trained, opt_state = carry
                grads, sums = gradients(trained, frozen, model, config, never, part, mesh)
                updates, opt_state = tx.update(grads, opt_state, trained)
                values = metrics.update(sums) | {"grad_norm": optax.tree.norm(grads), "loss": sums["loss"]}
                return (optax.apply_updates(trained, updates), opt_state), values

            parts = steps.cut(batch | {"advantages": advantages}, config.updates)
            (trained, opt_state), values = jax.lax.scan(update, (state.trained, state.opt_state), parts)
            values = jax.tree.map(jnp.mean, values) | {"tokens_learned": jnp.sum(values["tokens"])}
            del values["tokens"]
            return TrainState(state.step + 1, trained, opt_state, state.key), found | values

        where = jax.tree.map(lambda x: x.sharding, state)
        return jax.jit(step, donate_argnums=0, out_shardings=(where, None))

    return make


def watched(config: RlConfig, batch: dict, correction, counted, advantages) -> dict:
    """Metrics of a rollout before it is learned from, float32 scalars."""
    given = batch["logp_old"], batch["logp_sampler"], batch["response"]
    heard = signal(batch["rewards"], batch["group"], counted)
    return metrics.mismatch(config.mismatch, correction, *given) | {
        "reward": jnp.mean(batch["rewards"]),
        "reward_std": jnp.std(batch["rewards"]),
        "without_signal": jnp.mean(~heard),
        "advantage_abs": jnp.mean(jnp.abs(advantages)),
        "tokens": jnp.sum(~steps.padding(batch)).astype(jnp.float32),
    }


def gradients(
    trained: dict, frozen: dict, model: DecoderConfig, config: RlConfig, never: tuple[int, ...], batch: dict, mesh: Mesh
) -> tuple[dict, dict]:
    """The gradient of an update's loss to the trained leaves, in float32, and the sums of `losses.policy_loss`, with
    the whole "loss" and, where it is part of it, "dense_kl" and "sum_dense_kl".

    Args:
        batch: the rows of the update, with their `advantages`.
    """
    trained = states.computed(trained, model, config.train.params_dtype)
    response = batch["response"]
    correction = correct(config.mismatch, batch["logp_old"], batch["logp_sampler"], response)
    every = jnp.ones_like(correction.accepted)  # a response without tokens, of broken logits, counts too
    denominator = losses.denominator(config.loss, response, correction, every)

    def objective(trained, piece):
        params = states.merge(trained, frozen)
        logp, entropy, x = _seen(params, model, config, never, piece, mesh)
        loss, sums = losses.policy_loss(
            config.loss, logp, piece["logp_old"], piece["advantages"], piece["response"], piece["correction"],
            denominator, piece.get("logp_reference"), entropy,
        )  # fmt: skip
        if config.dense_kl:
            dense = hidden(params, model, config, piece | {"death": piece["dense_death"]}, mesh)
            how = dict(temperature=config.rollout.temperature, never=never, chunk=config.train.loss_chunk)
            apart = token_kl(params, model, dense, x, **how)
            learned = piece["response"] & piece["correction"].learned
            part, summed = losses.added(config.loss, config.dense_kl, apart, learned, denominator)
            loss, sums = loss + part, sums | {"dense_kl": part, "sum_dense_kl": summed}
        return loss, sums | {"loss": loss}

    grad = jax.grad(objective, has_aux=True)
    whole = batch | {"correction": correction}
    if config.train.accumulate == 1:
        grads, sums = grad(trained, whole)
        return jax.tree.map(lambda g: g.astype(jnp.float32), grads), jax.lax.stop_gradient(sums)
    pieces = steps.cut(whole, config.train.accumulate)

    def body(total, piece):
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, grad(trained, piece)), None

    first = jax.eval_shape(grad, trained, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), first)
    return jax.lax.scan(body, zeros, pieces)[0]


def hidden(params: dict, model: DecoderConfig, config: RlConfig, batch: dict, mesh: Mesh) -> jax.Array:
    """Hidden states [B, S, E] of the rows of a batch under its lifetimes."""
    train = config.train
    return scoring.hidden(
        params, model, batch["tokens"], steps.lifetimes(batch, train.gist_rule), batch["positions"], train.attention,
        train.remat, steps.activations(mesh), unroll=steps.unrolled(model, train, mesh),
    )  # fmt: skip


def _seen(params, model, config, never, batch, mesh) -> tuple[jax.Array, jax.Array, jax.Array]:
    """logp [B, S], entropy [B, S] and hidden states of the rows of a batch."""
    x = hidden(params, model, config, batch, mesh)
    how = dict(temperature=config.rollout.temperature, never=never, chunk=config.train.loss_chunk)
    return *scoring.logps_of(params, model, x, batch["tokens"], **how), x
