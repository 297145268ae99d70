"""The one way to a matrix product: every linear map of the decoder, with its bias and its LoRA adapter."""

from __future__ import annotations

import jax

from lt_jax.models.config import DecoderConfig


def linear(x: jax.Array, p: dict, config: DecoderConfig) -> jax.Array:
    """x [..., in] -> [..., out] in x's dtype.

    Args:
        x: activations in the compute dtype.
        p: one layer's map: "w" [in, out], perhaps "b" [out], perhaps "lora_a" [in, r] and "lora_b" [r, out].
        config: gives the adapter's scale, alpha / rank.
    """
    y = x @ p["w"].astype(x.dtype)
    if "lora_a" in p:
        scale = config.lora.alpha / config.lora.rank
        y = y + (x @ p["lora_a"].astype(x.dtype)) @ p["lora_b"].astype(x.dtype) * scale
    if "b" in p:
        y = y + p["b"].astype(x.dtype)
    return y
