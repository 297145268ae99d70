"""Next-token cross-entropy over chunks of tokens: no [B, S, V] array, forward or backward.

Forward and gradient of a chunk are computed together while its logits exist (the gradient of a sum of token losses is
known up to the factor that comes back later), so that the vocabulary projection is never computed twice.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lt_jax.models import decoder
from lt_jax.models.config import DecoderConfig

CHUNK_ELEMENTS = 2**26
HEAD_LEAVES = ("embed", "head", "new_rows")


def chunk_size(tokens: int, config: DecoderConfig, wanted: int = 0) -> int:
    """Tokens per chunk: `wanted`, or as many as keep a chunk's logits under 256 MiB, in 128s."""
    size = wanted or max(128, CHUNK_ELEMENTS // config.vocab_padded // 128 * 128)
    return min(tokens, size)


def head_params(params: dict, config: DecoderConfig) -> dict:
    """The part of a (possibly partial) parameter tree that `decoder.logits` reads."""
    skip = () if config.tie_embeddings else ("embed",)
    return {name: params[name] for name in HEAD_LEAVES if name in params and name not in skip}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def token_loss(config: DecoderConfig, chunk: int, trained: dict, frozen: dict, x, targets, weights):
    """Weighted sums over tokens of cross-entropy and of correct guesses.

    Args:
        chunk: tokens whose logits exist at one time.
        trained, frozen: the head's parameters, see `head_params`; gradients flow to `trained` only.
        x: [N, E] hidden states after the final norm.
        targets: [N] int32. weights: [N] float32, 0 where a token is not trained.

    Returns:
        (loss sum, correct sum), float32 scalars; no gradient flows through the second.
    """
    def body(sums, part):
        x, targets, weights = part
        loss, correct, _ = _chunk(_logits(config, trained, frozen, x), targets, weights)
        return (sums[0] + loss, sums[1] + correct), None

    sums, _ = jax.lax.scan(body, (jnp.zeros(()), jnp.zeros(())), _cut(chunk, x, targets, weights))
    return sums


def _logits(config, trained, frozen, x):
    return decoder.logits({**frozen, **trained}, config, x)


def _cut(chunk: int, x, targets, weights):
    """[N, ...] -> [N / chunk, chunk, ...], the end filled with tokens of weight 0."""
    n = x.shape[0]
    fill = -n % chunk
    cut = lambda a: jnp.pad(a, [(0, fill)] + [(0, 0)] * (a.ndim - 1)).reshape(-1, chunk, *a.shape[1:])
    return cut(x), cut(targets), cut(weights)


def _chunk(logits, targets, weights):
    """logits [c, V] float32 -> loss sum, correct sum, and the gradient of the loss sum to the logits."""
    top = jnp.max(logits, axis=-1)
    unnormed = jnp.exp(logits - top[:, None])
    total = jnp.sum(unnormed, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    loss = jnp.sum(weights * (jnp.log(total) + top - chosen))
    # A guess is right when no logit is above the target's: an argmax over V is slow on CPU, and the maximum is at hand.
    correct = jnp.sum(weights * (chosen >= top))
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == targets[:, None]
    gradient = unnormed * (weights / total)[:, None] - jnp.where(is_target, weights[:, None], 0.0)
    return loss, correct, gradient


def _forward(config, chunk, trained, frozen, x, targets, weights):
    def body(carry, part):
        loss, correct, grad = carry
        x, targets, weights = part
        logits, pull = jax.vjp(lambda trained, x: _logits(config, trained, frozen, x), trained, x)
        chunk_loss, chunk_correct, gradient = _chunk(logits, targets, weights)
        to_trained, to_x = pull(gradient)
        add = lambda total, part: total + part.astype(jnp.float32)
        return (loss + chunk_loss, correct + chunk_correct, jax.tree.map(add, grad, to_trained)), to_x

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trained)
    parts = _cut(chunk, x, targets, weights)
    (loss, correct, grad), to_x = jax.lax.scan(body, (jnp.zeros(()), jnp.zeros(()), zeros), parts)
    grad = jax.tree.map(lambda g, p: g.astype(p.dtype), grad, trained)
    return (loss, correct), (grad, to_x.reshape(-1, x.shape[-1])[: x.shape[0]])


def _backward(config, chunk, saved, cotangents):
    grad, to_x = saved
    scale = cotangents[0]
    scaled = lambda g: (g * scale).astype(g.dtype)
    return jax.tree.map(scaled, grad), None, scaled(to_x), None, None


token_loss.defvjp(_forward, _backward)
