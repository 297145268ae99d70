"""What torch's sides share: the device, the clock's waiting, the card's limits."""

from __future__ import annotations

import torch

from benchmarks.gpu_sides.side import Task, milliseconds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def wait(_=None) -> None:
    """Until the device is idle."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def begin(task: Task) -> None:
    """Notes the card's limits by torch, as `jax_side.begin` does; refuses to measure a CPU in place of a card."""
    if DEVICE == "cpu" and not task.rehearse:
        raise SystemExit("torch sees no CUDA device")
    torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    print(f"torch {torch.__version__} on {name}", flush=True)
    if task.limits:
        task.attempt("limits", "torch", lambda: limits(task) | dict(card=name))


def limits(task: Task) -> dict:
    """FLOP/s of a large bfloat16 product, and bytes/s of a copy on the device, read and written ones together."""
    side, count = task.sizes.product, task.sizes.copied
    a = torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16)
    x = torch.zeros(count, device=DEVICE, dtype=torch.uint8)
    y = torch.empty_like(x)
    return dict(
        matmul=2 * side**3 / milliseconds(lambda: a @ a, wait) * 1e3,
        copy=2 * count / milliseconds(lambda: y.copy_(x), wait) * 1e3,
    )
