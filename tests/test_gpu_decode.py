"""The cache kernels for NVIDIA GPUs as compiled for an H100, without one (`gpu_backend`: see `make test-gpu`)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lt_jax.attention import triton_decode
from lt_jax.cuda import kernel

ROOM = 227 << 10  # bytes of shared memory that a program can have
SIZES = {"1.5B": (12, 2, 128), "7B": (28, 4, 128), "heads of 64": (14, 2, 64), "heads of 256": (8, 4, 256)}


def lowered(model: str, rows: int, tokens: int, capacity: int, received: bool = False):
    """Attention over a bfloat16 cache, lowered for a GPU."""
    heads, kv_heads, size = SIZES[model]
    shape = lambda *sides, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(sides, dtype)
    angles = shape(rows, tokens, 1, size // 2, dtype=jnp.float32)
    count, cached = shape(rows, dtype=jnp.int32), shape(2, rows, kv_heads, capacity, size)
    run = lambda fresh, keys, values, start, mask, bound, *angles: triton_decode.attend(
        fresh, keys, values, 1, None, start, mask, bound, angles=angles, received=received
    )
    fresh, mask = shape(rows, tokens, heads + 2 * kv_heads, size), shape(rows, 1, tokens, capacity, dtype=bool)
    return jax.jit(run).trace(fresh, cached, cached, count, mask, count, angles, angles).lower(
        lowering_platforms=("cuda",)
    )


@pytest.fixture
def made(monkeypatch):
    """(name, what Triton made of it) of each kernel, in the order of the calls."""
    out, compiled = [], kernel.compiled

    def remember(function, *how):
        out.append((function.__name__, compiled(function, *how)))
        return out[-1][1]

    monkeypatch.setattr(kernel, "compiled", remember)
    return out


def spills(ptx: str, folder: Path) -> int:
    """Bytes that a kernel spills, by ptxas, which comes with Triton."""
    import triton

    (folder / "kernel.ptx").write_text(ptx)
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas-blackwell"
    command = [ptxas, "-v", "--gpu-name=sm_90a", folder / "kernel.ptx", "-o", folder / "kernel.o"]
    found = re.search(r"(\d+) bytes spill stores", subprocess.run(command, capture_output=True, text=True).stderr)
    return int(found[1])


@pytest.mark.gpu_backend
@pytest.mark.parametrize("model, rows, tokens, capacity", [
    ("1.5B", 1, 1, 640), ("1.5B", 256, 1, 640), ("1.5B", 8, 64, 8192), ("7B", 64, 1, 8192), ("7B", 1, 512, 8192),
    ("heads of 64", 8, 1, 640), ("heads of 256", 8, 1, 640),
])  # fmt: skip
def test_no_kernel_spills(made, tmp_path, model, rows, tokens, capacity):
    received = rows == 64
    lowered(model, rows, tokens, capacity, received)
    assert [name for name, _ in made] == ["write", "attend", *(["received"] if received else [])]
    for name, found in made:
        assert spills(found.asm["ptx"], tmp_path) == 0, name
        assert found.metadata.shared <= ROOM, name


@pytest.mark.gpu_backend
def test_neither_layers_nor_capacities_make_new_kernels(made):
    lowered("1.5B", 8, 1, 640)
    lowered("1.5B", 8, 1, 8192)
    assert len(made) == 4 and len({id(found) for _, found in made}) == 2
