"""A whole supervised step compiled for an H100, without one (`gpu_backend`, see `make test-gpu`)."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

from lt_jax.cuda import topology
from lt_jax.models import params as parameters
from lt_jax.training import mesh as meshes
from lt_jax.training import optimizer, step
from lt_jax.training.config import TrainConfig
from lt_jax.training.state import TrainState
from tests.test_gpu import compiler, model  # noqa: F401 - a fixture


def compiled_step(config: TrainConfig, model, rows: int, length: int):
    """The step of `step.make_step`, from shapes alone."""
    mesh = meshes.make(config.mesh, list(topology.h100().device_set))
    tx = optimizer.make(config.optim, config.steps)
    start = lambda params: TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key(0))
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.sharding(mesh))
    state = jax.tree.map(place, jax.eval_shape(start, parameters.abstract(model, "float32")))
    names = ("tokens", "targets", "weights", "positions", "death", "since", "gist")
    line = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    batch = dict.fromkeys(names, line) | {"weights": jax.ShapeDtypeStruct((rows, length), jnp.float32)}
    run = step.make_step(model, config, tx, mesh, state)
    return run.lower(state, {}, jax.tree.map(place, batch)).compile()


@pytest.mark.slow
@pytest.mark.gpu_backend
@pytest.mark.parametrize("remat", ["none", "layer"])
def test_no_loop_of_a_training_step_asks_the_host(remat):
    """XLA knows how many turns each loop makes: over layers, back over them, and over chunks of the loss."""
    config = TrainConfig(attention="triton", params_dtype="bfloat16", remat=remat, loss_chunk=1024)
    text = compiled_step(config, model(3), 2, 2048).as_text()
    loops = [line for line in text.splitlines() if " while(" in line]
    turns = sorted(int(n) for line in loops for n in re.findall(r'known_trip_count":\{"n":"(\d+)"', line))
    assert turns == [3, 3, 4] and len(loops) == 3
    again = remat == "layer"
    assert text.count('custom_call_target="triton_kernel_call_ffi"') == 3 + again
    assert "2048,2048" not in text, "there are arrays of S x S"
