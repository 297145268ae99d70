"""Attention under lifetimes: `attention(q, k, v, lifetimes)`, and `planned(lifetimes)` to plan it once per step."""

from __future__ import annotations

import functools

import jax

from lt_jax import cuda as _cuda
from lt_jax import native as _library
from lt_jax.attention import pallas_train as _pallas
from lt_jax.attention import split as _split
from lt_jax.attention import triton_train as _triton
from lt_jax.attention.blocks import BlockPlan
from lt_jax.attention.blocks import build as _build_blocks
from lt_jax.attention.dense import DensePlan
from lt_jax.attention.dense import build as _build_dense
from lt_jax.attention.dense import dense as _dense
from lt_jax.attention.flash import flash as _flash
from lt_jax.attention.native import takes as _takes
from lt_jax.attention.split import Split, SplitPlan
from lt_jax.errors import UserError
from lt_jax.lifetimes import Lifetimes

__all__ = ["IMPLEMENTATIONS", "BlockPlan", "DensePlan", "Plan", "Split", "SplitPlan", "attention", "planned"]

IMPLEMENTATIONS = ("dense", "blocked", "native", "pallas", "triton")
Plan = DensePlan | BlockPlan | SplitPlan
_SIDES = {"cpu": (64, 32)}  # block sides in queries and keys: measured best on CPU for 4 query heads per kv head
_OTHER_SIDES = (128, 128)


