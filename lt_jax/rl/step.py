"""The two programs of the learner: log-probs of a rollout by given weights, and its updates.

What differs: the release corrects, normalises and divides within what one device sees at a time. Here a rollout is cut
into updates, and an update into microbatches, without changing any of its numbers but by rounding. Advantages are made
from the whole rollout.

A batch is what `sharing.batch` makes, with group [B] int32, rewards [B] float32, logp_old [B, S] (unless the update
itself computes it, `RlConfig.fresh`) and, where it is part of the loss, logp_reference [B, S]. With `dense_kl` there is
dense_death [B, S], the deaths of the method alone. B and S are those of a row for each response, even where the
responses of a group share the rows that the model reads: only `_seen` knows of these.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lt_jax.models.config import DecoderConfig
from lt_jax.rl import losses, metrics, sharing
from lt_jax.rl.advantages import ADVANTAGES, signal
from lt_jax.rl.config import RlConfig
from lt_jax.rl.mismatch import Correction, correct
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
    return _joined(found)


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
            counted = jnp.ones(batch["rewards"].shape, bool)
            if not config.count_rejected and not config.fresh:  # fresh: nothing that is rejected matters, or nothing is
                counted = _corrected(config, batch).accepted
            advantages = ADVANTAGES[config.advantage](batch["rewards"], batch["group"], counted)

            def update(carry, part):
                trained, opt_state = carry
                grads, sums, logp_old = gradients(trained, frozen, model, config, never, part, mesh)
                updates, opt_state = tx.update(grads, opt_state, trained)
                values = metrics.update(sums) | {"grad_norm": optax.tree.norm(grads), "loss": sums["loss"]}
                return (optax.apply_updates(trained, updates), opt_state), (values, logp_old)

            parts = steps.cut(batch | {"advantages": advantages}, config.updates)
            (trained, opt_state), (values, logp_old) = jax.lax.scan(update, (state.trained, state.opt_state), parts)
            values = jax.tree.map(jnp.mean, values) | {"tokens_learned": jnp.sum(values["tokens"])}
            del values["tokens"]
            seen = {"logp_old": batch.get("logp_old", _joined(logp_old))}
            found = watched(config, batch | seen, counted, advantages)
            return TrainState(state.step + 1, trained, opt_state, state.key), found | values

        where = jax.tree.map(lambda x: x.sharding, state)
        return jax.jit(step, donate_argnums=0, out_shardings=(where, None))

    return make


def watched(config: RlConfig, batch: dict, counted: jax.Array, advantages: jax.Array) -> dict:
    """Metrics of a rollout as it was before it was learned from, float32 scalars. Weights are normalised over all of
    it; each update does that over its own rows. tokens: of prompts and responses, a prompt for each response."""
    given = batch["logp_old"], batch["logp_sampler"], batch["response"]
    heard = signal(batch["rewards"], batch["group"], counted)
    return metrics.mismatch(config.mismatch, _corrected(config, batch), *given) | {
        "reward": jnp.mean(batch["rewards"]),
        "reward_std": jnp.std(batch["rewards"]),
        "without_signal": jnp.mean(~heard),
        "advantage_abs": jnp.mean(jnp.abs(advantages)),
        "tokens": jnp.sum(sharing.real(batch)).astype(jnp.float32),
    }


def gradients(
    trained: dict, frozen: dict, model: DecoderConfig, config: RlConfig, never: tuple[int, ...], batch: dict, mesh: Mesh
) -> tuple[dict, dict, jax.Array]:
    """The gradient of an update's loss to the trained leaves, in float32, the sums of `losses.policy_loss`, with the
    whole "loss" and, where it is part of it, "dense_kl" and "sum_dense_kl", and the log-probs [B, S] before the update.

    Args:
        batch: the rows of the update, with their `advantages`. Without logp_old these are the log-probs that the update
            itself computes (`RlConfig.fresh`).
    """
    trained = states.computed(trained, model, config.train.params_dtype)
    response = batch["response"]
    every = jnp.ones(batch["rewards"].shape, bool)  # a response without tokens, of broken logits, counts too
    if "logp_old" in batch:
        correction = _corrected(config, batch)
        batch = batch | {"correction": correction}
    else:
        correction = Correction(response.astype(jnp.float32), response, every, every.astype(jnp.float32))
    denominator = losses.denominator(config.loss, response, correction, every)

    def objective(trained, piece):
        params = states.merge(trained, frozen)
        logp, entropy, x = _seen(params, model, config, never, piece, mesh)
        if "correction" not in piece:
            piece = piece | {"logp_old": jax.lax.stop_gradient(logp)}
            piece = piece | {"correction": _corrected(config, piece)}
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
        return loss, (sums | {"loss": loss}, piece["logp_old"])

    grad = jax.grad(objective, has_aux=True)
    if config.train.accumulate == 1:
        grads, (sums, logp_old) = grad(trained, batch)
        return jax.tree.map(lambda g: g.astype(jnp.float32), grads), sums, logp_old
    pieces = steps.cut(batch, config.train.accumulate)

    def body(total, piece):
        grads, (sums, logp_old) = grad(trained, piece)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (grads, sums)), logp_old

    grads, (sums, _) = jax.eval_shape(grad, trained, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (grads, sums))
    (grads, sums), logp_old = jax.lax.scan(body, zeros, pieces)
    return grads, sums, _joined(logp_old)


def _corrected(config: RlConfig, batch: dict) -> Correction:
    return correct(config.mismatch, batch["logp_old"], batch["logp_sampler"], batch["response"])


def _joined(pieces: jax.Array) -> jax.Array:
    """[pieces, rows, S] as `training.step.cut` cuts -> [pieces x rows, S]."""
    return pieces.swapaxes(0, 1).reshape(-1, pieces.shape[-1])


def hidden(params: dict, model: DecoderConfig, config: RlConfig, batch: dict, mesh: Mesh) -> jax.Array:
    """Hidden states of the rows of a batch under its lifetimes, [B, S, E] or those of shared rows, [Q, T, E]."""
    train = config.train
    return scoring.hidden(
        params, model, batch["tokens"], steps.lifetimes(batch, train.gist_rule), batch["positions"], train.attention,
        train.remat, steps.activations(mesh), unroll=steps.unrolled(model, train, mesh),
    )  # fmt: skip


def _seen(params, model, config, never, batch, mesh) -> tuple[jax.Array, jax.Array, jax.Array]:
    """logp [B, S], entropy [B, S] and hidden states, see `hidden`, of the rows of a batch."""
    x = hidden(params, model, config, batch, mesh)
    how = dict(temperature=config.rollout.temperature, never=never, chunk=config.train.loss_chunk)
    if "at" not in batch:
        return *scoring.logps_of(params, model, x, batch["tokens"], **how), x
    found = scoring.logps_of(params, model, sharing.followed(x, batch), batch["tokens"], **how)
    return *(sharing.apart(values, batch) for values in found), x
