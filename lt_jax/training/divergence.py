"""How far two policies are apart at each token, over the whole vocabulary, in chunks of tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.models.config import DecoderConfig
from lt_jax.training import loss as losses
from lt_jax.training import state as states

LEAST = -1e9  # in place of the -inf of ids that neither can say, where inf - inf would be NaN


def token_kl(
    params: dict,
    model: DecoderConfig,
    x: jax.Array,
    other: jax.Array,
    *,
    temperature: float = 1.0,
    never: tuple[int, ...] = (),
    chunk: int = 0,
) -> jax.Array:
    """KL(p || q) of what two views of the same rows say of each token, exact: sum of p (log p - log q).

    The sum over the vocabulary has no sampling noise, which an estimate from the sampled token would have. The backward
    pass computes the logits of each chunk again.

    Args:
        x: [B, S, E], hidden states of p, see `score.hidden`; gradients flow to them and to what is trained of
            the head.
        other: [B, S, E], those of q, which is held still.
        temperature, never, chunk: as of `score.score`.

    Returns:
        [B, S] float32 in nats: [b, t] is of the draw of token t, 0 for t = 0.
    """
    trained, frozen = states.split(params, states.trainable_mask(model))
    trained, frozen = losses.head_params(trained, model), jax.lax.stop_gradient(losses.head_params(frozen, model))
    flat = x.reshape(-1, x.shape[-1])
    size = losses.chunk_size(flat.shape[0], model, chunk)
    fill = -flat.shape[0] % size
    cut = lambda a: jnp.pad(a.reshape(-1, a.shape[-1]), [(0, fill), (0, 0)]).reshape(-1, size, a.shape[-1])

    @jax.checkpoint
    def body(trained, x, other):
        heat = jnp.full(size, temperature, jnp.float32)
        log = lambda trained, x: jnp.maximum(
            jax.nn.log_softmax(losses.tempered(model, never, trained, frozen, x, heat)), LEAST
        )
        p, q = log(trained, x), jax.lax.stop_gradient(log(trained, other))
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    _, found = jax.lax.scan(lambda _, part: (None, body(trained, *part)), None, (cut(x), cut(other)))
    found = found.reshape(-1)[: flat.shape[0]].reshape(x.shape[:2])
    return jnp.pad(found[:, :-1], [(0, 0), (1, 0)])
