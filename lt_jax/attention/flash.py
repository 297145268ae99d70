"""Flash attention over a `BlockPlan` with its gradient, by the code that suits the platform a program is lowered for.

The choice falls at lowering and not at tracing, so that a step which a process on a CPU lowers for an accelerator is
the accelerator's. It falls inside the two rules of one `custom_vjp`: a choice around the whole would make what every
form saves for its backward pass a part of every program. So all forms save the same: out and lse, the logarithm of the
sum of each softmax, [B, H, S] float32 to the form's own base.
"""

from __future__ import annotations

import functools

import jax

from lt_jax.attention import blocked, native
from lt_jax.attention.blocks import BlockPlan
from lt_jax.attention.dense import clear

# name -> (forward(q, k, v, plan, scale) -> out, lse; backward(q, k, v, plan, out, lse, dout, scale) -> dq, dk, dv)
FORMS = {
    "native": (native.forward, native.backward),
    "one by one": tuple(functools.partial(f, lockstep=False) for f in (blocked.forward, blocked.backward)),
    "lockstep": tuple(functools.partial(f, lockstep=True) for f in (blocked.forward, blocked.backward)),
}


def flash(q, k, v, plan: BlockPlan, scale: float, cpu: str, other: str) -> jax.Array:
    """softmax(scale q k^T over the visible keys) v under `plan`; a query that sees no key gets zeros.

    Args:
        q: [B, S, H, D].
        k, v: [B, S, Hkv, D]; query head h reads kv head h // (H / Hkv).
        plan: made by `blocks.build` from lifetimes of these B rows.
        scale: of the scores.
        cpu, other: names of `FORMS`, for programs that run on a CPU and on any other platform.

    Returns:
        [B, S, H, D] in q's dtype; the softmax is in float32.
    """
    k, v = clear(k, plan.unseen), clear(v, plan.unseen)
    return _flash(q, k, v, plan, scale, cpu, other)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _flash(q, k, v, plan, scale, cpu, other):
    return _forward(q, k, v, plan, scale, cpu, other)[0]


def _forward(q, k, v, plan, scale, cpu, other):
    out, lse = _by_platform(0, cpu, other, scale, q, k, v, plan)
    return out, (q, k, v, plan, out, lse)


def _backward(scale, cpu, other, saved, dout):
    return *_by_platform(1, cpu, other, scale, *saved, dout.astype(saved[0].dtype)), None


_flash.defvjp(_forward, _backward)


def _by_platform(direction, cpu, other, scale, *operands):
    here, there = (functools.partial(FORMS[name][direction], scale=scale) for name in (cpu, other))
    return here(*operands) if cpu == other else jax.lax.platform_dependent(*operands, cpu=here, default=there)
