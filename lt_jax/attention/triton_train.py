"""Flash attention over a `BlockPlan` as Triton kernels for NVIDIA GPUs, forward and backward.

The algorithm is `blocked.py`'s, a program for each tile of queries of a head. Differences from it, and from
FlexAttention (torch), which follows lists of blocks too:

- Keys are gathered by the plan's order inside the kernels, and dk and dv written back by it: no sorted copies.
- Backward is two kernels: dq by the lists of the query blocks, dk and dv by the same lists turned over, of the query
  blocks that see a key block (`BlockPlan.queries`). All query heads of a kv head are summed in registers; nothing is
  added up in memory, so that results do not depend on the order in which programs run.
- Tiles of work are started from the longest list on, as far as that is known beforehand.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from lt_jax import cuda
from lt_jax.attention.blocks import BlockPlan

LOG2_E = math.log2(math.e)
KERNELS = "lt_jax.attention.triton_train_kernels"

# Sides of the blocks that plans are made for, in queries and keys. Shares of all pairs that are visited, and that are
# full, in %, by the sides: thoughts of 40 tokens, causal, and deaths as under R-KV (512 + 128, scores at random).
#
#                      128 x 128     128 x 64     128 x 32      64 x 64      64 x 32     256 x 64
#     thoughts  4,096  21.2 / 9.2  18.0 / 10.1  15.4 / 10.5  16.6 / 10.2  14.1 / 10.6  20.6 / 9.7
#     thoughts 16,384  13.0 / 9.8  12.1 / 10.0  11.6 / 10.1  11.7 / 10.1  11.3 / 10.2  12.8 / 9.9
#     causal    4,096   51.6 / 48    51.6 / 48    51.6 / 48    50.8 / 49    50.8 / 49    53.1 / 47
#     R-KV      4,096  30.0 / 5.0   22.7 / 6.6   19.8 / 8.0   22.2 / 7.1   19.1 / 8.6  25.4 / 5.8
#     R-KV     16,384  12.0 / 1.2    8.7 / 1.5    6.8 / 1.8    8.6 / 1.6    6.6 / 1.9   9.4 / 1.4
#
# Halving the keys saves 7 to 28 % of the work, and costs nothing: 64 keys are a tile of all three kernels. Halving the
# queries saves 8 % at most, and loads keys twice as often.
SIDES = 128, 64
LEAST = 16  # rows and columns of the smallest matrix product
MOST = 256  # head size that registers have room for
WIDE = 162 << 10  # bytes of shared memory for heads above 128

# kernel -> (queries, keys, warps, stages) of a tile, for 16-bit types and head sizes up to 64, up to 128 and above.
# Compiled for an H100 (tests/test_gpu_attention.py), registers of a thread and kB of shared memory; none spills:
#
#                              64         128         256
#     forward            139,  49    168,  97    244, 161
#     backward_queries   158,  65    208, 129    255, 128
#     backward_keys      186,  66    255,  97    173, 101
#
# backward_keys of head size 128 spills at 128 x 64; at 64 x 64 two programs share a multiprocessor.
TILES = {
    "forward": ((128, 64, 8, 3), (128, 64, 8, 3), (64, 64, 4, 2)),
    "backward_queries": ((128, 64, 8, 3), (128, 64, 8, 3), (64, 32, 4, 2)),
    "backward_keys": ((64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 8, 2)),
}
EXACT = (16, 32, 8, 2)  # for float32, which is multiplied number by number: larger tiles spill registers


def takes(plan: BlockPlan) -> bool:
    """Whether the kernels can follow a plan: it has the lists of key blocks, sides are multiples of 16."""
    return plan.queries is not None and plan.block_q % LEAST == 0 and plan.block_k % LEAST == 0


def fits(depth: int, dtype) -> bool:
    """Whether there are kernels for a head size and type of numbers. (Some cards have too little shared memory for the
    largest heads.)"""
    return depth <= (MOST if cuda.room() >= WIDE else 128) and dtype in (jnp.float32, jnp.bfloat16, jnp.float16)


def forward(q, k, v, plan: BlockPlan, scale: float):
    """See `flash.FORMS`; lse is to the base 2."""
    B, S, H, _ = q.shape
    out = dict(out=_like(q), lse=jax.ShapeDtypeStruct((B, H, S), jnp.float32))
    return _call("forward", dict(q=q, k=k, v=v), plan, out, q, k, dict(factor=scale * LOG2_E))


def backward(q, k, v, plan: BlockPlan, out, lse, dout, scale: float):
    """See `flash.FORMS`."""
    scales = dict(factor=scale * LOG2_E, scale=float(scale))
    given = dict(q=q, k=k, v=v, out=out, dout=dout, lse=lse)
    dq, delta = _call("backward_queries", given, plan, dict(dq=_like(q), delta=_like(lse)), q, k, scales)
    given = dict(q=q, k=k, v=v, dout=dout, lse=lse, delta=delta)
    return dq, *_call("backward_keys", given, plan, dict(dk=_like(k), dv=_like(v)), q, k, scales)


def tile(kernel: str, dtype, depth: int, plan: BlockPlan) -> tuple[int, int, int, int]:
    """Queries, keys, warps and stages of a kernel's tiles, which are never larger than the plan's blocks."""
    queries, keys, warps, stages = EXACT if dtype == jnp.float32 else TILES[kernel][(depth > 64) + (depth > 128)]
    return math.gcd(queries, plan.block_q), math.gcd(keys, plan.block_k), warps, stages


def _call(kernel, given, plan, outputs, q, k, scales):
    B, S, H, D = q.shape
    groups = k.shape[2]
    queries, keys, warps, stages = tile(kernel, q.dtype, D, plan)
    lists, nq, nk = plan.blocks.shape
    names = ("queries", "q_full", "q_active") if kernel == "backward_keys" else ("blocks", "n_full", "n_active")
    names = ("order", "birth", "death", "key_gist", "since", "query_gist", *names)
    of_keys = kernel == "backward_keys"
    return cuda.call(
        f"{KERNELS}:{kernel}",
        given | {name: getattr(plan, name) for name in names},
        outputs,
        grid=(groups, B, nk * plan.block_k // keys) if of_keys else (H, B, nq * plan.block_q // queries),
        scalars=dict(**scales, S=S, NQ=nq, NK=nk),
        constants=dict(
            H=H, HKV=groups, PER_HEAD=lists != B, RULE=plan.gist_rule, D=D, WIDTH=max(LEAST, 1 << (D - 1).bit_length()),
            BLOCK_Q=plan.block_q, BLOCK_K=plan.block_k, QUERIES=queries, KEYS=keys,
            PRECISION="ieee" if q.dtype == jnp.float32 else "tf32"),
        warps=warps,
        stages=stages,
    )  # fmt: skip


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
