"""The parameters in the form that decoding reads, made once, and the two halves of a layer in that form.

Against `models/decoder.py`: LoRA adapters and new vocabulary rows are merged in, q|k|v and gate|up are one matrix each,
and every layer has arrays of its own. (A layer sliced out of the stacked arrays inside a loop would be copied for every
token: three times the memory traffic of a step that is bound by it.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.models import rope
from lt_jax.models.config import DecoderConfig
from lt_jax.models.decoder import rms_norm
from lt_jax.models.linear import linear


def prepare(params: dict, config: DecoderConfig) -> dict:
    """Parameter tree of `models/params.py` -> {"embed", "layers": (one dict per layer), "final_norm", "head"?}."""
    cast = lambda x: x.astype(config.dtype)
    out = {"embed": cast(params["embed"]), "final_norm": params["final_norm"]}
    if "head" in params:
        out["head"] = cast(params["head"])
    if "new_rows" in params:
        first, n = config.lora.rows
        out["embed"] = out["embed"].at[first : first + n].set(cast(params["new_rows"]["embed"]))
        if "head" in params:
            out["head"] = out["head"].at[:, first : first + n].set(cast(params["new_rows"]["head"]))
    out["layers"] = tuple(
        _layer(jax.tree.map(lambda x, i=i: x[i], params["layers"]), config) for i in range(config.layers)
    )
    return out


def _layer(layer: dict, config: DecoderConfig) -> dict:
    merged = {name: _merge(p, config) for name, p in layer.items() if isinstance(p, dict)}
    out = {name: p for name, p in layer.items() if not isinstance(p, dict)}
    out["qkv"] = _join([merged[name] for name in "qkv"], config)
    out["gate_up"] = _join([merged["gate"], merged["up"]], config)
    return out | {name: _join([merged[name]], config) for name in ("o", "down")}


def _merge(p: dict, config: DecoderConfig) -> dict:
    if "lora_a" not in p:
        return p
    scale = config.lora.alpha / config.lora.rank
    return {**p, "w": p["w"] + (p["lora_a"] @ p["lora_b"] * scale).astype(p["w"].dtype)}


def _join(maps: list[dict], config: DecoderConfig) -> dict:
    names = [name for name in ("w", "b") if name in maps[0]]
    return {name: jnp.concatenate([p[name] for p in maps], -1).astype(config.dtype) for name in names}


def qkv(layer: dict, config: DecoderConfig, x: jax.Array, angles) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `models.decoder.qkv`: x [R, T, E], `rope.table`'s angles -> q [R, T, H, D], k, v [R, T, Hkv, D]."""
    y = linear(rms_norm(x, layer["attn_norm"], config.norm_eps), layer["qkv"], config)
    y = y.reshape(*y.shape[:-1], -1, config.head_dim)
    turned, v = y[..., : -config.kv_heads, :], y[..., -config.kv_heads :, :]
    if config.qk_norm:
        scale = [
            jnp.broadcast_to(layer[name], (n, config.head_dim))
            for name, n in (("q_norm", config.heads), ("k_norm", config.kv_heads))
        ]
        turned = rms_norm(turned, jnp.concatenate(scale), config.norm_eps)
    turned = rope.rotate(turned, *angles)
    return turned[..., : config.heads, :], turned[..., config.heads :, :], v


def finish(layer: dict, config: DecoderConfig, x: jax.Array, attended: jax.Array) -> jax.Array:
    """As `models.decoder.finish`: attended [R, T, H, D] -> x [R, T, E]."""
    x = x + linear(attended.reshape(*x.shape[:-1], -1), layer["o"], config)
    y = linear(rms_norm(x, layer["mlp_norm"], config.norm_eps), layer["gate_up"], config)
    gate, up = jnp.split(y, 2, axis=-1)
    return x + linear(jax.nn.silu(gate) * up, layer["down"], config)
