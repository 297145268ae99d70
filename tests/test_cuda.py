"""How Triton kernels are called: the interpreter, what is refused, and who is told what."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import cuda
from lt_jax.attention import triton_decode, triton_train
from lt_jax.cuda import launches
from lt_jax.errors import UserError

KERNEL = "tests.triton_kernels:scaled_sum"


def scaled_sum(x, y, factor=2.0, aliases=None, **changed):
    given = dict(
        operands=dict(x=x, y=y),
        outputs=dict(out=jax.ShapeDtypeStruct(x.shape, x.dtype)),
        grid=(-(-x.size // 64),),
        constants=dict(N=x.size, BLOCK=64),
        scalars=dict(factor=factor),
        aliases=aliases,
    )
    return cuda.call(KERNEL, **(given | changed))[0]


@pytest.mark.triton_interpreted
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_interpreted_under_jit_and_vmap(dtype):
    x = jnp.arange(300, dtype=dtype).reshape(3, 100)
    run = jax.jit(jax.vmap(lambda x: scaled_sum(x, x)))
    np.testing.assert_allclose(run(x).astype(np.float32), 4.0 * np.arange(300).reshape(3, 100), rtol=4e-3)
    np.testing.assert_allclose(scaled_sum(x[0], None, 3.0).astype(np.float32), 3.0 * np.arange(100), rtol=4e-3)


@pytest.mark.triton_interpreted
def test_an_output_takes_over_an_operand():
    """The kernel leaves the second half alone: it is what the operand held there. Without, it is what no one wrote."""
    x = jnp.arange(128.0)
    half = dict(grid=(1,))
    kept = jax.jit(lambda x, y: scaled_sum(x, y, aliases=dict(out="y"), **half))(x, x + 1)
    np.testing.assert_array_equal(kept, np.r_[2 * (2 * np.arange(64) + 1), np.arange(64, 128) + 1])
    assert np.isnan(scaled_sum(x, x, **half)[64:]).all()


@pytest.mark.triton_interpreted
def test_pointers_in_another_order_are_refused():
    x = jnp.zeros(64)
    with pytest.raises(ValueError, match=r"takes the pointers \['x', 'y', 'out'\], and was given \['y', 'x', 'out'\]"):
        scaled_sum(x, x, operands=dict(y=x, x=x))


def test_the_kernels_are_refused_where_they_cannot_run(monkeypatch):
    monkeypatch.setattr(cuda.kernel, "installed", lambda: False)
    with pytest.raises(UserError, match="attention 'triton' is made of Triton kernels, and triton 3.6 or later is not"):
        cuda.refuse("attention 'triton'")
    monkeypatch.setattr(cuda.kernel, "installed", lambda: True)
    monkeypatch.setattr(cuda.kernel, "interpreting", lambda: False)
    with pytest.raises(UserError, match="is for NVIDIA GPUs from Ampere on; the platform is cpu"):
        cuda.refuse("attention 'triton'")
    assert not cuda.here() and cuda.capability() == 90


def test_versions_of_triton(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for version, known in {"3.5.1": False, "3.6.0": True, "3.9.0": True, "4.0": False}.items():
        cuda.kernel.installed.cache_clear()
        monkeypatch.setattr(importlib.metadata, "version", lambda name, version=version: version)
        assert cuda.kernel.installed() == known
    monkeypatch.undo()
    cuda.kernel.installed.cache_clear()


def test_cards_differ_in_shared_memory(monkeypatch):
    """An L4 (8.9) has no room for four stages, nor for heads of 256; an A100 has."""
    found = {}
    for card in (80, 89, 90):
        monkeypatch.setattr(cuda.kernel, "capability", lambda card=card: card)
        form = triton_decode.form_of(1, 2, 6, 128, 1024, 2)
        found[card] = form.stages, triton_decode.takes(256, jnp.bfloat16), triton_train.fits(256, jnp.bfloat16)
    assert found == {80: (4, True, True), 89: (3, False, False), 90: (4, True, True)}


TEXT = """000: kCommandBuffer [source | sink]
    001: kCopy  [source       | next=003 (2)] kCopy
    003: kWhile [prev=002 (1) | sink        ]
condition:
        004: kCustomKernel [source | sink] loop_and_fusion grid: [1, 1, 1]
      body:
        005: kCustomCall   [source       | sink        ] kCustomCall
        006: kConditional  [source       | sink        ]
            007: kCustomKernel [source | sink] x
008: kWhile [prev=002 (1) | sink        ]
    009: kCopy  [source       | next=003 (2)] kCopy
"""


def test_schedules_are_read():
    found = launches.parse(TEXT)
    assert [x.kind for x in launches.waits(found)] == ["kWhile"] and "008" in launches.waits(found)[0].line
    numbers = lambda *depth: [re.match(r"\d+", x.line)[0] for x in launches.within(found, *depth)]
    assert (numbers(0), numbers(1), numbers(1, 1)) == (["001"], ["004", "005", "009"], ["007"])
