"""The decoder forward pass: pure functions over the tree of `models/params.py`, and the NNX module around them.

Training calls `forward`; decoding calls `embed`, `qkv`, `finish` and `logits` and brings its own attention over the
cache. Axes: B row, T query, S key, E hidden, H heads, Hkv kv heads, D head size, L layers, V padded vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lt_jax.attention import Split, attention, planned
from lt_jax.errors import UserError
from lt_jax.lifetimes import Lifetimes, causal
from lt_jax.models import params as parameters
from lt_jax.models import rope
from lt_jax.models.config import DecoderConfig
from lt_jax.models.linear import linear

REMAT = {
    "none": lambda body: body,
    "dots": lambda body: jax.checkpoint(body, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    "layer": jax.checkpoint,
}


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, in float32, returned in x's dtype."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * weight.astype(jnp.float32)).astype(x.dtype)


def embed(params: dict, config: DecoderConfig, tokens: jax.Array) -> jax.Array:
    """tokens [B, T] int32 -> [B, T, E] in the compute dtype. Rows in `new_rows` take the place of the table's."""
    x = params["embed"][tokens].astype(config.dtype)
    if "new_rows" in params:
        first, n = config.lora.rows
        own = params["new_rows"]["embed"][jnp.clip(tokens - first, 0, n - 1)].astype(config.dtype)
        x = jnp.where(((tokens >= first) & (tokens < first + n))[..., None], own, x)
    return x


