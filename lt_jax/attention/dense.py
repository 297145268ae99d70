"""The definition: attention with the whole mask written out. For tests, tiny shapes, and reading."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lt_jax.attention.blocks import unseen_keys
from lt_jax.lifetimes import Lifetimes, dense_mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DensePlan:
    """mask: bool [B, 1 or Hkv, S, S], who sees whom; unseen: keys dead at birth, shaped like `Lifetimes.death`."""

    mask: jax.Array
    unseen: jax.Array


def build(lifetimes: Lifetimes) -> DensePlan:
    return DensePlan(dense_mask(lifetimes), unseen_keys(lifetimes))


def clear(x: jax.Array, unseen: jax.Array) -> jax.Array:
    """Puts 0 in [B, S, Hkv, D] at keys that no query sees, so that no NaN meets a probability of 0."""
    unseen = unseen[:, :, None] if unseen.ndim == 2 else unseen.swapaxes(1, 2)
    return jnp.where(unseen[..., None], 0, x)


def dense(q, k, v, plan: DensePlan, scale: float) -> jax.Array:
    """softmax(scale q k^T over the visible keys) v, softmax in float32.

    A query that sees no key gets zeros. Shapes: q [B, S, H, D]; k, v [B, S, Hkv, D]; returns [B, S, H, D].
    """
    B, S, H, D = q.shape
    groups = k.shape[2]
    k, v = clear(k, plan.unseen), clear(v, plan.unseen)
    q = q.reshape(B, S, groups, H // groups, D)
    exact = dict(preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, **exact) * scale
    mask = plan.mask[:, :, None]
    scores = jnp.where(mask, scores, -1e30)
    top = jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - top), 0)
    total = jnp.sum(weights, -1, keepdims=True)
    weights = (weights / jnp.where(total > 0, total, 1)).astype(v.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v, **exact).reshape(B, S, H, D).astype(q.dtype)
