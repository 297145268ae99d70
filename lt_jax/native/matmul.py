"""A linear map of few rows on a CPU, with what stands around it: norm, bias, gate and residual.

Weights are packed in panels, read once, in bfloat16 or float32; sums are float32.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.errors import UserError

PANEL, HALF = 32, 16  # columns of a panel, and of a vector


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Weights [K, N] in the order in which decoding reads them; a pytree.

    Attributes:
        panels: [ceil(N / 32), K, 32] float32 or bfloat16, zeros behind column N. In a bfloat16 panel the columns are
            ordered 0 16 1 17 ... 15 31, so that a 32-bit word holds two columns that are sixteen apart. Of a gated map,
            [ceil(N / 16), K, 32]: sixteen columns of the gate, then the same sixteen of what it gates.
        columns: N.
        gated: two matrices, for silu(x @ gate) * (x @ up).
    """

    panels: jax.Array
    columns: int = dataclasses.field(metadata={"static": True})
    gated: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        return self.panels.shape[1], self.columns

    @property
    def dtype(self) -> jnp.dtype:
        """Of the stored weights."""
        return self.panels.dtype


def prepack(w: jax.Array, up: jax.Array | None = None) -> Packed:
    """Packs w [K, N], or a gate w and what it gates, `up`. Exact; what is not bfloat16 becomes float32.

    Raises:
        UserError: w is no matrix, or `up` differs from it in shape or dtype.
    """
    if w.ndim != 2:
        raise UserError(f"prepack takes one matrix [in, out], not shape {w.shape}")
    if up is not None and (up.shape, up.dtype) != (w.shape, w.dtype):
        raise UserError(f"a gate {w.shape} {w.dtype} and what it gates {up.shape} {up.dtype} must be alike")
    parts = [w if w.dtype == jnp.bfloat16 else w.astype(jnp.float32) for w in (w, up) if w is not None]
    k, n = w.shape
    full = PANEL // len(parts)
    count = -(-n // full)
    parts = [jnp.pad(w, ((0, 0), (0, count * full - n))).reshape(k, count, -1, HALF) for w in parts]
    halves = jnp.concatenate(parts, 2)  # [K, count, 2, 16]
    order = (1, 0, 3, 2) if w.dtype == jnp.bfloat16 else (1, 0, 2, 3)
    return Packed(halves.transpose(order).reshape(count, k, PANEL), n, up is not None)


def unpack(packed: Packed) -> list[jax.Array]:
    """The weights [K, N] again, bit for bit: one matrix, or gate and up."""
    count, k, _ = packed.panels.shape
    if packed.dtype == jnp.bfloat16:
        halves = packed.panels.reshape(count, k, HALF, 2).transpose(1, 0, 3, 2)
    else:
        halves = packed.panels.reshape(count, k, 2, HALF).transpose(1, 0, 2, 3)
    parts = [halves[:, :, 0], halves[:, :, 1]] if packed.gated else [halves]
    return [w.reshape(k, -1)[:, :packed.columns] for w in parts]


def take_columns(packed: Packed, columns: jax.Array) -> jax.Array:
    """Columns of the weights as rows: [...] int32 -> [..., K]. Reads a tied embedding out of the packed head."""
    place = columns % PANEL
    if packed.dtype == jnp.bfloat16:
        place = place % HALF * 2 + place // HALF
    return packed.panels[columns // PANEL, :, place]


def plain(x, packed: Packed, bias, norm, eps: float, residual) -> jax.Array:
    """The definition: x [M, K] float32 -> [M, N] float32; see `lt_jax.native.matmul`."""
    if norm is not None:
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + eps) * norm
    parts = [jnp.dot(x, w.astype(jnp.float32), precision="highest") for w in unpack(packed)]
    out = jax.nn.silu(parts[0]) * parts[1] if packed.gated else parts[0]
    out = out if bias is None else out + bias
    return out if residual is None else out + residual


def native(x, packed: Packed, bias, norm, eps: float, residual) -> jax.Array:
    """As `plain`, by the compiled library."""
    given = lambda operand: jnp.zeros(0, jnp.float32) if operand is None else operand
    out = jax.ShapeDtypeStruct((x.shape[0], packed.columns), jnp.float32)
    call = jax.ffi.ffi_call("lt_matmul", out)
    return call(x, packed.panels, given(bias), given(norm), given(residual), eps=np.float32(eps), gated=packed.gated)


def fit(x, packed: Packed, bias, norm, residual) -> list:
    """x as [M, K], residual as [M, N], all in float32.

    Raises:
        UserError: one does not fit the weights.
    """
    k, n = packed.shape
    wanted = {"x": (x, (*x.shape[:-1], k)), "norm": (norm, (k,)), "bias": (bias, (n,)),
              "residual": (residual, (*x.shape[:-1], n))}  # fmt: skip
    for name, (operand, shape) in wanted.items():
        if operand is not None and operand.shape != shape:
            raise UserError(f"matmul with packed weights {packed.shape}: {name} is {operand.shape}, but {shape} fits")
    if packed.gated and bias is not None:
        raise UserError("matmul with gated weights takes no bias")
    rows = math.prod(x.shape[:-1])
    cast = lambda operand: None if operand is None else operand.astype(jnp.float32)
    flat = lambda operand, width: None if operand is None else cast(operand).reshape(rows, width)
    return [flat(x, k), cast(bias), cast(norm), flat(residual, n)]
