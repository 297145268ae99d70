"""For CPUs, where XLA's own forms are slow: matrix products of few rows, attention over a cache and over whole rows.

A small C++ library, compiled at first use (see `build.py`) and called by XLA through its foreign function interface. It
is never needed: without a compiler the plain forms beside it take over, and one line says so.

    packed = native.prepack(w)                 # once
    y = native.matmul(x, packed, b)            # under jit, in loops
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lt_jax.errors import UserError
from lt_jax.native import attention as _attention
from lt_jax.native import build as _build
from lt_jax.native import matmul as _matmul
from lt_jax.native.matmul import Packed, prepack, take_columns, unpack

__all__ = ["Packed", "attend", "available", "choose", "matmul", "prepack", "take_columns", "takes", "unpack"]

IMPLEMENTATIONS = ("native", "plain")


@functools.cache
def available() -> bool:
    """Whether the compiled library serves this process: its default platform is the CPU, and the library can be had.

    The first call compiles it (about fifteen seconds, once per machine and version); a failure is logged in one line.
    """
    if jax.default_backend() != "cpu":
        return False
    why = _build.reason()
    if why is not None:
        _build.log.warning("attention and decoding fall back to XLA's own, several times slower code: %s", why)
    return why is None


def choose(implementation: str | None = None) -> str:
    """The form that `implementation` stands for: None is the best there is, a name never falls back.

    Raises:
        UserError: no such name, or the native form is named where there is none.
    """
    if implementation is None:
        return "native" if available() else "plain"
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"implementation is {implementation!r}; it is one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "native" and jax.default_backend() != "cpu":
        raise UserError(f"implementation is 'native', which is for CPUs; the platform is {jax.default_backend()}")
    if implementation == "native" and _build.reason() is not None:
        raise UserError(f"implementation is 'native', but {_build.reason()}; install a C++ compiler, or name 'plain'")
    return implementation


def matmul(x, packed: Packed, bias=None, *, norm=None, eps: float = 1e-6, residual=None, implementation=None):
    """residual + norm(x) @ w + bias; with gated weights silu(norm(x) @ gate) * (norm(x) @ up) in place of the product.

    Weights are exact, products and sums are float32. No gradient, no vmap: for decoding only.

    Args:
        x: [..., K].
        packed: of `prepack`, [K, N].
        bias: [N] or None.
        norm: [K], weights of the RMS norm of x, or None: x as it is. `eps` is the norm's.
        residual: [..., N] or None.

    Returns:
        [..., N] float32.

    Raises:
        UserError: a shape does not fit the weights; see also `choose`.
    """
    form = {"native": _matmul.native, "plain": _matmul.plain}[choose(implementation)]
    rows, bias, norm, added = _matmul.fit(x, packed, bias, norm, residual)
    return form(rows, packed, bias, norm, eps, added).reshape(*x.shape[:-1], packed.columns)


def takes(head_size: int, dtype) -> bool:
    """Whether there is a native form of `attend` for this head size and dtype of the cache."""
    return _attention.fits(head_size, dtype)


def attend(fresh, keys, values, layer, rows, start, mask, bound, *, angles=None, norms=None, eps: float = 1e-6,
           received: bool = False, implementation: str | None = None):  # fmt: skip
    """Writes new keys and values into their slots of one layer, then attends over each row's slots below its bound.

    Args:
        fresh: [R, T, H + 2 Hkv, D], queries, keys and values of the new tokens; the scale of scores is D ** -0.5.
        keys, values: [L, B, Hkv, C, D] float32 or bfloat16, the whole cache. Updated in place where the caller lets go
            of them; no layer is sliced out.
        layer: which layer, a number or [] int32.
        rows: [R] int32, different cache rows; None is all B in order.
        start: [R] int32, slot of each row's first new key. start + T must not pass C: the native form fails there.
        mask: [R, Kb, T, C] bool, visible (query, slot) pairs; Kb is 1 or Hkv.
        bound: [R] int32, slots at or after it are seen by no query; the cost follows it.
        angles: (cos, sin) [R, T, 1, D / 2] that rotate queries and keys (pairs i and i + D / 2), or None.
        norms: weights [D] of the RMS norms of queries and keys before that, or None. `eps` is theirs.
        received: return this, too.

    Returns:
        attended [R, T, H, D] float32, zeros where a query sees nothing; keys; values; and, if wanted, what each slot
        received: its weights summed over the new tokens and the heads of a group, [R, Hkv, C] float32.

    Raises:
        UserError: the native form is named for a head size it does not take; see also `choose`.
    """
    form = choose(implementation)
    if form == "native" and not takes(fresh.shape[-1], keys.dtype):
        if implementation is not None:
            raise UserError(f"native attention takes head sizes that are multiples of {_attention.LANES} up to "
                            f"{_attention.MOST} and float32 or bfloat16 caches, not {fresh.shape[-1]} and "
                            f"{keys.dtype}")  # fmt: skip
        form = "plain"
    rows = jnp.arange(fresh.shape[0], dtype=jnp.int32) if rows is None else rows
    out = {"native": _attention.native, "plain": _attention.plain}[form](
        fresh, keys, values, layer, rows, start, mask, bound, angles, norms, eps, received
    )
    return out if received else out[:3]
