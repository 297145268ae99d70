"""What the real TPU compiler says of the decode block, without a TPU (`tpu_backend`: needs libtpu)."""

from __future__ import annotations

import os

import jax
import pytest

from lt_jax.cache.policies import published
from lt_jax.decode import DecodeConfig
from lt_jax.decode.ahead import footprint
from lt_jax.models.presets import PRESETS

GIB = 2**30


def chip(topology: str):
    """The first chip of a topology, as a sharding."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return jax.sharding.SingleDeviceSharding(devices[0])


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
