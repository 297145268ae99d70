"""The section `numerics`: on this device against dense attention in float32, and log-probs sampled against scored."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.deaths import NEVER, thoughts
from benchmarks.gpu_sides.engines import Engines, call
from benchmarks.gpu_sides.jax_side import ATTENTION, ENGINE, begin
from benchmarks.gpu_sides.side import Task, given
from lt_jax.attention import attention, planned
from lt_jax.decode import Request
from lt_jax.decode.sample import Sampling
from lt_jax.lifetimes import Lifetimes
from lt_jax.training.score import score

# Of the shared test suite in bfloat16 (tests/test_attention.py::test_bfloat16): absolute, and of the result itself.
FORWARD, GRADIENT, ROUNDING = 6e-3, 2e-2, 2.0**-8
ROWS = 1
LENGTH = 512


def layouts(task: Task, length: int) -> list[tuple]:
    """(name, deaths): thoughts, causal, and deaths drawn for each kv head."""
    birth, random = np.arange(length), np.random.default_rng(0)
    shape = (ROWS, task.sizes.kv_heads, length)
    drawn = np.where(random.random(shape) < 0.3, NEVER, birth + random.integers(1, 120, shape)).astype(np.int32)
    return [("thoughts of 40", thoughts(ROWS, length)), ("causal", np.full((ROWS, length), NEVER, np.int32)),
            ("deaths for each head", drawn)]  # fmt: skip


@functools.partial(jax.jit, static_argnames="form")
def results(form: str, death, q, k, v, w):
    """The attention's result and its gradients. One program for all layouts that share the shape of `death`."""
    plan = planned(Lifetimes(death), form)
    with jax.default_matmul_precision("highest"):
        out, back = jax.vjp(lambda q, k, v: attention(q, k, v, plan), q, k, v)
        return out, *back(w)


def against_dense(task: Task, death, length: int) -> dict:
    """The greatest error as a share of what the suite allows, forward and of the gradients."""
    size, keys = task.sizes, jax.random.split(jax.random.key(0), 4)
    heads = (size.heads, size.kv_heads, size.kv_heads, size.heads)
    of = lambda key, n: jax.random.normal(key, (ROWS, length, n, size.head_dim), jnp.bfloat16)
    operands = list(map(of, keys, heads))
    death = jnp.asarray(death)
    exact = results("dense", death, *[x.astype(jnp.float32) for x in operands])
    found = results(ATTENTION, death, *operands)
    shares = []
    for bound, a, b in zip((FORWARD, *[GRADIENT] * 3), found, exact, strict=True):
        rounding = ROUNDING * (1 if bound == FORWARD else 2)
        shares.append(float(jnp.max(jnp.abs(a.astype(jnp.float32) - b) / (bound + rounding * jnp.abs(b)))))
    return {"forward, of the bound": shares[0], "gradients, of the bound": max(shares[1:])}


def sampled_and_scored(task: Task, engines: Engines, how: str) -> dict:
    """The greatest difference of a sampled token's log-prob from what the training forward says of it."""
    size = task.sizes
    new = size.new if how == "LightThinker" else size.budget + 2 * size.buffer
    more = dict(horizon=size.prompt + new) if how == "R-KV" else {}
    engine = engines.make(how, 1, 2 * (size.prompt + new), sampling=Sampling(temperature=1.0), **more)
    (done,) = call(engine, [Request(engines.prompts(1, size.prompt)[0], new)])
    how = dict(temperature=1.0, never=engine.rules.never, attention=ATTENTION)
    run = jax.jit(lambda params, tokens, life: score(params, engines.model, tokens, life, **how)[0])
    scored = run(engines.params, jnp.asarray(done.row)[None], done.lifetimes())[0]
    differ = np.abs(np.asarray(scored)[done.prompt_length :] - done.logp)[~done.forced]  # forced ones were not drawn
    return {"most": float(differ.max()), "mean": float(differ.mean()), "tokens": len(differ)}


def main() -> None:
    task = given()
    begin(task)
    length = 320 if task.rehearse else LENGTH  # thoughts begin at 128
    for name, death in layouts(task, length):
        run = lambda death=death: against_dense(task, death, length)
        task.attempt(f"{name}, {ROWS} x {length:,}, bfloat16", ATTENTION, run)
    engines = Engines(task, layers=task.sizes.layers)
    for how in ("LightThinker", "R-KV"):
        measure = lambda how=how: sampled_and_scored(task, engines, how)
        task.attempt(f"log-probs sampled and scored, {how}", f"{ENGINE}, {ATTENTION}", measure)


if __name__ == "__main__":
    main()