def qkv(layer: dict, config: DecoderConfig, x: jax.Array, positions) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Norm, projections, biases, q/k norm, RoPE: x [B, T, E] -> q [B, T, H, D], k and v [B, T, Hkv, D].

    Args:
        layer: one layer's parameters (no L axis).
        positions: RoPE positions [B, T] int32, or what `rope.table` made of them, to share it between layers.
    """
    cos, sin = positions if isinstance(positions, tuple) else rope.table(config, positions)
    y = rms_norm(x, layer["attn_norm"], config.norm_eps)
    heads = lambda name, n: linear(y, layer[name], config).reshape(*y.shape[:-1], n, config.head_dim)
    q, k, v = heads("q", config.heads), heads("k", config.kv_heads), heads("v", config.kv_heads)
    if config.qk_norm:
        q, k = rms_norm(q, layer["q_norm"], config.norm_eps), rms_norm(k, layer["k_norm"], config.norm_eps)
    return rope.rotate(q, cos, sin), rope.rotate(k, cos, sin), v


def finish(layer: dict, config: DecoderConfig, x: jax.Array, attended: jax.Array) -> jax.Array:
    """The rest of the layer: output projection and MLP with their residuals; attended [B, T, H, D] -> x [B, T, E]."""
    x = x + linear(attended.reshape(*x.shape[:-1], -1), layer["o"], config)
    y = rms_norm(x, layer["mlp_norm"], config.norm_eps)
    y = jax.nn.silu(linear(y, layer["gate"], config)) * linear(y, layer["up"], config)
    return x + linear(y, layer["down"], config)


def final_norm(params: dict, config: DecoderConfig, x: jax.Array) -> jax.Array:
    """The norm between the last layer and `logits`."""
    return rms_norm(x, params["final_norm"], config.norm_eps)


def logits(params: dict, config: DecoderConfig, x: jax.Array, first: jax.Array | int = 0) -> jax.Array:
    """x [..., E] after `final_norm` -> [..., V] float32; ids at or above `vocab_size` get -inf.

    Args:
        first: the first id of the table, where that is a part of the vocabulary.
    """
    if config.tie_embeddings:
        table, rows, form = params["embed"], "embed", "...e,ve->...v"
    else:
        table, rows, form = params["head"], "head", "...e,ev->...v"
    product = lambda w: jnp.einsum(form, x, w.astype(x.dtype), preferred_element_type=jnp.float32)
    out = product(table)
    if "new_rows" in params:
        own = product(params["new_rows"][rows])
        out = jax.lax.dynamic_update_slice_in_dim(out, own, config.lora.rows[0], axis=-1)
    if not isinstance(first, int) or out.shape[-1] != config.vocab_size:
        out = jnp.where(first + jnp.arange(out.shape[-1]) < config.vocab_size, out, -jnp.inf)
    return out


def forward(
    params: dict,
    config: DecoderConfig,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    lifetimes=None,
    *,
    implementation: str | None = None,
    remat: str = "none",
    sharding: jax.sharding.Sharding | None = None,
    split: Split | None = None,
    unroll: bool = False,
) -> jax.Array:
    """All layers over whole rows: tokens [B, S] -> hidden states [B, S, E] after the final norm.

    Args:
        positions: RoPE positions [B, S] int32; None counts from 0.
        lifetimes: `Lifetimes` with deaths [B, S], [B, Hkv, S] or [B, L, Hkv, S] (L or Hkv may be 1: shared by all), or
            a prepared attention plan; None is plain causal attention. Deaths of each layer's own are planned layer by
            layer, all others once.
        implementation: of attention, see `lt_jax.attention.attention`.
        remat: "none" keeps every activation, "dots" keeps matrix products only, "layer" keeps layer inputs only.
        sharding: where given, of the residual stream [B, S, E] between layers.
        split: where given, how attention lies on a mesh, see `lt_jax.attention.planned`; a plan knows it already.
        unroll: compile the layers one after the other and not as a loop. The program grows with their number, but what
            the backward pass needs of them is not copied into stacks and out again.
    """
    if remat not in REMAT:
        raise UserError(f"remat is {remat!r}; it is one of {', '.join(REMAT)}")
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    lifetimes = causal(*tokens.shape) if lifetimes is None else lifetimes
    deaths = None
    if isinstance(lifetimes, Lifetimes):
        plan = lambda death: planned(dataclasses.replace(lifetimes, death=death), implementation, split=split)
        if lifetimes.death.ndim < 4:
            shared = plan(lifetimes.death)
        elif lifetimes.death.shape[1] == 1:
            shared = plan(lifetimes.death[:, 0])
        else:
            deaths = lifetimes.death.swapaxes(0, 1)
    else:
        shared = lifetimes
    angles = rope.table(config, positions)
    place = lambda x: x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)

    def body(x, scanned):
        layer, death = scanned
        q, k, v = qkv(layer, config, x, angles)
        attended = attention(q, k, v, shared if death is None else plan(death), implementation)
        return place(finish(layer, config, x, attended)), None

    x = place(embed(params, config, tokens))
    x, _ = jax.lax.scan(REMAT[remat](body), x, (params["layers"], deaths), unroll=unroll)
    return final_norm(params, config, x)


class Decoder(nnx.Module):
    """The same decoder as an NNX module: it owns the parameters, `__call__` gives logits.

    Each `nnx.Param` carries its logical axes as metadata `logical_axes`. (Not as `out_sharding`: that name makes flax
    place the array at once and so asks for a mesh.) Loops should not call the module: split once with `tree()`, and
    hand the plain dict to the functions above.
    """

    def __init__(self, config: DecoderConfig, params: dict | None = None, *, rngs: nnx.Rngs | None = None):
        """Takes `params` as they are, or makes random ones from `rngs`."""
        if params is None:
            params = parameters.init((rngs or nnx.Rngs(0)).params(), config)
        leaf = lambda spec, value: nnx.Param(value, logical_axes=spec.axes)
        self.config = config
        self.params = nnx.data(jax.tree.map(leaf, parameters.specs(config), params))

    def __call__(self, tokens, positions=None, lifetimes=None, **options) -> jax.Array:
        """tokens [B, S] -> logits [B, S, V] float32; the other arguments are those of `forward`."""
        tree = self.tree()
        return logits(tree, self.config, forward(tree, self.config, tokens, positions, lifetimes, **options))

    def tree(self) -> dict:
        """The parameters as the plain nested dict that crosses `jit` boundaries."""
        return nnx.to_pure_dict(nnx.state(self, nnx.Param))["params"]
