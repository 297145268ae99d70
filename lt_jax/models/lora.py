"""Low-rank adapters: add them, tell what is trained, merge them into the weights.

With `LoraConfig.rows` the rows of new tokens are trained too, as arrays of their own ("new_rows") that stand in for
theirs in the embedding and in the head, tied or not. The tables themselves stay frozen: no gradient of their size is
ever made, which for a 0.5 B model with 150,000 tokens is most of the memory.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.errors import UserError
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig, LoraConfig

ADAPTERS = ("lora_a", "lora_b", "new_rows")


def add(params: dict, config: DecoderConfig, lora: LoraConfig, key: jax.Array) -> tuple[dict, DecoderConfig]:
    """Params and config with adapters, which change nothing yet: B is zero, new rows are copies.

    The frozen arrays are shared with the argument, not copied.

    Raises:
        UserError: there are adapters already.
    """
    if config.lora:
        raise UserError("the model already has LoRA adapters; merge them first")
    config = config.replace(lora=lora)
    specs = parameters.specs(config)

    def fill(tree: dict, spec: dict, path: tuple) -> dict:
        out = dict(tree)
        for name, s in spec.items():
            here = (*path, jax.tree_util.DictKey(name))
            if isinstance(s, dict):
                out[name] = fill(tree.get(name, {}), s, here)
            elif name not in tree:
                out[name] = s.init(parameters.named_key(key, here), s.shape)
        return out

    if lora.rows:
        rows = slice(lora.rows[0], sum(lora.rows))
        own = {"embed": params["embed"][rows].astype(jnp.float32)}
        if not config.tie_embeddings:
            own["head"] = params["head"][:, rows].astype(jnp.float32)
        params = {**params, "new_rows": own}
    return fill(params, specs, ()), config


def merge(params: dict, config: DecoderConfig) -> tuple[dict, DecoderConfig]:
    """Params and config without adapters: `merge_layers` and `merge_rows`."""
    if not config.lora:
        return params, config
    params = merge_rows(params, config)
    return {**params, "layers": merge_layers(params["layers"], config)}, config.replace(lora=None)


def merge_layers(layers: dict, config: DecoderConfig) -> dict:
    """All layers stacked, or a single one, without adapters: W + alpha / rank x A B, summed in float32."""
    if not config.lora:
        return layers
    scale = config.lora.alpha / config.lora.rank

    def one(p):
        if not isinstance(p, dict) or "lora_a" not in p:
            return p
        w = p["w"].astype(jnp.float32) + scale * jnp.einsum("...ir,...ro->...io", p["lora_a"], p["lora_b"])
        rest = {name: value for name, value in p.items() if name not in ADAPTERS}
        return {**rest, "w": w.astype(p["w"].dtype)}

    return {name: one(p) for name, p in layers.items()}


def merge_rows(params: dict, config: DecoderConfig) -> dict:
    """Params with the rows of new tokens put in their tables, where they are arrays of their own."""
    if "new_rows" not in params:
        return params
    merged = {name: value for name, value in params.items() if name != "new_rows"}
    rows, own = slice(config.lora.rows[0], sum(config.lora.rows)), params["new_rows"]
    merged["embed"] = params["embed"].at[rows].set(own["embed"].astype(params["embed"].dtype))
    if "head" in own:
        merged["head"] = params["head"].at[:, rows].set(own["head"].astype(params["head"].dtype))
    return merged


def trainable(params: dict) -> dict:
    """The tree as bools: adapters and new rows where there are any, otherwise everything."""
    named = lambda path: any(getattr(p, "key", None) in ADAPTERS for p in path)
    mask = jax.tree_util.tree_map_with_path(lambda path, _: named(path), params)
    return mask if any(jax.tree.leaves(mask)) else jax.tree.map(lambda _: True, params)
