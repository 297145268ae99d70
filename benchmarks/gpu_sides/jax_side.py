"""What our sides share: the forms that are measured, the model, the card's limits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from benchmarks.gpu_sides.side import Task, milliseconds
from benchmarks.gpu_sides.sizes import Shape
from lt_jax import attention, cuda
from lt_jax.decode import setup
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig

# The kernels, and what ran before them. On a CPU without Triton's interpreter a rehearsal has the old forms alone.
ATTENTION = "triton" if "triton" in attention.IMPLEMENTATIONS and (cuda.here() or cuda.interpreting()) else "blocked"
ENGINE = "triton" if "triton" in setup.ATTENTION and (cuda.here() or cuda.interpreting()) else "plain"


def begin(task: Task) -> None:
    """Notes the card and, if asked, its limits."""
    device = jax.devices()[0]
    print(f"jax {jax.__version__} on {device.device_kind}", flush=True)
    if task.limits:
        task.attempt("limits", "jax", lambda: limits(task) | dict(card=device.device_kind))


def limits(task: Task) -> dict:
    """FLOP/s of a large bfloat16 product, and bytes/s of a copy on the device, read and written ones together."""
    side, count = task.sizes.product, task.sizes.copied // 4
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), jnp.bfloat16)
    x = jnp.zeros(count, jnp.int32)
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x ^ 1)
    return dict(
        matmul=2 * side**3 / milliseconds(lambda: product(a, b), jax.block_until_ready) * 1e3,
        copy=2 * 4 * count / milliseconds(lambda: copy(x), jax.block_until_ready) * 1e3,
    )


def model(shape: Shape, dtype: str = "bfloat16", layers: int | None = None) -> DecoderConfig:
    """The decoder of a shape."""
    return DecoderConfig(
        vocab_size=shape.vocab, hidden=shape.hidden, intermediate=shape.intermediate, layers=layers or shape.layers,
        heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim, rope_theta=1e6, norm_eps=1e-6,
        qkv_bias=True, tie_embeddings=True, model_type="qwen2", dtype=dtype,
    )  # fmt: skip


def weights(config: DecoderConfig, dtype=jnp.bfloat16) -> dict:
    """Random parameters."""
    return jax.jit(functools.partial(parameters.init, config=config, dtype=dtype))(jax.random.key(0))
