"""The parameters of a decoder, defined once: `specs` gives every array its shape, logical axes and initial values.

The tree is a plain nested dict, layers stacked on axis 0. Everything else (abstract shapes, shardings, initial values,
counts, the NNX module, Hugging Face names) is derived from this table.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lt_jax.models.config import DecoderConfig

# Logical axes that devices which work on the same rows cut between them; training and decoding both go by this.
CUT = ("heads", "kv_heads", "mlp", "vocab")


@dataclasses.dataclass(frozen=True)
class Spec:
    """One array: `shape`, one logical axis name (or None) per axis, and `init(key, shape) -> float32 values`.

    `adapter` marks LoRA matrices and new vocabulary rows: trained while the rest is frozen, always kept in float32.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Callable
    adapter: bool = False


ones = lambda key, shape: jnp.ones(shape, jnp.float32)
zeros = lambda key, shape: jnp.zeros(shape, jnp.float32)


def normal(std: float) -> Callable:
    return lambda key, shape: std * jax.random.truncated_normal(key, -3, 3, shape, jnp.float32)


def specs(config: DecoderConfig) -> dict:
    """Nested dict of `Spec`: L layers, E hidden, V padded vocabulary, F intermediate, H heads of size D, Hkv kv heads.

    Linear maps are [L, in, out] with std 1/sqrt(in); the two that write to the residual stream, o and down, are
    smaller by sqrt(2 L) so that its variance does not grow with depth.
    """
    c = config
    E, F, D, V = c.hidden, c.intermediate, c.head_dim, c.vocab_padded
    residual = 1 / math.sqrt(2 * c.layers)
    norm = lambda n, axis: Spec((c.layers, n), ("layers", axis), ones)
    layers = {
        "attn_norm": norm(E, "embed"),
        "q": _linear(c, "q", E, c.heads * D, ("embed", "heads"), bias=c.qkv_bias),
        "k": _linear(c, "k", E, c.kv_heads * D, ("embed", "kv_heads"), bias=c.qkv_bias),
        "v": _linear(c, "v", E, c.kv_heads * D, ("embed", "kv_heads"), bias=c.qkv_bias),
        "o": _linear(c, "o", c.heads * D, E, ("heads", "embed"), residual),
        "mlp_norm": norm(E, "embed"),
        "gate": _linear(c, "gate", E, F, ("embed", "mlp")),
        "up": _linear(c, "up", E, F, ("embed", "mlp")),
        "down": _linear(c, "down", F, E, ("mlp", "embed"), residual),
    }
    if c.qk_norm:
        layers |= {"q_norm": norm(D, None), "k_norm": norm(D, None)}
    tree = {
        "embed": Spec((V, E), ("vocab", "embed"), normal(E**-0.5)),
        "layers": layers,
        "final_norm": Spec((E,), ("embed",), ones),
    }
    if not c.tie_embeddings:
        tree["head"] = Spec((E, V), ("embed", "vocab"), normal(E**-0.5))
    if c.lora and c.lora.rows:
        n = c.lora.rows[1]
        tree["new_rows"] = {"embed": Spec((n, E), (None, "embed"), normal(E**-0.5), adapter=True)}
        if not c.tie_embeddings:
            tree["new_rows"]["head"] = Spec((E, n), ("embed", None), normal(E**-0.5), adapter=True)
    return tree


def _linear(c: DecoderConfig, name: str, n_in: int, n_out: int, axes, scale: float = 1.0, bias: bool = False) -> dict:
    p = {"w": Spec((c.layers, n_in, n_out), ("layers", *axes), normal(scale * n_in**-0.5))}
    if bias:
        p["b"] = Spec((c.layers, n_out), ("layers", axes[1]), zeros)
    if c.lora and name in c.lora.targets:
        r = c.lora.rank
        p["lora_a"] = Spec((c.layers, n_in, r), ("layers", axes[0], None), normal(n_in**-0.5), adapter=True)
        p["lora_b"] = Spec((c.layers, r, n_out), ("layers", None, axes[1]), zeros, adapter=True)
    return p


def abstract(config: DecoderConfig, dtype=jnp.float32, shardings: dict | None = None) -> dict:
    """The tree as `jax.ShapeDtypeStruct`; `dtype` is the storage dtype of all but adapters, which are float32."""
    if shardings is None:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, storage(s, dtype)), specs(config))
    place = lambda s, sharding: jax.ShapeDtypeStruct(s.shape, storage(s, dtype), sharding=sharding)
    return jax.tree.map(place, specs(config), shardings)


def logical_axes(config: DecoderConfig) -> dict:
    """The tree as tuples of logical axis names: "layers", "embed", "heads", "kv_heads", "mlp", "vocab" or None.

    Leaves are tuples; map over it with `is_leaf=lambda x: isinstance(x, tuple)`.
    """
    return jax.tree.map(lambda s: s.axes, specs(config))


def init(key: jax.Array, config: DecoderConfig, dtype=jnp.float32) -> dict:
    """Random parameters. An array's values depend on `key`, its name and its shape, not on what else is in the tree."""
    leaf = lambda path, s: s.init(named_key(key, path), s.shape).astype(storage(s, dtype))
    return jax.tree_util.tree_map_with_path(leaf, specs(config))


def named_key(key: jax.Array, path) -> jax.Array:
    """The key of the array at a tree path, made from its name so that it stays when other arrays come or go."""
    return jax.random.fold_in(key, zlib.crc32(".".join(p.key for p in path).encode()))


def storage(spec: Spec, dtype) -> jnp.dtype:
    return jnp.dtype(jnp.float32) if spec.adapter else jnp.dtype(dtype)


def count(config: DecoderConfig, padded: bool = False) -> int:
    """Number of parameters; without the padding rows of the vocabulary unless `padded`."""
    total = sum(math.prod(s.shape) for s in jax.tree.leaves(specs(config)))
    tables = 1 if config.tie_embeddings else 2
    return total if padded else total - tables * config.hidden * (config.vocab_padded - config.vocab_size)


def nbytes(params: dict) -> int:
    """Bytes of a tree of arrays or of `abstract` shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params))
