"""Programs for accelerators that are not here: what a step and a decode block become when lowered for them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from lt_jax import native
from lt_jax.cache.policies import published
from lt_jax.decode import DecodeConfig
from lt_jax.decode.ahead import lower
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig
from lt_jax.training import step
from lt_jax.training.config import TrainConfig

MODEL = DecoderConfig(vocab_size=64, hidden=128, intermediate=64, layers=2, heads=4, kv_heads=2, head_dim=64)
SPECIAL = SpecialTokens(eos=63, pad=62, trigger=61, output=60, gists=(58, 59))


def training_step(platform, attention=None):
    line = jax.ShapeDtypeStruct((2, 256), jnp.int32)
    names = ("tokens", "targets", "weights", "positions", "death", "since", "gist")
    batch = dict.fromkeys(names, line) | {"weights": jax.ShapeDtypeStruct((2, 256), jnp.float32)}
    run = functools.partial(step.gradients, frozen={}, model=MODEL, config=TrainConfig(attention=attention))
    traced = jax.jit(lambda p, b: run(p, batch=b)).trace(parameters.abstract(MODEL), batch)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_training_step_has_nothing_of_the_cpu_in_it(platform):
    """On a TPU by name alone: a process on a CPU makes the lists of a CPU's blocks."""
    text = training_step(platform)
    assert "custom_call @lt_" not in text and "stablehlo.while" in text
    if platform == "tpu":
        assert "tpu_custom_call" in training_step(platform, "pallas")


def decode_block(platform, policy):
    eviction = None if policy is None else published(policy, 64, 64)
    scheme = Scheme(method="lightthinker", n_gist=2) if policy is None else Scheme(method="vanilla")
    config = DecodeConfig(rows=4, capacity=256, eviction=eviction)
    return lower(MODEL, scheme, SPECIAL, config, platforms=(platform,))[0].as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("policy", [None, "rkv", "h2o"])
def test_a_decode_block_has_nothing_of_the_cpu_in_it(platform, policy):
    """Nobody names an implementation: the choice falls by the platform, though this process has another."""
    text = decode_block(platform, policy)
    assert "custom_call @lt_" not in text and "stablehlo.while" in text
    assert ("tpu_custom_call" in text) == (platform == "tpu")


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
def test_a_decode_block_for_a_cpu_has_the_native_kernels_in_it():
    """What the test above looks for is there to be found."""
    assert "custom_call @lt_" in decode_block("cpu", None)
