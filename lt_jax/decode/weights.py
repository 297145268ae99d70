"""The parameters in the form that decoding reads, made once, and the two halves of a layer in that form.

Against `models/decoder.py`: LoRA adapters and new vocabulary rows are merged in, q|k|v and gate|up are one matrix each,
and every layer has arrays of its own. (A layer sliced out of the stacked arrays inside a loop would be copied for every
token: three times the memory traffic of a step that is bound by it.) On a CPU the matrices are packed for the native
kernels, in the dtype they are stored in: bfloat16 weights are read as such and multiplied in float32, exactly. A layer
is then five calls, because what XLA does on a CPU between the products (norms, rotation, gate, residuals) took a third
of a step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax import cache as slots
from lt_jax import cuda, native
from lt_jax.attention import triton_decode
from lt_jax.cache import across
from lt_jax.models import decoder, lora, rope
from lt_jax.models.config import DecoderConfig
from lt_jax.models.decoder import rms_norm
from lt_jax.models.linear import linear


def decoding_form(params: dict, config: DecoderConfig, form: str) -> dict:
    """Parameter tree of `models/params.py` -> {"embed"?, "layers": (one dict per layer), "final_norm", "head"?}.

    Args:
        form: "native" (matrices are `native.Packed`; a tied embedding is the packed head alone) or "plain".
    """
    layer = lambda i: layer_form(params["layers"], i, config, form)
    return tables_form(params, config, form) | {"layers": tuple(map(layer, range(config.layers)))}


def tables_form(params: dict, config: DecoderConfig, form: str) -> dict:
    """What `decoding_form` makes of all but the layers."""
    params = lora.merge_rows(params, config)
    dtype = params["embed"].dtype if form == "native" else config.dtype
    out = {name: params[name].astype(dtype) for name in ("embed", "head") if name in params}
    out["final_norm"] = params["final_norm"]
    if form == "native":
        out["head"] = native.prepack(out.pop("embed").T if config.tie_embeddings else out["head"])
    return out


def layer_form(layers: dict, number: int | jax.Array, config: DecoderConfig, form: str) -> dict:
    """What `decoding_form` makes of one of the stacked `layers`."""
    own = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), layers)
    return _layer(lora.merge_layers(own, config), config, form)


def _layer(layer: dict, config: DecoderConfig, form: str) -> dict:
    out = {name: p for name, p in layer.items() if not isinstance(p, dict)}
    joined = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
    out |= {name: _join([layer[part] for part in parts], config, form) for name, parts in joined.items()}
    if form == "native":
        out["gate_up"] = {"w": native.prepack(layer["gate"]["w"], layer["up"]["w"])}
    return out


def _join(maps: list[dict], config: DecoderConfig, form: str) -> dict:
    joined = {name: jnp.concatenate([p[name] for p in maps], -1) for name in ("w", "b") if name in maps[0]}
    if form == "native":
        return joined | {"w": native.prepack(joined["w"])}
    return {name: x.astype(config.dtype) for name, x in joined.items()}


def packed(p: dict) -> bool:
    """Whether a linear map is in the form of the native kernels."""
    return isinstance(p["w"], native.Packed)


def embed(weights: dict, config: DecoderConfig, tokens: jax.Array, axis: str | None = None) -> jax.Array:
    """As `models.decoder.embed`; `axis` cuts the vocabulary."""
    if axis is not None:
        own = tokens - across.number(axis) * len(weights["embed"])
        here = (own >= 0) & (own < len(weights["embed"]))
        rows = weights["embed"][jnp.where(here, own, 0)].astype(config.dtype)
        return across.summed(jnp.where(here[..., None], rows, 0), axis)
    if "embed" in weights:
        return decoder.embed(weights, config, tokens)
    return native.take_columns(weights["head"], tokens).astype(config.dtype)


def logits(weights: dict, config: DecoderConfig, x: jax.Array, axis: str | None = None) -> jax.Array:
    """The final norm and `models.decoder.logits`: x [R, E] -> [R, V] float32; `axis` cuts the vocabulary."""
    if not isinstance(weights.get("head"), native.Packed):
        x = decoder.final_norm(weights, config, x)
        columns = weights["head"].shape[1] if "head" in weights else len(weights["embed"])
        return decoder.logits(weights, config, x, 0 if axis is None else across.number(axis) * columns)
    norm = dict(norm=weights["final_norm"], eps=config.norm_eps)
    out = native.matmul(x, weights["head"], **norm, implementation="native")
    if config.vocab_padded > config.vocab_size:
        out = jnp.where(jnp.arange(config.vocab_padded) < config.vocab_size, out, -jnp.inf)
    return out


def attend(layer: dict, config: DecoderConfig, x: jax.Array, angles, keys, values, where, form: str | None,
           received: bool = False):  # fmt: skip
    """The first half of a layer up to the output projection; the new keys join the cache.

    Args:
        x: [R, T, E]; the rows beyond those of `where` are padding, and get zeros.
        angles: of `rope.table`.
        keys, values, where, form: of `cache.attend`; `where` is (layer, rows, start, mask, bound).
        received: whether to sum up what each slot receives.

    Returns:
        attended [R, T, H, D], keys, values, `fresh` [R, T, H + 2 Hkv, D], see `queries`, and received [R, Hkv, C] or
        None.
    """
    p, eps = layer["qkv"], config.norm_eps
    if packed(p):
        fresh = native.matmul(x, p["w"], p.get("b"), norm=layer["attn_norm"], eps=eps, implementation="native")
    else:
        fresh = linear(rms_norm(x, layer["attn_norm"], eps), p, config)
    fresh = fresh.reshape(*x.shape[:-1], -1, config.head_dim)
    norms = (layer["q_norm"], layer["k_norm"]) if config.qk_norm else None
    around = dict(angles=angles, norms=norms, eps=eps, received=received)
    if packed(p) and native.takes(config.head_dim, keys.dtype):
        out, *cache = native.attend(fresh, keys, values, *where, **around, implementation="native")
        return out.astype(x.dtype), *cache[:2], fresh, cache[2] if received else None

    number, *places = where
    rows, triton = len(places[-1]), by_triton(form, config, keys)
    other = "blocks" if triton else form  # on platforms that a process on a GPU has no kernels for

    def apart(fresh, keys, values, *places):
        q, k = _turned(layer, config, fresh[:rows], angles)
        v = fresh[:rows, :, -config.kv_heads :]
        out, *cache = slots.attend(q, k, v, keys, values, number, *places, other, received)
        return jnp.pad(out, ((0, len(fresh) - rows), (0, 0), (0, 0), (0, 0))), *cache

    def together(fresh, keys, values, *places):
        return triton_decode.attend(fresh, keys, values, number, *places, **around)

    operands = (fresh.astype(x.dtype), keys, values, *places)
    if form == "triton":
        out, keys, values, new = together(*operands)
    elif triton:
        out, keys, values, new = jax.lax.platform_dependent(*operands, cuda=together, default=apart)
    else:
        out, keys, values, new = apart(*operands)
    return out, keys, values, fresh[:rows], new


def by_triton(form: str | None, config: DecoderConfig, keys: jax.Array) -> bool:
    """Whether attention is by the kernels for NVIDIA GPUs: they are named, or are the choice of this process."""
    return form == "triton" or (form is None and cuda.here() and triton_decode.takes(config.head_dim, keys.dtype))


def queries(layer: dict, config: DecoderConfig, fresh: jax.Array, angles) -> jax.Array:
    """The queries [R, T, H, D] that attention used, normed and rotated, from the projection `fresh`."""
    return _turned(layer, config, fresh, angles)[0]


def _turned(layer: dict, config: DecoderConfig, fresh: jax.Array, angles) -> tuple[jax.Array, jax.Array]:
    """[R, T, H + 2 Hkv, D] -> q [R, T, H, D], k [R, T, Hkv, D], normed and rotated."""
    turned = fresh[..., : -config.kv_heads, :]
    if config.qk_norm:
        scale = [
            jnp.broadcast_to(layer[name], (n, config.head_dim))
            for name, n in (("q_norm", config.heads), ("k_norm", config.kv_heads))
        ]
        turned = rms_norm(turned, jnp.concatenate(scale), config.norm_eps)
    turned = rope.rotate(turned, *angles)
    return turned[..., : config.heads, :], turned[..., config.heads :, :]


def finish(layer: dict, config: DecoderConfig, x: jax.Array, attended: jax.Array, axis: str | None = None) -> jax.Array:
    """As `models.decoder.finish`: attended [R, T, H, D] -> x [R, T, E]; `axis` cuts heads and the MLP."""
    y = attended.reshape(*x.shape[:-1], -1)
    if packed(layer["o"]):
        product = lambda x, name, **around: native.matmul(x, layer[name]["w"], **around, implementation="native")
        middle = product(y, "o", residual=x)
        y = product(middle, "gate_up", norm=layer["mlp_norm"], eps=config.norm_eps)
        return product(y, "down", residual=middle).astype(x.dtype)
    x = x + across.summed(linear(y, layer["o"], config), axis)
    y = linear(rms_norm(x, layer["mlp_norm"], config.norm_eps), layer["gate_up"], config)
    gate, up = jnp.split(y, 2, axis=-1)
    return x + across.summed(linear(jax.nn.silu(gate) * up, layer["down"], config), axis)
