"""Our side of the section `sft`: whole training steps, forward, loss, backward, clipping and AdamW in float32."""

from __future__ import annotations

import time

import jax
import numpy as np

from benchmarks.deaths import NEVER, thoughts
from benchmarks.gpu_sides.jax_side import ATTENTION, begin, model, weights
from benchmarks.gpu_sides.side import Task, given, milliseconds
from lt_jax.training import mesh as meshes
from lt_jax.training import optimizer, step
from lt_jax.training import state as states
from lt_jax.training.config import OptimizerConfig, TrainConfig


def batch(task: Task, rows: int, length: int, causal: bool) -> dict:
    """Rows of random tokens, all of them trained."""
    draw = np.random.default_rng(0).integers(0, task.sizes.model.vocab, (rows, length + 1)).astype(np.int32)
    none = np.full((rows, length), NEVER, np.int32)
    return dict(
        tokens=draw[:, :-1], targets=draw[:, 1:], weights=np.ones((rows, length), np.float32),
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)), gist=np.full((rows, length), -1, np.int32),
        death=none if causal else thoughts(rows, length), since=np.zeros((rows, length), np.int32),
    )  # fmt: skip


def measure(task: Task, rows: int, length: int, remat: str, causal: bool) -> dict:
    """Tokens/s of a step, seconds to compile it, its temporary memory, and the loss as it falls."""
    config = model(task.sizes.model)
    optim = OptimizerConfig(learning_rate=1e-5, warmup=0.0)
    settings = TrainConfig(steps=10**6, optim=optim, remat=remat, params_dtype="bfloat16", attention=ATTENTION)
    mesh, tx = meshes.make(settings.mesh), optimizer.make(optim, settings.steps)
    state, frozen = states.create(weights(config, "float32"), config, tx, jax.random.key(0), mesh, keep=False)
    given = meshes.place_batch(mesh, batch(task, rows, length, causal))
    start = time.perf_counter()
    compiled = step.make_step(config, settings, tx, mesh, state).lower(state, frozen, given).compile()
    first, held, losses = time.perf_counter() - start, [state], []
    del state

    def run():
        held[0], metrics = compiled(held[0], frozen, given)
        losses.append(metrics["loss"])
        return metrics["loss"]

    each = milliseconds(run, jax.block_until_ready, calls=1, rounds=4)
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return {"tokens/s": rows * length / each * 1e3, "first call s": first, "temporary GiB": temporary / 2**30,
            "first loss": float(losses[0]), "last loss": float(losses[-1])}  # fmt: skip


def main() -> None:
    task = given()
    begin(task)
    works = [(*work, False) for work in task.sizes.train] + [(*task.sizes.train[0], True)]
    for rows, length, remat, causal in works:
        layout = "causal" if causal else "thoughts of 40"
        run = lambda work=(rows, length, remat, causal): measure(task, *work)
        task.attempt(f"{rows} x {length:,}, {layout}", f"{ATTENTION}, remat {remat}", run)


if __name__ == "__main__":
    main()
