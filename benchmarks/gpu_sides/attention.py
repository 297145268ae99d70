"""Our side of the attention section: thoughts of 40, recorded R-KV deaths, causal; forward, and forward with backward.

The plan of who sees whom is made once a step for all layers, and so outside of what is timed; its own time is noted.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.deaths import NEVER, thoughts
from benchmarks.gpu_sides.jax_side import ATTENTION, begin
from benchmarks.gpu_sides.side import Task, given, milliseconds
from lt_jax.attention import attention, planned
from lt_jax.lifetimes import Lifetimes

PATIENCE = 20  # seconds to wait for the recorded deaths


def arrays(task: Task, rows: int, length: int) -> tuple:
    """q, k, v and what the result is multiplied with, bfloat16."""
    size, keys = task.sizes, jax.random.split(jax.random.key(0), 4)
    heads = (size.heads, size.kv_heads, size.kv_heads, size.heads)
    of = lambda key, n: jax.random.normal(key, (rows, length, n, size.head_dim), jnp.bfloat16)
    return tuple(map(of, keys, heads))


def timed(call, q, k, v, w, *plan) -> dict:
    """Milliseconds of call(q, k, v, *plan), and of its three gradients together with it."""
    loss = lambda q, k, v, w, *plan: jnp.vdot(call(q, k, v, *plan).astype(jnp.float32), w.astype(jnp.float32))
    forward, both = jax.jit(call), jax.jit(jax.grad(loss, (0, 1, 2)))
    wait = jax.block_until_ready
    return {"forward ms": milliseconds(lambda: forward(q, k, v, *plan), wait),
            "both ms": milliseconds(lambda: both(q, k, v, w, *plan), wait)}  # fmt: skip


def ours(form: str, death, operands) -> dict:
    """Attention under these deaths in the named form, and milliseconds of its plan."""
    plan_of = jax.jit(functools.partial(planned, implementation=form))
    plan = plan_of(Lifetimes(death))
    planning = milliseconds(lambda: plan_of(Lifetimes(death)), jax.block_until_ready, rounds=2)
    return timed(lambda q, k, v, plan: attention(q, k, v, plan), *operands, plan) | {"plan ms": planning}


def cudnn(task: Task, operands) -> dict:
    """Causal attention of cuDNN, by `jax.nn`."""
    how = dict(is_causal=True, implementation="xla" if task.rehearse else "cudnn")
    return timed(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, **how), *operands)


def recorded(task: Task, rows: int, length: int):
    """[rows, Hkv, S]: the same record for every row. Raises TimeoutError if it is not there in time."""
    path, begun = Path(task.scratch) / "recorded.npy", time.perf_counter()
    while not path.exists():
        if time.perf_counter() - begun > PATIENCE:
            raise TimeoutError(f"the record of a row under R-KV was not there within {PATIENCE} s")
        time.sleep(0.2)
    return jnp.asarray(np.tile(np.load(path)[:, :length], (rows, 1, 1)))


def main() -> None:
    task, form = given(), ATTENTION
    begin(task)
    works = [(rows, length, arrays(task, rows, length)) for rows, length in task.sizes.attention]

    def measure(layout: str, form: str, call, *arguments) -> None:
        rows, length, operands = arguments
        task.attempt(f"{layout}, {rows} x {length:,}", form, lambda: call(rows, length, operands))

    die = lambda form: lambda rows, length, operands: ours(form, jnp.asarray(thoughts(rows, length)), operands)
    stay = lambda rows, length, operands: ours(form, jnp.full((rows, length), NEVER, jnp.int32), operands)
    record = lambda rows, length, operands: ours(form, recorded(task, rows, length), operands)
    peer = lambda rows, length, operands: cudnn(task, operands)
    for work in works:
        measure("thoughts of 40", form, die(form), *work)
    for work in works:
        measure("causal", form, stay, *work)
        measure("causal", "cuDNN by jax.nn", peer, *work)
    for work in works:
        measure("R-KV record", form, record, *work)
    if form != "blocked":  # what ran before there were kernels; the longer row would take a second for each call
        measure("thoughts of 40", "blocked", die("blocked"), *works[0])


if __name__ == "__main__":
    main()
