"""Attention and a training step over a mesh of eight CPU devices: the same as on one, and nothing is exchanged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = '''
import functools, re, sys
import jax, jax.numpy as jnp, numpy as np
from lt_jax.attention import Split, attention, planned
from lt_jax.lifetimes import Lifetimes
from tests.attention_rows import evicted, joined, lightthinker
from tests.test_attention import arrays, output_and_gradients

form = sys.argv[1]
mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
split = Split(mesh, ("fsdp",), "tensor")
rows = joined(*(lightthinker(140, see_current=True, rule="diagonal", parts=(n, 10, 4)) for n in range(4, 8)))
for life in (rows, evicted(4, 2, 140)):
    args = arrays(4, 140)
    want, want_grads = output_and_gradients(lambda q, k, v: attention(q, k, v, life, "dense"), *args)

    @jax.jit
    def run(life, *args):
        plan = planned(life, form, split=split)
        return output_and_gradients(lambda q, k, v: attention(q, k, v, plan, form), *args)

    place = lambda x, *axes: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*axes)))
    args = [place(x, "fsdp", None, "tensor") for x in args]
    life = jax.tree.map(lambda x: place(x, "fsdp"), life)
    text = run.lower(life, *args).compile().as_text()
    assert not re.search(r"all-(gather|reduce|to-all)|collective", text), "something is exchanged"
    out, grads = run(life, *args)
    np.testing.assert_allclose(out, want, atol=1e-5)
    for a, b in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
print("the same")
'''


def over_eight_devices(program: str, *arguments: str, more: str = "") -> str:
    """What a program prints in a process of eight devices; `more` are flags of XLA."""
    root = Path(__file__).parents[1]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8 {more}"
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("form", ["blocked", "pallas", pytest.param("triton", marks=pytest.mark.triton_interpreted)])
def test_rows_and_heads_over_a_mesh(form):
    assert "the same" in over_eight_devices(PROGRAM, form)


STEP = '''
import dataclasses, re
import jax, jax.numpy as jnp, numpy as np
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig
from lt_jax.training import mesh as meshes, step
from lt_jax.training.config import MeshConfig, TrainConfig
from tests.attention_rows import joined, lightthinker

model = DecoderConfig(vocab_size=64, hidden=32, intermediate=64, layers=2, heads=4, kv_heads=2, head_dim=16)
life = joined(*(lightthinker(96, parts=(n, 10, 4)) for n in range(4, 8)))
tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (4, 96)), jnp.int32)
batch = dict(tokens=tokens, targets=jnp.roll(tokens, -1, 1), weights=jnp.ones((4, 96)),
             positions=jnp.broadcast_to(jnp.arange(96, dtype=jnp.int32), (4, 96)), death=life.death,
             since=jnp.zeros((4, 96), jnp.int32), gist=jnp.full((4, 96), -1, jnp.int32))
params = parameters.init(jax.random.key(0), model)
config = TrainConfig(attention="blocked")
loss, accuracy, grads = jax.jit(lambda p, b: step.gradients(p, {}, model, config, b))(params, batch)
mesh = meshes.make(MeshConfig(data=1, fsdp=4, tensor=2, context=1))
cut = jax.device_put(params, meshes.param_shardings(mesh, model))
place = step.activations(mesh)
both = jax.jit(lambda p, b: step.gradients(p, {}, model, config, b, place))(cut, meshes.place_batch(mesh, batch))
np.testing.assert_allclose(both[0], loss, rtol=1e-5)
for a, b in zip(*map(jax.tree.leaves, (both[2], grads)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
print("the same")
'''


@pytest.mark.slow
def test_a_training_step_over_a_mesh():
    assert "the same" in over_eight_devices(STEP)


RECORDED = '''
import jax, jax.numpy as jnp, numpy as np
from lt_jax.lifetimes import NEVER
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig
from lt_jax.training import mesh as meshes, step
from lt_jax.training.config import MeshConfig, TrainConfig
from lt_jax.training.score import score

model = DecoderConfig(vocab_size=64, hidden=32, intermediate=64, layers=3, heads=4, kv_heads=2, head_dim=16)
draw = np.random.default_rng(0)
tokens = draw.integers(0, 64, (8, 96)).astype(np.int32)
index = np.arange(96, dtype=np.int32)
whole = dict(tokens=tokens, targets=np.roll(tokens, -1, 1), weights=np.ones((8, 96), np.float32),
             positions=index + np.zeros_like(tokens), since=np.zeros_like(tokens), gist=np.full_like(tokens, -1))
params = parameters.init(jax.random.key(0), model)
mesh = meshes.make(MeshConfig(data=2, fsdp=2, tensor=2, context=1))
cut, place = jax.device_put(params, meshes.param_shardings(mesh, model)), step.activations(mesh)
config = TrainConfig(attention="blocked", accumulate=2)

def everything(place):
    def run(params, batch):
        life = step.lifetimes(batch, "causal")
        logp = lambda params: score(params, model, batch["tokens"], life, attention="blocked", place=place)
        found = step.gradients(params, {}, model, config, batch, place), logp(params)
        return found, jax.grad(lambda params: jnp.mean(logp(params)[0] * batch["weights"]))(params)
    return jax.jit(run)

for layers, heads in ((3, 2), (3, 1), (1, 2)):
    death = index + draw.geometric(0.1, (8, layers, heads, 96))
    batch = whole | dict(death=np.where(draw.random(death.shape) < 0.2, NEVER, death).astype(np.int32))
    placed = meshes.place_batch(mesh, batch)
    assert placed["death"].sharding.spec[2] == ("tensor" if heads == 2 else None)
    want, found = everything(None)(params, batch), everything(place)(cut, placed)
    for a, b in zip(*map(jax.tree.leaves, (found, want)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    evaluated = step.make_eval_step(model, config, mesh)(cut, {}, placed)
    np.testing.assert_allclose(evaluated["loss"] / evaluated["weights"], want[0][0][0], rtol=1e-5)
print("the same")
'''


@pytest.mark.slow
def test_recorded_deaths_over_a_mesh():
    assert "the same" in over_eight_devices(RECORDED)
