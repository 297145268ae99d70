"""The section `tuning`: other tiles, warps and stages for our kernels, each beside the one that is in the library."""

from __future__ import annotations

import dataclasses
from unittest import mock

from benchmarks.deaths import thoughts
from benchmarks.gpu_sides.attention import arrays, ours
from benchmarks.gpu_sides.decode import one
from benchmarks.gpu_sides.engines import Engines
from benchmarks.gpu_sides.jax_side import ATTENTION, ENGINE, begin
from benchmarks.gpu_sides.side import Task, given
from lt_jax.attention import triton_decode, triton_train

# kernel -> (queries, keys, warps, stages). What does not compile, or not without spills, is in `make test-gpu`.
TILES = {
    "forward": ((128, 64, 8, 5), (64, 64, 4, 3), (64, 64, 4, 5), (128, 64, 8, 2)),
    "backward_queries": ((128, 64, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2)),
    "backward_keys": ((64, 64, 8, 2), (64, 64, 4, 2), (128, 64, 8, 3)),
}
DECODING = (dict(stages=2), dict(stages=3), dict(slots=32), dict(slots=128, stages=3), dict(warps=2), dict(warps=8))


def training(task: Task) -> None:
    rows, length = task.sizes.attention[0]
    operands, death = arrays(task, rows, length), thoughts(rows, length)
    measure = lambda: ours(ATTENTION, death, operands)
    task.attempt(f"thoughts of 40, {rows} x {length:,}", "as in the library", measure)
    for kernel, tiles in TILES.items():
        for tile in tiles[:1] if task.rehearse else tiles:
            with mock.patch.dict(triton_train.TILES, {kernel: (tile,) * 3}):
                task.attempt(f"thoughts of 40, {rows} x {length:,}", f"{kernel} {tile}", measure)


def decoding(task: Task) -> None:
    engines, form_of = Engines(task), triton_decode.form_of
    for rows in task.sizes.rows[:1] if task.rehearse else (1, 64):
        for change in ({}, *DECODING[: 1 if task.rehearse else None]):
            changed = lambda *a, change=change, **k: dataclasses.replace(form_of(*a, **k), **change)
            said = " ".join(f"{name} {value}" for name, value in change.items()) or "as in the library"
            with mock.patch.object(triton_decode, "form_of", changed):
                task.attempt(f"{rows} rows", said, lambda rows=rows: one(engines, rows, ENGINE))


def main() -> None:
    task = given()
    begin(task)
    training(task)
    decoding(task)


if __name__ == "__main__":
    main()
