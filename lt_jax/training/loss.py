"""What is made of logits, over chunks of tokens: no [B, S, V] array, forward or backward.

`token_loss` is the next-token cross-entropy of training. Forward and gradient of a chunk are computed together while
its logits exist (the gradient of a sum of token losses is known up to the factor that comes back later), so that the
vocabulary projection is never computed twice.

`token_logps` is the log-prob and the entropy of each token. Here a factor per token comes back later, and the gradient
to the head sums over tokens with these factors: nothing smaller than the logits would do. So the forward pass keeps two
numbers per token, and the backward pass computes the logits of each chunk once more.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.models import decoder
from lt_jax.models.config import DecoderConfig

# Logits of a chunk, in numbers. On a GPU the gradient of the head is what takes time, which every chunk adds to: 152k
# words of 1,536 are 2.8 GB to and from memory, 36 ms of a step of 16,384 tokens in chunks of 384 on an H100.
CHUNK_ELEMENTS = {"gpu": 2**27}
FEW_ELEMENTS = 2**26  # for all others
HEAD_LEAVES = ("embed", "head", "new_rows")


def chunk_size(tokens: int, config: DecoderConfig, wanted: int = 0) -> int:
    """Tokens per chunk: `wanted`, or as many as keep a chunk's logits under 256 MiB (512 on a GPU), in 128s."""
    elements = CHUNK_ELEMENTS.get(jax.default_backend(), FEW_ELEMENTS)
    size = wanted or max(128, elements // config.vocab_padded // 128 * 128)
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
    trained, frozen = _computed(trained, x), _computed(frozen, x)

    def body(sums, part):
        x, targets, weights = part
        loss, correct, _ = _chunk(_logits(config, trained, frozen, x), targets, weights)
        return (sums[0] + loss, sums[1] + correct), None

    sums, _ = jax.lax.scan(body, (jnp.zeros(()), jnp.zeros(())), _cut(chunk, x, targets, weights))
    return sums


def _computed(params: dict, x) -> dict:
    """Parameters in the type of x, in which logits are computed: once, as XLA would do it at every turn of a loop."""
    return jax.tree.map(lambda p: p.astype(x.dtype), params)


def _logits(config, trained, frozen, x):
    return decoder.logits({**frozen, **trained}, config, x)


def _cut(chunk: int, *arrays):
    """Each [N, ...] -> [N / chunk, chunk, ...], the end filled with zeros, which is tokens of weight 0."""
    fill = -arrays[0].shape[0] % chunk
    cut = lambda a: jnp.pad(a, [(0, fill)] + [(0, 0)] * (a.ndim - 1)).reshape(-1, chunk, *a.shape[1:])
    return tuple(map(cut, arrays))


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
    used, frozen = _computed(trained, x), _computed(frozen, x)

    def body(carry, part):
        loss, correct, grad = carry
        x, targets, weights = part
        logits, pull = jax.vjp(lambda used, x: _logits(config, used, frozen, x), used, x)
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


def token_logps(
    config: DecoderConfig, chunk: int, trained: dict, frozen: dict, x, targets, temperature=1.0, never: tuple = ()
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each target, and the entropy of the distribution that it is from: softmax(logits / temperature).

    Args:
        chunk, trained, frozen, x, targets: as `token_loss` takes them.
        temperature: scalar or [N], static or traced; no gradient flows to it. 0, which samples greedily, stands for 1
            as in `decode.sample`.
        never: ids whose logits are -inf, because the sampler can never draw them.

    Returns:
        logp [N], -inf for a target among `never`, and entropy [N] in nats, float32. Gradients flow through both, to
        `trained` and to `x`.
    """
    temperature = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), targets.shape)
    return _token_logps(config, chunk, tuple(never), trained, frozen, x, targets, temperature)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _token_logps(config, chunk, never, trained, frozen, x, targets, temperature):
    return _logps_forward(config, chunk, never, trained, frozen, x, targets, temperature)[0]


def tempered(config: DecoderConfig, never: tuple, trained: dict, frozen: dict, x, temperature):
    """Logits [c, V] of the distribution that is sampled from; arguments as of `token_logps`, c tokens."""
    temperature = jnp.where(temperature == 0, 1.0, temperature)  # greedy, or what a chunk is filled up with
    scores = _logits(config, trained, frozen, x) / temperature[:, None]
    if never:
        scores = jnp.where(np.isin(np.arange(config.vocab_padded), never), -jnp.inf, scores)
    return scores


def _logps_forward(config, chunk, never, trained, frozen, x, targets, temperature):
    used, kept = _computed(trained, x), _computed(frozen, x)

    def body(_, part):
        x, targets, temperature = part
        scores = tempered(config, never, used, kept, x, temperature)
        top = jnp.max(scores, axis=-1)
        below = scores - top[:, None]
        unnormed = jnp.exp(below)
        total = jnp.sum(unnormed, axis=-1)
        norm = jnp.log(total) + top
        chosen = jnp.take_along_axis(scores, targets[:, None], axis=-1)[:, 0]
        mean = jnp.sum(jnp.where(unnormed > 0, unnormed * below, 0), axis=-1) / total  # where 0 x -inf would be NaN
        return None, (chosen - norm, jnp.log(total) - mean, norm)

    _, found = jax.lax.scan(body, None, _cut(chunk, x, targets, temperature))
    logp, entropy, norm = (a.reshape(-1)[: x.shape[0]] for a in found)
    return (logp, entropy), (trained, frozen, x, targets, temperature, norm, entropy)


def _logps_backward(config, chunk, never, saved, cotangents):
    trained, frozen, *arrays = saved
    parts = _cut(chunk, *arrays, *cotangents)
    used, frozen = _computed(trained, arrays[0]), _computed(frozen, arrays[0])

    def body(grad, part):
        x, targets, temperature, norm, entropy, to_logp, to_entropy = part
        scores, pull = jax.vjp(lambda used, x: tempered(config, never, used, frozen, x, temperature), used, x)
        logs = scores - norm[:, None]
        p = jnp.exp(logs)
        # d logp / d score_i = [i is the target] - p_i;  d entropy / d score_i = -p_i (log p_i + entropy)
        surprise = jnp.where(p > 0, logs + entropy[:, None], 0)
        is_target = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1) == targets[:, None]
        gradient = jnp.where(is_target, to_logp[:, None], 0.0) - p * (to_logp[:, None] + to_entropy[:, None] * surprise)
        to_trained, to_x = pull(gradient)
        return jax.tree.map(lambda total, part: total + part.astype(jnp.float32), grad, to_trained), to_x

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trained)
    grad, to_x = jax.lax.scan(body, zeros, parts)
    grad = jax.tree.map(lambda g, p: g.astype(p.dtype), grad, trained)
    return grad, None, to_x.reshape(-1, to_x.shape[-1])[: arrays[0].shape[0]], None, None


_token_logps.defvjp(_logps_forward, _logps_backward)
