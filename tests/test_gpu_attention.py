"""The kernels for training compiled for an H100, without one (`gpu_backend`, see `make test-gpu`)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from lt_jax import cuda
from lt_jax.attention import attention, planned
from lt_jax.cuda import kernel, topology
from lt_jax.cuda.resources import usage
from lt_jax.lifetimes import Lifetimes
from tests.test_gpu import compiler  # noqa: F401 - a fixture

SHARED = 227 * 1024  # bytes that a program may take on an H100
SIZES = {"28/4 of 128": (28, 4, 128), "14/2 of 64": (14, 2, 64)}


def shapes(heads, kv_heads, depth, rows=1, length=1024, dtype="bfloat16", per_head=False):
    """q, k, v, death and since on an H100."""
    place = topology.h100()
    shape = lambda *size, dtype=dtype: jax.ShapeDtypeStruct((rows, *size), dtype, sharding=place)
    line = functools.partial(shape, dtype=jnp.int32)
    death = line(kv_heads, length) if per_head else line(length)
    keys = shape(length, kv_heads, depth)
    return shape(length, heads, depth), keys, keys, death, line(length)


def gradients(q, k, v, death, since, remat=False):
    plan = planned(Lifetimes(death, since), "triton")
    run = lambda q, k, v: attention(q, k, v, plan, "triton").astype(jnp.float32).sum()
    return jax.grad(jax.checkpoint(run) if remat else run, (0, 1, 2))(q, k, v)


def kernels(monkeypatch, *given):
    """What Triton made of each kernel while a gradient was traced, by its name."""
    made = {}

    def compiled(function, *options):
        made[function.__name__] = keep(function, *options)
        return made[function.__name__]

    keep = kernel.compiled
    monkeypatch.setattr(kernel, "compiled", compiled)
    jax.jit(lambda *x: gradients(*x)).trace(*given)
    return made


@pytest.mark.slow
@pytest.mark.gpu_backend
@pytest.mark.parametrize("size", SIZES)
def test_tuned_kernels_fit_the_registers_and_use_tensor_cores(size, monkeypatch):
    made = kernels(monkeypatch, *shapes(*SIZES[size]))
    assert set(made) == {"forward", "backward_queries", "backward_keys"}
    for name, one in made.items():
        assert usage(one.asm["ptx"]).spilled == 0, name
        assert one.metadata.shared <= SHARED and "wgmma" in one.asm["ptx"], name


@pytest.mark.slow
@pytest.mark.gpu_backend
@pytest.mark.parametrize("dtype, depth", [("bfloat16", 80), ("bfloat16", 256), ("float32", 128)])
def test_other_sizes_hardly_spill(dtype, depth, monkeypatch):
    for name, one in kernels(monkeypatch, *shapes(8, 2, depth, dtype=dtype)).items():
        spilled = usage(one.asm["ptx"]).spilled
        assert spilled <= (64 if dtype == "float32" else 0) and one.metadata.shared <= SHARED, (name, spilled)


@pytest.mark.slow
@pytest.mark.gpu_backend
@pytest.mark.parametrize("card", [80, 89, 100, 120])
def test_other_cards_have_room(card, monkeypatch):
    """A100, L4 and L40S, B200, RTX 50: a program that takes too much shared memory is refused in one line."""
    monkeypatch.setattr(kernel, "capability", lambda: card)
    assert len(kernels(monkeypatch, *shapes(*SIZES["28/4 of 128"]))) == 3


@pytest.mark.slow
@pytest.mark.gpu_backend
@pytest.mark.parametrize("per_head", [False, True], ids=["rows", "heads"])
def test_memory_of_a_recomputed_layer(per_head):
    """Neither scores nor sorted keys, and no loop. The kernels run once each: nobody asked for the first output."""
    given = shapes(14, 2, 64, 2, 4096, per_head=per_head)
    run = jax.jit(functools.partial(gradients, remat=True))
    compiled = run.lower(*given).compile()
    text = compiled.as_text()
    assert text.count('custom_call_target="triton_kernel_call_ffi"') == 3 and " while(" not in text
    q, k, *_ = (x.size * x.dtype.itemsize for x in given)
    lists = 2 * 2 * (4096 // 128) * (4096 // 64) * 4 * 8  # a few arrays of pairs of blocks
    # out and its gradient there are, but for these not even keys in another order.
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * q + k + lists


@pytest.mark.gpu_backend
def test_the_choice_falls_by_platform(monkeypatch):
    """By name for any process; by itself in a process on an NVIDIA GPU, whose programs for a CPU are a CPU's."""
    def program(implementation, platform="cuda"):
        run = jax.jit(lambda q, k, v, death, since: attention(q, k, v, Lifetimes(death, since), implementation))
        given = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes(2, 1, 64)]
        return run.trace(*given).lower(lowering_platforms=(platform,)).as_text()

    call = "triton_kernel_call_ffi"
    assert call in program("triton") and call not in program(None)
    monkeypatch.setattr(cuda, "here", lambda: True)
    assert call in program(None) and call not in program(None, "cpu")
