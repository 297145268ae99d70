"""What the real TPU compiler says of the decode block, without a TPU (`tpu_backend`: needs libtpu)."""

from __future__ import annotations

import dataclasses
import math
import os
import re

import jax
import jax.numpy as jnp
import pytest

from lt_jax.cache.policies import published
from lt_jax.decode import DecodeConfig
from lt_jax.decode.ahead import footprint, lower
from lt_jax.decode.spread import Spread, over_devices
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.models import params as parameters
from lt_jax.models.presets import PRESETS
from lt_jax.training.score import score

GIB = 2**30


def chips(topology: str):
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def chip(topology: str):
    """The first chip of a topology, as a sharding."""
    return jax.sharding.SingleDeviceSharding(chips(topology)[0])


@pytest.mark.slow
@pytest.mark.tpu_backend
@pytest.mark.parametrize(
    "model, rows, topology, memory",
    [("qwen2.5-1.5b", 512, "v5e:2x2", 15.75 * GIB), ("qwen2.5-7b", 1024, "v5p:2x2x1", 95 * 1e9)],
    ids=["1.5B-v5e", "7B-v5p"],
)
def test_rollouts_under_a_budget_fit_one_chip(model, rows, topology, memory):
    eviction = published("rkv", 512, 128)
    config = DecodeConfig(rows=rows, block_steps=128, eviction=eviction, horizon=4608)
    found = footprint(PRESETS[model].replace(dtype="bfloat16"), config, 4608, chip(topology))
    assert found.total < memory < found.full_cache
    assert found.aliased >= found.cache, "the cache is not donated"
    # The largest temporaries are a few arrays of logits, [rows, vocabulary] in float32: for what may not be sampled,
    # and for rows that sample at a temperature.
    assert found.temporaries < found.cache / 6, "the cache is copied"


@pytest.mark.slow
@pytest.mark.tpu_backend
def test_texts_are_scored_where_the_model_lies_on_several_chips():
    """With the training kernel, which XLA cannot cut up: attention is cut by hand, half of the heads on each chip."""
    model = PRESETS["qwen2.5-1.5b"].replace(dtype="bfloat16", layers=2)
    split = over_devices(chips("v5e:2x2"), tensor=2)
    place = Spread(split, 0, model).params()
    params = parameters.abstract(model, model.dtype, place)
    whole = jax.NamedSharding(split.mesh, jax.P())
    tokens = jax.ShapeDtypeStruct((1, 1024), jnp.int32, sharding=whole)
    heads = dataclasses.replace(split, rows=())
    of = lambda params, tokens: score(params, model, tokens, attention="pallas", split=heads)[0]
    text = jax.jit(of).lower(params, tokens).compile().as_text()
    assert "tpu_custom_call" in text


@pytest.mark.slow
@pytest.mark.tpu_backend
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize("policy", [None, "rkv"], ids=["lightthinker", "rkv"])
def test_on_a_mesh_neither_keys_nor_logits_are_gathered(topology, policy):
    """Two devices share each row: what they exchange is sums of activations, and a few numbers of each row."""
    rows = 32
    special = SpecialTokens(eos=0, pad=1, trigger=2, output=3, gists=(4, 5))
    scheme = Scheme(n_gist=2) if policy is None else Scheme("vanilla")
    eviction = None if policy is None else published(policy, 256, 128)
    config = DecodeConfig(rows=rows, capacity=512, eviction=eviction, horizon=1024 if policy else 0)
    model = PRESETS["qwen2.5-1.5b"].replace(dtype="bfloat16", layers=2)
    split = over_devices(chips(topology), tensor=2)
    text = lower(model, scheme, special, config, split=split)[0].compile().as_text()
    moved = {}
    kinds = "all-gather|all-reduce|all-to-all|collective-[a-z]+|reduce-scatter"
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})[\w-]*\(", text):
        sizes = (math.prod(map(int, shape.split(","))) for shape in re.findall(r"\w+\[([\d,]+)\]", shapes))
        moved.setdefault(kind, []).extend(sizes)
    assert set(moved) <= {"all-gather", "all-reduce"} and max(moved.get("all-gather", [0])) <= 2 * rows, moved
    passes = 1 if policy else 4  # tokens of the pass that closes thoughts, trigger and output token included
    assert 0 < max(moved["all-reduce"]) <= rows // 2 * passes * model.hidden, moved
