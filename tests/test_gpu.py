"""What XLA's compiler for GPUs says of whole programs, without a GPU (`gpu_backend`: see `make test-gpu`)."""

from __future__ import annotations

import functools
import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lt_jax.cache.policies import published
from lt_jax.cuda import graphs, launches, topology
from lt_jax.decode import DecodeConfig
from lt_jax.decode.ahead import lower
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.models.config import DecoderConfig

SPECIAL = SpecialTokens(eos=63, pad=62, trigger=61, output=60, gists=(58, 59))
SCHEMES = {"vanilla": Scheme(method="vanilla"), "lightthinker": Scheme(method="lightthinker", n_gist=2)}


@pytest.fixture(autouse=True, scope="module")
def compiler(tmp_path_factory):
    """With a ptxas, and without the compile cache: what comes out of that is not compiled, and needs a GPU."""
    os.environ |= topology.tools(tmp_path_factory.mktemp("ptxas"))
    before = jax.config.jax_enable_compilation_cache
    for enabled in (False, before):
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()  # it looks at the setting once
        if not enabled:
            yield


def model(layers: int = 2) -> DecoderConfig:
    """Heads as in Qwen2.5-1.5B, and little besides: what is looked at does not depend on widths."""
    return DecoderConfig(vocab_size=4096, hidden=256, intermediate=512, layers=layers, heads=12, kv_heads=2,
                         head_dim=128, dtype="bfloat16")  # fmt: skip


@functools.cache
def block(what: str, layers: int = 2, graph: bool = True):
    """The compiled decode block of a scheme or under a policy, and its schedule."""
    scheme = SCHEMES.get(what, SCHEMES["vanilla"])
    eviction = None if what in SCHEMES else published(what, 64, 64)
    config = DecodeConfig(rows=16, capacity=512, eviction=eviction, horizon=256 if eviction else 0,
                          implementation="triton")  # fmt: skip
    lowered, (_, _, cache) = lower(model(layers), scheme, SPECIAL, config, topology.h100())
    return *launches.schedule(lowered, graphs.OPTIONS if graph else None), cache


@pytest.mark.slow
@pytest.mark.gpu_backend
@pytest.mark.parametrize("what", ["vanilla", "lightthinker", "rkv", "h2o"])
def test_a_decode_block_is_one_graph(what):
    """Loops over steps, rows that are full, layers, thoughts that are due and tokens that are sampled: the host waits
    for none. And the cache is updated in place."""
    compiled, schedule, cache = block(what)
    assert launches.waits(schedule) == []
    assert sum(x.kind == "kWhile" for x in schedule) >= (1 if what == "vanilla" else 2)
    assert sum(x.kind == "kCustomCall" for x in schedule) >= 2 * model().layers, "our kernels are not in it"
    found = compiled.memory_analysis()
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    assert found.alias_size_in_bytes > held, "the cache is not donated"
    assert found.temp_size_in_bytes < held, "the cache is copied"


@pytest.mark.slow
@pytest.mark.gpu_backend
def test_what_a_layer_launches():
    """At one row a launch costs more than most kernels: no more than 12 in a layer. And without a graph the host waits,
    so that what the test above looks for is there to be found."""
    few, many = (block("vanilla", n)[1] for n in (2, 3))
    assert len(launches.within(many, 1)) - len(launches.within(few, 1)) <= 12
    assert launches.waits(block("vanilla", graph=False)[1]) != []
