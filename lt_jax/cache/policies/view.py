"""What a policy looks at: the keys of one layer in their slots, and the last queries that were asked of them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

LOWEST = -jnp.inf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class View:
    """One layer of R rows. Slots are in birth order unless the eviction's `order` is "reference".

    Attributes:
        k: [R, Hkv, C, D] keys as cached, rotated at their own positions; anything where not `alive`.
        birth: [R, Hkv, C] int32 of the keys.
        alive: [R, Hkv, C] bool, slots that hold a key that may still be seen.
        index: [R] int32, tokens fed so far: the newest key has birth index - 1.
        queries: [R, H, Q, D], the last queries, rotated; in any order. asked: [R, Q] int32 their indices, -1 if none.
            None where the policy asks none (`config.asks`).
        received: [R, Hkv, C] float32, attention received from all queries so far (H2O), or None.
        separator: [R, Hkv, C] bool, keys of separator tokens (SepLLM), or None.
        layer: [] int32, which layer; with `draw` what random scores depend on.
        draw: [R] uint32, random numbers of the rows.
        first_head: [] int32, which of the model's kv heads the first one here is.
    """

    k: jax.Array
    birth: jax.Array
    alive: jax.Array
    index: jax.Array
    queries: jax.Array | None = None
    asked: jax.Array | None = None
    received: jax.Array | None = None
    separator: jax.Array | None = None
    layer: jax.Array | int = 0
    draw: jax.Array | None = None
    first_head: jax.Array | int = 0


def keys(view: View) -> jax.Array:
    """The keys in float32, zeros in dead slots: [R, Hkv, C, D]."""
    return jnp.where(view.alive[..., None], view.k.astype(jnp.float32), 0)


def recent(view: View, n: int) -> jax.Array:
    """The keys of the last n tokens, [R, Hkv, C] bool."""
    return view.alive & (view.birth >= view.index[:, None, None] - n)


def logits(view: View) -> jax.Array:
    """q k / sqrt(D) of every query with every slot: [R, Hkv, G, Q, C] float32, G query heads a kv head."""
    rows, heads, asked, size = view.queries.shape
    grouped = view.queries.astype(jnp.float32).reshape(rows, view.k.shape[1], -1, asked, size)
    return jnp.einsum("rhgqd,rhcd->rhgqc", grouped, keys(view), precision="highest") * size**-0.5


def seen(view: View) -> jax.Array:
    """Which slots each query saw, by age alone: [R, Hkv, Q, C] bool."""
    born = view.birth[:, :, None] <= view.asked[:, None, :, None]
    return view.alive[:, :, None] & born & (view.asked >= 0)[:, None, :, None]


def softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis where `mask`, zeros elsewhere and in rows without any."""
    top = jnp.max(jnp.where(mask, scores, -1e30), -1, keepdims=True)
    weights = jnp.where(mask, jnp.exp(scores - top), 0)
    return weights / jnp.maximum(jnp.sum(weights, -1, keepdims=True), 1e-30)
