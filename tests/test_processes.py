"""Several real processes (gloo on this machine): they start, train alike, agree to stop on SIGTERM, and go on."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import types

import numpy as np
import pytest

from lt_jax.errors import UserError
from lt_jax.training import mesh as meshes

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 30

CHILD = """
import json, os, signal, sys, time
import jax
port, process, processes, folder, sizes, stopping = sys.argv[1:7]
process, processes, stopping = int(process), int(processes), json.loads(stopping)
if processes > 1:
    jax.distributed.initialize("127.0.0.1:" + port, processes, process)
from tests import training_tools as tools
from lt_jax.models import params as parameters
from lt_jax.training import mesh as meshes, run
from lt_jax.training.config import MeshConfig
config = tools.config(steps=int(sys.argv[7]), save_every=0, log_every=1, mesh=MeshConfig(**json.loads(sizes)))
class Stopping:
    def write(self, done, values):
        if stopping:
            time.sleep(0.05)
        if done == 3 and process in stopping:
            os.kill(os.getpid(), signal.SIGTERM)
    def close(self): pass
params = parameters.init(jax.random.key(0), tools.MODEL)
data = tools.data(*meshes.share(meshes.make(config.mesh)))
result = run.train(config, tools.MODEL, params, data, folder=folder, writers=[Stopping()])
losses = {done: values["loss"] for done, values in result.history}
print(json.dumps({"finished": result.finished, "step": int(result.state.step), "losses": losses}))
"""


def start(folder, sizes, processes=2, stopping=(), devices=1, steps=STEPS):
    """Runs all processes to their end; what each printed."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = lambda process: [sys.executable, "-c", CHILD, str(port), str(process), str(processes), str(folder),
                               json.dumps(sizes), json.dumps(list(stopping)), str(steps)]  # fmt: skip
    started = [subprocess.Popen(command(process), env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True) for process in range(processes)]  # fmt: skip
    try:
        ended = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, complaint) in zip(started, ended, strict=True):
        assert process.returncode == 0, complaint[-3000:]
    return [json.loads(said.splitlines()[-1]) for said, _ in ended]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The losses of one process with two devices, by step."""
    (found,) = start(tmp_path_factory.mktemp("alone") / "run", {"fsdp": 2}, processes=1, devices=2)
    return found["losses"]


@pytest.mark.slow
def test_processes_told_to_stop_stop_together_and_go_on_as_one_process_would(tmp_path, alone):
    first = start(tmp_path / "run", {"fsdp": 2}, stopping=(0, 1))
    assert first[0] == first[1] and not first[0]["finished"] and 3 < first[0]["step"] < STEPS
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == [str(first[0]["step"])], "saved once"
    second = start(tmp_path / "run", {"fsdp": 2})
    assert second[0] == second[1] and second[0]["finished"]
    together = first[0]["losses"] | second[0]["losses"]
    assert list(together) == list(alone) and len(second[0]["losses"]) == STEPS - first[0]["step"]
    np.testing.assert_allclose(list(together.values()), list(alone.values()), rtol=1e-4)


@pytest.mark.slow
def test_processes_that_hold_the_same_rows_are_fed_them_once_and_heed_one_that_is_told_to_stop(tmp_path, alone):
    """Each of two processes holds one half of the `tensor` axis, and so all rows: a batch is 8 rows, not 8 each."""
    found = start(tmp_path / "run", {"tensor": 2, "fsdp": 1}, stopping=(1,))
    assert found[0] == found[1] and not found[0]["finished"] and found[0]["step"] > 3
    expected = [alone[step] for step in found[0]["losses"]]
    np.testing.assert_allclose(list(found[0]["losses"].values()), expected, rtol=1e-3)


def over(owners, **sizes):
    """A mesh as far as `share` looks at it: `owners` are the processes of the devices in order."""
    shape = {axis: sizes.get(axis, 1) for axis in meshes.AXES}
    devices = np.array([types.SimpleNamespace(process_index=owner) for owner in owners], object)
    return types.SimpleNamespace(devices=devices.reshape(*shape.values()), shape=shape)


@pytest.mark.parametrize(
    "owners, sizes, parts",
    [
        ([0, 0, 1, 1], {"fsdp": 4}, [(0, 2), (1, 2)]),
        ([0, 1], {"tensor": 2}, [(0, 1), (0, 1)]),
        ([0, 1], {"context": 2}, [(0, 1), (0, 1)]),
        ([0, 0, 1, 1], {"data": 2, "tensor": 2}, [(0, 2), (1, 2)]),
        ([0, 1, 0, 1], {"data": 2, "tensor": 2}, [(0, 1), (0, 1)]),
        ([0, 1, 2, 3], {"fsdp": 2, "context": 2}, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([0, 1, 0, 1], {"fsdp": 4}, [(0, 2), (1, 2)]),
    ],
)
def test_which_part_of_a_batch_a_process_feeds(owners, sizes, parts):
    mesh = over(owners, **sizes)
    assert [meshes.share(mesh, process) for process in range(len(parts))] == parts


def test_processes_with_some_rows_in_common_are_refused():
    with pytest.raises(UserError, match="mesh: data=3, fsdp=1, tensor=2, context=1 over 2 processes gives two of them"):
        meshes.share(over([0, 0, 0, 1, 1, 1], data=3, tensor=2), 0)