def planned(
    lifetimes: Lifetimes,
    implementation: str | None = None,
    *,
    block_q: int | None = None,
    block_k: int | None = None,
    split: Split | None = None,
) -> Plan:
    """Work out once per step who sees whom, for all layers that share these lifetimes.

    Args:
        lifetimes: of B rows of S tokens.
        implementation: "dense", "blocked", "native" (compiled code for the CPU of a process with one device, on the
            plan of "blocked"), "pallas" (kernels for TPUs; interpreted, and slow, on a CPU), "triton" (kernels for
            NVIDIA GPUs; on a CPU for programs that are lowered for a GPU, or interpreted, see `lt_jax.cuda`), or None:
            the best for the platform. That is "pallas" in a process on a TPU v5 or later, for rows that its memory can
            take; "triton" in a process on an NVIDIA GPU where triton is installed, for 16-bit types; "native" for
            programs that run on a CPU with one device and a compiler; "blocked" for all others.
        block_q, block_k: block sides in tokens for all but "dense"; None for the best of this process's platform. Cut
            down to short rows, but not for "pallas", whose sides are multiples of 128 queries and 128 keys, nor for
            "triton", whose sides are multiples of 16.
        split: how rows and kv heads lie on a mesh; attention then stays on each device. ("dense" is left to XLA.)

    Returns:
        A pytree for the `lifetimes` argument of `attention`; it may be closed over by a scan over layers.

    Raises:
        ValueError: no such implementation; deaths of several layers.
        UserError: sides that the kernels do not take; "triton" where it is not installed.
    """
    _check_name(implementation)
    if lifetimes.death.ndim > 3:
        raise ValueError(f"deaths of shape {lifetimes.death.shape} are of several layers; attention takes one layer's")
    if implementation == "dense":
        return _build_dense(lifetimes)
    if split is not None:
        local = functools.partial(planned, implementation=implementation, block_q=block_q, block_k=block_k)
        return _split.planned(lifetimes, split, local)
    length = lifetimes.death.shape[-1]
    on_tpu = _pallas.generation() is not None and not (block_q or block_k) and _pallas.fits(length)
    if implementation == "pallas" or (implementation is None and on_tpu):
        block = _pallas.BLOCK
        plan = _build_blocks(lifetimes, block_q or block, block_k or block, implementation, _pallas.CHUNK)
        if not _pallas.takes(plan):
            raise UserError(f"pallas attention takes blocks of {block} keys and of a multiple of {block} queries, not "
                            f"{block_k} and {block_q}")  # fmt: skip
        return plan
    if implementation == "triton" or (implementation is None and _cuda.here()):
        if implementation == "triton" and not _cuda.installed():
            _cuda.refuse("triton attention")
        side_q, side_k = _triton.SIDES
        plan = _build_blocks(lifetimes, block_q or side_q, block_k or side_k, implementation, turned=True)
        if implementation == "triton" and not _triton.takes(plan):
            raise UserError(f"triton attention takes blocks of multiples of {_triton.LEAST} queries and keys, not "
                            f"{plan.block_q} and {plan.block_k}")  # fmt: skip
        return plan
    best_q, best_k = _SIDES.get(jax.default_backend(), _OTHER_SIDES)
    short = -(-length // 16) * 16
    return _build_blocks(lifetimes, min(block_q or best_q, short), min(block_k or best_k, short), implementation)


def attention(q, k, v, lifetimes: Lifetimes | Plan, implementation: str | None = None, scale: float | None = None):
    """softmax(scale q k^T over the visible keys) v. Queries and keys are the tokens of the same rows.

    Args:
        q: [B, S, H, D].
        k, v: [B, S, Hkv, D], H a multiple of Hkv; query head h reads kv head h // (H / Hkv).
        lifetimes: `Lifetimes` of the rows, or what `planned` made of them.
        implementation: see `planned`. With a plan it is None or the implementation that the plan was made for. A plan
            made with None works for "blocked" and "native", for "pallas" if its block sizes are those of the TPU
            kernels, and for "triton" if it was made in a process on an NVIDIA GPU.
        scale: of the scores, D ** -0.5 if None.

    Returns:
        [B, S, H, D] in q's dtype; softmax in float32; zeros for a query that sees no key. Keys that are dead at birth
        may hold anything, even NaN.

    Raises:
        ValueError: for shapes that do not fit each other or the lifetimes, or an implementation that is not the plan's.
        UserError: "native" was asked for where there is no compiler or more than one device, or for sides that are no
            multiples of 16; "pallas" for rows that do not fit a TPU's vector memory; "triton" for head sizes above 256
            or float64.
    """
    _check_name(implementation)
    plan = planned(lifetimes, implementation) if isinstance(lifetimes, Lifetimes) else lifetimes
    if isinstance(plan, SplitPlan):
        local = functools.partial(attention, implementation=implementation, scale=scale)
        return _split.attention(q, k, v, plan, local)
    made_for = "dense" if isinstance(plan, DensePlan) else plan.form
    kernels = {"pallas": _pallas, "triton": _triton}
    fitting = (made_for,)
    if made_for is None:
        fitting = ("blocked", "native", *(name for name, module in kernels.items() if module.takes(plan)))
    if implementation is not None and implementation not in fitting:
        raise ValueError(f"attention implementation {implementation!r} was asked for, but the plan is for "
                         f"{' or '.join(map(repr, fitting))}")  # fmt: skip
    _check(q, k, v, plan)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if made_for == "dense":
        return _dense(q, k, v, plan, scale)
    return _flash(q, k, v, plan, scale, _forms(implementation or made_for, q, plan))


def _forms(implementation, q, plan):
    """Which of `flash.FORMS` runs on which platform, see there."""
    takes = _takes(q.shape[-1], plan)
    if implementation == "pallas":
        if not _pallas.fits(plan.length, q.dtype.itemsize):
            raise UserError(f"pallas attention keeps the keys of a head in the TPU's vector memory, which does not "
                            f"hold {plan.length} in {q.dtype}; name 'blocked', or cut the rows")  # fmt: skip
        return ("cpu", "pallas interpreted"), ("default", "pallas")
    if implementation == "triton":
        if not _triton.fits(q.shape[-1], q.dtype):
            raise UserError(f"triton attention takes head sizes up to {_triton.MOST} (128 on cards with less than 162 "
                            f"KiB of shared memory) in float32 and 16-bit types, not {q.shape[-1]} in {q.dtype}; name "
                            "'blocked'")  # fmt: skip
        return (("default", "triton"),)
    if implementation == "native":
        _library.choose("native")
        if jax.device_count() > 1:  # XLA cannot split a call of compiled code over them
            raise UserError(f"native attention is for one device, and there are {jax.device_count()}; name 'blocked'")
        if not takes:
            raise UserError(f"native attention takes head sizes and query blocks in multiples of 16, not {q.shape[-1]} "
                            f"and {plan.block_q}")  # fmt: skip
        return (("default", "native"),)
    native = implementation is None and takes and jax.device_count() == 1 and _library.available()
    pallas = implementation is None and _pallas.generation() and _pallas.takes(plan)
    pallas = pallas and _pallas.fits(plan.length, q.dtype.itemsize)
    triton = implementation is None and _cuda.here() and _triton.takes(plan)
    # Not for float32, which the kernels multiply number by number: XLA may not be slower there.
    triton = triton and _triton.fits(q.shape[-1], q.dtype) and q.dtype.itemsize == 2
    best = ("cpu", "native" if native else "one by one"), ("default", "lockstep")
    return (*best, *[("tpu", "pallas")] * bool(pallas), *[("cuda", "triton")] * bool(triton))


def _check_name(implementation):
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"attention implementation {implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")


def _check(q, k, v, plan):
    if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(f"attention shapes do not fit: q {q.shape}, k {k.shape}, v {v.shape}")
    rows, *heads, length = plan.unseen.shape
    if (rows, length) != q.shape[:2] or heads not in ([], [1], [k.shape[2]]):
        raise ValueError(f"lifetimes of shape {plan.unseen.shape} do not fit q {q.shape}, k {k.shape}")
