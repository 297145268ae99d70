"""Log-probs of the tokens of given rows: what the model says of them when it sees what their sampler saw."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from lt_jax.lifetimes import Lifetimes
from lt_jax.models import decoder
from lt_jax.models.config import DecoderConfig
from lt_jax.training import loss as losses
from lt_jax.training import mesh as meshes
from lt_jax.training import state as states


def score(
    params: dict,
    model: DecoderConfig,
    tokens: jax.Array,
    lifetimes: Lifetimes | None = None,
    positions: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 1.0,
    never: tuple[int, ...] = (),
    chunk: int = 0,
    attention: str | None = None,
    remat: str = "none",
    place: NamedSharding | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of every token given those before it that are visible, and the entropy of what it was drawn from.

    A pure function, for use inside `jit` and `grad`: gradients flow to the leaves that are trained (under LoRA adapters
    and new rows; all otherwise). Under `Completion.lifetimes()` and the sampler's settings the log-probs of sampled
    tokens are those of the completion.

    Args:
        tokens: [B, S] int32.
        lifetimes, positions: as `decoder.forward` takes them; recorded deaths are [B, L, Hkv, S].
        temperature: of the sampler, a scalar or [B, S], for each token that of its own draw; 0 stands for 1, as the
            sampler reports the log-probs of greedy tokens.
        never: ids that the sampler could not draw. A token of theirs in a row was fed, and gets log-prob 0 as in
            `Completion.logp`.
        chunk: tokens whose logits exist at one time; 0 chooses by vocabulary size.
        attention, remat: see `decoder.forward`.
        place: on a mesh, the sharding of the residual stream, see `step.activations`.

    Returns:
        logp and entropy, [B, S] float32: [b, t] is of token t, given tokens 0 to t - 1. Both are 0 for t = 0. (What
        padding gets, and the first token of a document behind another in its row, means nothing.)
    """
    x = decoder.forward(
        params,
        model,
        tokens,
        positions,
        lifetimes,
        implementation=attention,
        remat=remat,
        sharding=place,
        split=None if place is None else meshes.split(place.mesh),
    )
    following = lambda a: jnp.roll(a, -1, axis=1).reshape(-1)
    temperature = jnp.asarray(temperature, jnp.float32)
    trained, frozen = states.split(params, states.trainable_mask(model))
    logp, entropy = losses.token_logps(
        model,
        losses.chunk_size(tokens.size, model, chunk),
        losses.head_params(trained, model),
        losses.head_params(frozen, model),
        x.reshape(-1, x.shape[-1]),
        following(tokens),
        following(temperature) if temperature.ndim else temperature,
        never,
    )
    own = lambda a: jnp.pad(a.reshape(tokens.shape)[:, :-1], [(0, 0), (1, 0)])
    fed = jnp.isin(tokens, jnp.asarray(never, jnp.int32))
    return jnp.where(fed, 0.0, own(logp)), own(entropy)
