"""The learner's programs of reinforcement learning, compiled by the real TPU compiler (`tpu_backend`: needs libtpu)."""

from __future__ import annotations

import jax
import pytest

from lt_jax.models.presets import PRESETS
from lt_jax.rl import memory, sharing
from lt_jax.rl.config import ProblemsConfig, RlConfig, RolloutConfig
from lt_jax.training import mesh as meshes
from lt_jax.training.config import MeshConfig, TrainConfig
from tests.test_tpu import chips

GIB = 2**30


@pytest.mark.slow
@pytest.mark.tpu_backend
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize("learner", ["dense", "replay"])
def test_log_probs_and_updates_compile_for_a_mesh(topology, learner):
    """The sizes of the 1.5B model, with four of its layers; under replay deaths are those of each layer and head."""
    model = PRESETS["qwen2.5-1.5b"].replace(dtype="bfloat16", layers=4)
    mesh = meshes.make(MeshConfig(fsdp=2, tensor=2), chips(topology)[:4])
    rollout = RolloutConfig(prompts=4, group=8, max_prompt=256, max_new=1792,
                            eviction={"policy": "rkv", "budget": 512, "buffer": 128})  # fmt: skip
    train = TrainConfig(params_dtype="bfloat16", remat="layer", accumulate=2, attention="pallas")
    config = RlConfig("runs/x", "DIR", ProblemsConfig(embedded=1), rollout, replay=learner == "replay", updates=2,
                      train=train)  # fmt: skip
    record = (model.layers, model.kv_heads) if config.replay else None
    sizes = sharing.longest(config, 2048, 1792, ways=2)
    assert sizes == (sharing.Sizes(1, 2048, 2048) if config.replay else sharing.Sizes(4, 2048, 256 + 4 * 1792))
    found = memory.learning(config, model, (0,), sizes, record, mesh)
    for each in (found.logps, found.update):
        assert "lt_attention" in each.as_text()
        assert each.memory_analysis().temp_size_in_bytes < 8 * GIB
    held = found.update.memory_analysis().argument_size_in_bytes
    assert found.state < held < 1.1 * found.state  # what is estimated to be held is what the compiler is given
    assert jax.tree.leaves(found.update.input_shardings)[0].mesh.size == 4
