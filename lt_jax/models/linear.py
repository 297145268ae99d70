"""The one way to a matrix product: every linear map of the decoder, with its bias and its LoRA adapter."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.models.config import DecoderConfig


def linear(x: jax.Array, p: dict, config: DecoderConfig) -> jax.Array:
    """x [..., in] -> [..., out] in x's dtype.

    Args:
        x: activations in the compute dtype.
        p: one layer's map: "w" [in, out], perhaps "b" [out], perhaps "lora_a" [in, r] and "lora_b" [r, out].
        config: gives the adapter's scale, alpha / rank.
    """
    y = product(x, p["w"].astype(x.dtype))
    if "lora_a" in p:
        scale = config.lora.alpha / config.lora.rank
        y = y + product(product(x, p["lora_a"].astype(x.dtype)), p["lora_b"].astype(x.dtype)) * scale
    if "b" in p:
        y = y + p["b"].astype(x.dtype)
    return y


@jax.custom_vjp
def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [..., in] @ w [in, out]. The same as `@`, but its gradients are two plain products.

    What autodiff makes of `@` for x with several leading axes is, on a CPU, a transposed copy of the gradient with all
    the elementwise work before it fused in: half of the backward pass of an MLP.
    """
    return x @ w


def _forward(x, w):
    return x @ w, (x, w)


def _backward(saved, dy):
    x, w = saved
    dx = jax.lax.dot_general(dy, w, (((dy.ndim - 1,), (1,)), ((), ())))
    return dx, jnp.einsum("...e,...f->ef", x, dy)


product.defvjp(_forward, _backward)
