"""The kernels for training compiled by the real TPU compiler, without a TPU (`tpu_backend`: needs libtpu)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from lt_jax.attention import attention, pallas_train, planned
from lt_jax.lifetimes import Lifetimes
from tests.test_tpu import chip

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


def gradients(q, k, v, death, since, gist, rule, block_q):
    plan = planned(Lifetimes(death, since, gist, rule), "pallas", block_q=block_q)
    out, back = jax.vjp(lambda q, k, v: attention(q, k, v, plan, "pallas"), q, k, v)
    return back(out)


def compiled(topology, length, heads, kv_heads, depth, dtype="bfloat16", rule="causal", per_head=False, block_q=None):
    place = chip(topology)
    shape = lambda *size, dtype=dtype: jax.ShapeDtypeStruct((1, *size), dtype, sharding=place)
    line = shape(length, dtype=jnp.int32)
    death = shape(kv_heads, length, dtype=jnp.int32) if per_head else line
    keys = shape(length, kv_heads, depth)
    run = functools.partial(gradients, rule=rule, block_q=block_q)
    gist = None if rule == "causal" else line
    return jax.jit(run).lower(shape(length, heads, depth), keys, keys, death, line, gist).compile()


@pytest.mark.slow
@pytest.mark.tpu_backend
@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("case", [
    dict(length=1024, heads=8, kv_heads=2, depth=128),  # as the sizes it is tuned for
    dict(length=1000, heads=7, kv_heads=1, depth=64, rule="bidirectional"),
    dict(length=520, heads=2, kv_heads=2, depth=80, rule="diagonal", per_head=True, block_q=256),
    dict(length=520, heads=2, kv_heads=1, depth=128, dtype="float32"),
], ids=["tuned", "64", "80", "float32"])  # fmt: skip
def test_forward_and_backward_compile(name, case):
    """Head sizes 64, 80 and 128, every gist rule, deaths per head, lengths that are no multiple of the block."""
    text = compiled(TOPOLOGIES[name], **case).as_text()
    assert "lt_attention_forward" in text and "lt_attention_backward" in text


@pytest.mark.slow
@pytest.mark.tpu_backend
@pytest.mark.parametrize("name", ["v5p", "tpu7x"])  # those with the least vector memory
def test_the_longest_rows_compile_and_take_memory_in_proportion(name):
    temporaries = lambda n: compiled(TOPOLOGIES[name], n, 2, 1, 128).memory_analysis().temp_size_in_bytes
    assert pallas_train.fits(32768)
    longest = temporaries(32768)
    assert longest < 3 * temporaries(16384)
    assert longest < 32768**2 / 8, "an array of S x S"
