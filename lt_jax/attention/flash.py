"""Flash attention over a `BlockPlan` with its gradient, by the code that suits the platform a program is lowered for.

The choice falls at lowering and not at tracing, so that a step which a process on a CPU lowers for an accelerator is
the accelerator's. It falls inside the two rules of one `custom_vjp`: a choice around the whole would make what every
form saves for its backward pass a part of every program. So all forms save the same: out and lse, the logarithm of the
sum of each softmax, [B, H, S] float32 to the form's own base.
"""

from __future__ import annotations

import functools

import jax

from lt_jax.attention import blocked, native, pallas_train, triton_train
from lt_jax.attention.blocks import BlockPlan
from lt_jax.attention.dense import clear


def _both(module, **options):
    return tuple(functools.partial(f, **options) for f in (module.forward, module.backward))


# name -> (forward(q, k, v, plan, scale) -> out, lse; backward(q, k, v, plan, out, lse, dout, scale) -> dq, dk, dv)
FORMS = {
    "native": _both(native),
    "one by one": _both(blocked, lockstep=False),
    "lockstep": _both(blocked, lockstep=True),
    "pallas": _both(pallas_train),
    "pallas interpreted": _both(pallas_train, interpret=True),
    "triton": _both(triton_train),
}


def flash(q, k, v, plan: BlockPlan, scale: float, forms: tuple[tuple[str, str], ...]) -> jax.Array:
    """softmax(scale q k^T over the visible keys) v under `plan`; a query that sees no key gets zeros.

    Args:
        q: [B, S, H, D].
        k, v: [B, S, Hkv, D]; query head h reads kv head h // (H / Hkv).
        plan: made by `blocks.build` from lifetimes of these B rows.
        scale: of the scores.
        forms: (platform, name of `FORMS`) pairs, which code a program runs that is lowered for a platform; platform
            "default" is all that are not named.

    Returns:
        [B, S, H, D] in q's dtype; the softmax is in float32.
    """
    k, v = clear(k, plan.unseen), clear(v, plan.unseen)
    return _flash(q, k, v, plan, scale, forms)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _flash(q, k, v, plan, scale, forms):
    return _forward(q, k, v, plan, scale, forms)[0]


def _forward(q, k, v, plan, scale, forms):
    out, lse = _by_platform(0, forms, scale, q, k, v, plan)
    return out, (q, k, v, plan, out, lse)


def _backward(scale, forms, saved, dout):
    return *_by_platform(1, forms, scale, *saved, dout.astype(saved[0].dtype)), None


_flash.defvjp(_forward, _backward)


def _by_platform(direction, forms, scale, *operands):
    code = {platform: functools.partial(FORMS[name][direction], scale=scale) for platform, name in forms}
    if len({name for _, name in forms}) == 1:
        return code["default"](*operands)
    return jax.lax.platform_dependent(*operands, **code)
