"""The cache kernels for NVIDIA GPUs as compiled for an H100, without one (`gpu_backend`: see `make test-gpu`)."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

from lt_jax import cuda
from lt_jax.attention import triton_decode
from lt_jax.cuda import kernel, topology
from lt_jax.cuda.resources import usage
from lt_jax.decode import DecodeConfig
from lt_jax.decode.ahead import lower
from lt_jax.layout.scheme import Scheme
from tests.test_decode import MODEL, SPECIAL

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


@pytest.mark.gpu_backend
@pytest.mark.parametrize("model, rows, tokens, capacity", [
    ("1.5B", 1, 1, 640), ("1.5B", 256, 1, 640), ("1.5B", 8, 64, 8192), ("7B", 64, 1, 8192), ("7B", 1, 512, 8192),
    ("heads of 64", 8, 1, 640), ("heads of 256", 8, 1, 640), ("heads of 256", 1, 64, 640),
])  # fmt: skip
def test_no_kernel_spills(made, model, rows, tokens, capacity):
    received = rows == 64
    lowered(model, rows, tokens, capacity, received)
    assert [name for name, _ in made] == ["write", "attend", *(["received"] if received else [])]
    for name, found in made:
        assert usage(found.asm["ptx"]).spilled == 0, name
        assert found.metadata.shared <= ROOM, name


@pytest.mark.gpu_backend
@pytest.mark.parametrize("card", [80, 89, 100, 120])
def test_other_cards_have_room(card, monkeypatch):
    """As in test_gpu_attention.py."""
    monkeypatch.setattr(kernel, "capability", lambda: card)
    for tokens in (1, 64):
        lowered("7B", 8, tokens, 640)


@pytest.mark.gpu_backend
def test_neither_layers_nor_capacities_make_new_kernels(made):
    lowered("1.5B", 8, 1, 640)
    lowered("1.5B", 8, 1, 8192)
    assert len(made) == 4 and len({id(found) for _, found in made}) == 2


@pytest.mark.gpu_backend
def test_in_a_process_on_a_gpu_the_kernels_are_the_choice(monkeypatch):
    """By the platform that a program is lowered for; the block of an engine turns and writes by the same kernels."""
    monkeypatch.setattr(cuda, "here", lambda: True)
    model = MODEL.replace(dtype="bfloat16")

    def calls(platform, implementation=None):
        config = DecodeConfig(1, 60, 4, implementation=implementation)
        block, _ = lower(model, Scheme(method="vanilla"), SPECIAL, config, platforms=(platform,))
        return block.as_text().count("triton_kernel_call_ffi")

    assert calls("cuda") == 2 * model.layers == calls("cuda", "triton")
    assert calls("cpu") == 0 == calls("cuda", "plain")


@pytest.mark.slow
@pytest.mark.gpu_backend
def test_one_row_makes_no_sums_through_memory(tmp_path, monkeypatch):
    """At a size where XLA would write the weights times the row into memory, if there was one row."""
    monkeypatch.setenv("PATH", topology.tools(tmp_path)["PATH"])
    model = MODEL.replace(hidden=1536, heads=12, head_dim=128, layers=1, dtype="bfloat16")
    config = DecodeConfig(1, 640, 4, implementation="triton")
    block, _ = lower(model, Scheme(method="vanilla"), SPECIAL, config, topology.h100())
    text = block.compile().as_text()
    assert "triton_kernel_call_ffi" in text and not re.search(r" = bf16\[1536,(2048|1536)\]\S* fusion\(", text)
