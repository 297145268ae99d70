"""x @ w + b for few rows on a CPU: weights in panels, read once, in bfloat16 or float32; sums in float32."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from lt_jax.errors import UserError

PANEL = 32  # columns of a panel, two vectors of sixteen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Weights [K, N] in the order in which decoding reads them; a pytree.

    Attributes:
        panels: [ceil(N / 32), K, 32] float32 or bfloat16, zeros behind column N. In a bfloat16 panel the columns are
            ordered 0 16 1 17 ... 15 31, so that a 32-bit word holds two columns that are sixteen apart.
        columns: N.
    """

    panels: jax.Array
    columns: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N), as of the weights that were packed."""
        return self.panels.shape[1], self.columns

    @property
    def dtype(self) -> jnp.dtype:
        """Of the stored weights."""
        return self.panels.dtype


def prepack(w: jax.Array) -> Packed:
    """w [K, N] float32 or bfloat16 -> `Packed`; other dtypes become float32. Exact."""
    if w.ndim != 2:
        raise ValueError(f"prepack takes one matrix [K, N], not shape {w.shape}")
    if w.dtype != jnp.bfloat16:
        w = w.astype(jnp.float32)
    k, n = w.shape
    count = -(-n // PANEL)
    w = jnp.pad(w, ((0, 0), (0, count * PANEL - n)))
    if w.dtype == jnp.bfloat16:
        return Packed(w.reshape(k, count, 2, PANEL // 2).transpose(1, 0, 3, 2).reshape(count, k, PANEL), n)
    return Packed(w.reshape(k, count, PANEL).transpose(1, 0, 2), n)


def unpack(packed: Packed) -> jax.Array:
    """The weights [K, N] again, bit for bit."""
    count, k, _ = packed.panels.shape
    w = packed.panels
    if w.dtype == jnp.bfloat16:
        w = w.reshape(count, k, PANEL // 2, 2).transpose(1, 0, 3, 2)
    else:
        w = w.transpose(1, 0, 2)
    return w.reshape(k, count * PANEL)[:, :packed.columns]


def take_columns(packed: Packed, columns: jax.Array) -> jax.Array:
    """Columns of the weights as rows: [...] int32 -> [..., K]. Reads a tied embedding out of the packed head."""
    place = columns % PANEL
    if packed.dtype == jnp.bfloat16:
        place = place % 16 * 2 + place // 16
    return packed.panels[columns // PANEL, :, place]


def plain(x: jax.Array, packed: Packed, bias: jax.Array | None = None) -> jax.Array:
    """The definition: x [M, K] float32 -> [M, N] float32."""
    out = jnp.dot(x, unpack(packed).astype(jnp.float32), precision="highest")
    return out if bias is None else out + bias.astype(jnp.float32)


def native(x: jax.Array, packed: Packed, bias: jax.Array | None = None) -> jax.Array:
    """As `plain`, by the compiled library."""
    bias = jnp.zeros(0, jnp.float32) if bias is None else bias.astype(jnp.float32)
    out = jax.ShapeDtypeStruct((x.shape[0], packed.columns), jnp.float32)
    return jax.ffi.ffi_call("lt_matmul", out)(x, packed.panels, bias)


def rows_of(x: jax.Array, packed: Packed) -> jax.Array:
    """x [..., K] -> [M, K] float32.

    Raises:
        UserError: x does not fit the weights.
    """
    if x.shape[-1] != packed.shape[0]:
        raise UserError(f"matmul of x {x.shape} and packed weights {packed.shape}: the last axis of x must be "
                        f"{packed.shape[0]}")
    return x.astype(jnp.float32).reshape(math.prod(x.shape[:-1]), x.shape[-1])
