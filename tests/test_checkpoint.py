"""Checkpoints: exact resumption, in this process, after kill -9 and on other devices; full disks and strangers."""

import contextlib
import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.errors import UserError
from lt_jax.models import lora
from lt_jax.models import params as parameters
from lt_jax.models.config import LoraConfig
from lt_jax.training import checkpoint, run
from lt_jax.training import mesh as meshes
from tests import training_tools
from tests.training_tools import MODEL, config, data

PARAMS = parameters.init(jax.random.key(0), MODEL)
ROOT = pathlib.Path(__file__).parents[1]


def train(folder, steps=6, model=MODEL, params=PARAMS, **more):
    mesh = meshes.make(config().mesh, jax.devices()[:1])
    settings = config(**{"save_every": 2, **more})
    if steps < settings.steps:  # as a run that was stopped: the schedule is that of the whole run
        return stopped_after(steps, settings, folder, mesh, model, params)
    return run.train(settings, model, params, data(), folder=folder, mesh=mesh)


def stopped_after(steps, settings, folder, mesh, model, params):
    """Asks the run to stop (as SIGTERM does) while it does its step number `steps`."""
    class Asking:
        def write(self, done, values):
            if done == steps:
                os.kill(os.getpid(), signal.SIGTERM)

        def close(self):
            pass

    return run.train(settings, model, params, data(), folder=folder, mesh=mesh, writers=[Asking()])


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    raw = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(raw(a), raw(b)), ours, theirs)


@pytest.fixture(scope="module")
def whole():
    """The final state of a run that was never interrupted."""
    mesh = meshes.make(config().mesh, jax.devices()[:1])
    return run.train(config(), MODEL, PARAMS, data(), mesh=mesh)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, whole):
    first = train(tmp_path, steps=4)
    assert not first.finished and int(first.state.step) == 4
    second = train(tmp_path)
    assert second.finished and [done for done, _ in second.history] == [6]
    same(second.state, whole.state)


def test_saving_changes_nothing_and_keeps_the_last(tmp_path, whole):
    result = train(tmp_path, save_every=1, keep=2)
    same(result.state, whole.state)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["5", "6"]
    again = train(tmp_path, save_every=1)
    assert again.finished and not again.history
    same(again.state, whole.state)


def test_lora_checkpoints_leave_the_base_out(tmp_path):
    adapted, model = lora.add(PARAMS, MODEL, LoraConfig(rank=2, rows=(50, 4)), jax.random.key(5))
    finished = train(tmp_path / "a", model=model, params=adapted)
    train(tmp_path / "b", 4, model=model, params=adapted)
    same(train(tmp_path / "b", model=model, params=adapted).params, finished.params)
    with checkpoint.Checkpoints(tmp_path / "b") as found:
        assert not any("embed" in name and "new_rows" not in name for name in found.about()["shapes"])
    other = dict(adapted, embed=adapted["embed"].at[3, 5].add(1e-3))
    with pytest.raises(UserError, match="belong to other base weights"):
        train(tmp_path / "b", model=model, params=other)


@pytest.mark.parametrize(
    "more, said",
    [
        ({"model": MODEL.replace(hidden=16)}, r"checkpoint .*6: model.hidden is 32 there and 16 here; .*another model"),
        ({"optim": {"learning_rate": 2e-2}}, "train.optim.learning_rate is 0.01 there and 0.02 here"),
        ({"optim": {"name": "muon"}}, "train.optim.name is adamw there and muon here"),
        ({"seed": 1}, "train.seed is 0 there and 1 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(finished, more, said):
    model = more.pop("model", MODEL)
    with pytest.raises(UserError, match=said):
        train(finished, steps=9, model=model, params=parameters.init(jax.random.key(0), model), **more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder


def test_the_same_run_on_a_smaller_machine_goes_on(finished, tmp_path):
    """More microbatches are the same step; so are other logs, saves and ways to compute."""
    shutil.copytree(finished, tmp_path / "copy")
    free = {"accumulate": 2, "remat": "layer", "loss_chunk": 64, "log_every": 1, "save_every": 3, "keep": 5}
    mesh = meshes.make(config().mesh, jax.devices()[:1])
    again = run.train(config(steps=7, **free), MODEL, PARAMS, data(), folder=tmp_path / "copy", mesh=mesh)
    assert again.finished and [done for done, _ in again.history] == [7]


def test_a_checkpoint_of_more_processes_is_refused(finished, monkeypatch):
    with checkpoint.Checkpoints(finished, reading=True) as found:
        saved = found.about()
    with pytest.raises(UserError, match="the run had 1 processes and has 2 here; each goes on with its own part"):
        checkpoint.check(saved, saved | {"processes": 2}, "checkpoint x")


@pytest.mark.parametrize(
    "new, said",
    [
        ([["1", "/c/b.jsonl"], ["0", "/d/z.jsonl"]], ""),
        ([["0", "a.jsonl"], ["2", "/c/b.jsonl"]], "/c/b.jsonl has changed"),
        ([["0", "a.jsonl"], ["2", "c.jsonl"]], "c.jsonl is new, b.jsonl is missing"),
        ([["0", "a.jsonl"], ["0", "a2.jsonl"], ["1", "b.jsonl"]], "a2.jsonl is new"),
        ([["0", "a.jsonl"]], "b.jsonl is missing"),
    ],
)
def test_files_are_compared_by_their_content_and_named_when_they_differ(new, said):
    assert checkpoint.changed_files([["0", "a.jsonl"], ["1", "b.jsonl"]], new) == said


def test_a_run_may_be_made_longer(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    mesh = meshes.make(config().mesh, jax.devices()[:1])
    longer = run.train(config(steps=8, log_every=1), MODEL, PARAMS, data(), folder=tmp_path / "copy", mesh=mesh)
    assert int(longer.state.step) == 8 and [done for done, _ in longer.history] == [7, 8]


def test_a_run_cannot_be_made_shorter_than_it_is(finished):
    with pytest.raises(UserError, match="newest checkpoint is of step 6 and train.steps is 5; a run cannot go"):
        run.train(config(steps=5), MODEL, PARAMS, data(), folder=finished)


def test_a_damaged_checkpoint_is_named(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    for file in (tmp_path / "copy" / "6" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 4096:
            file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="6 cannot be read"):
        train(tmp_path / "copy")


def test_data_without_a_state_cannot_be_saved(tmp_path):
    with pytest.raises(TypeError, match="get_state"):
        run.train(config(), MODEL, PARAMS, iter([training_tools.batch()]), folder=tmp_path)


@contextlib.contextmanager
def full_disk(monkeypatch):
    """Every write of a file of arrays fails as it does when no space is left."""
    from orbax.checkpoint._src.serialization import jax_array_handlers as handlers

    async def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(handlers.ArrayHandler, "serialize", fail, raising=True)
        yield


def test_a_full_disk_is_said_and_the_checkpoint_before_stays_usable(tmp_path, monkeypatch, whole):
    train(tmp_path, steps=4)
    said = r"step 6 could not be written \(No space left.*step 4 is"
    with full_disk(monkeypatch), pytest.raises(UserError, match=said):
        train(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["2", "4"]
    same(train(tmp_path).state, whole.state)


@pytest.mark.slow
def test_a_really_full_disk(finished, tmp_path):
    """A file system with room for one checkpoint of this model and half of another."""
    size = sum(file.stat().st_size // 4096 + 1 for file in (finished / "6").rglob("*")) * 6144
    small = tmp_path / "small"
    small.mkdir()
    mount = lambda options: subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(small)])
    if mount(f"size={size}").returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(UserError, match=r"could not be written \(No space left.*step 1 is untouched"):
            train(small / "run", save_every=1)
        assert mount("remount,size=64m").returncode == 0
        assert train(small / "run").finished
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_frozen_fingerprints_see_every_bit_and_no_sharding():
    tree = {"a": jnp.arange(64, dtype=jnp.float32).reshape(8, 8), "b": jnp.ones(8, jnp.bfloat16)}
    number = int(checkpoint.fingerprint(tree))
    assert int(checkpoint.fingerprint(dict(tree, b=tree["b"].at[2].set(1.0078125)))) != number
    assert int(checkpoint.fingerprint({"a": tree["b"], "b": tree["a"]})) != number
    assert int(checkpoint.fingerprint(dict(tree, a=tree["a"][jnp.array([1, 0, *range(2, 8)])]))) != number
    assert int(checkpoint.fingerprint(jax.device_put(tree))) == number
    sums = [
        (2 * i + 1) * int((bits.reshape(-1) * (2 * np.arange(bits.size) + 1)).sum())
        for i, x in enumerate(jax.tree.leaves(tree))
        for bits in [np.asarray(x).view(f"u{x.dtype.itemsize}").astype(np.int64)]
    ]
    assert number == sum(sums) % 2**32, "checkpoints of before would not be known again"


def test_a_fingerprint_takes_no_memory():
    x = jax.ShapeDtypeStruct((2048, 512), jnp.float32)
    assert checkpoint.fingerprint.lower({"a": x}).compile().memory_analysis().temp_size_in_bytes < 2**16


def test_mesh_that_does_not_divide_names_the_parameter():
    device = jax.devices()[0]
    fake = lambda **sizes: jax.sharding.AbstractMesh(
        tuple(sizes.get(axis, 1) for axis in meshes.AXES), meshes.AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * len(meshes.AXES),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"tensor=4 does not divide model.kv_heads of 2; on 4 devices .* be 1, 2"):
        meshes.check_model(fake(tensor=4), MODEL)
    with pytest.raises(UserError, match=r"fsdp=3 does not divide parameter embed \[128, 32\]: axis embed of 32"):
        meshes.check_model(fake(fsdp=3), MODEL)
    with pytest.raises(UserError, match="mesh: data=1, fsdp=1, tensor=3, context=1 does not fill the 1 devices"):
        meshes.make(config().mesh.__class__(tensor=3, fsdp=1), [device])
    with pytest.raises(UserError, match="data x fsdp = 4 does not divide the 6 rows of a microbatch; .* of 4 rows"):
        meshes.check_batch(fake(data=2, fsdp=2), 6, 32, config())
    with pytest.raises(UserError, match="context=5 does not divide rows of 32 tokens"):
        meshes.check_batch(fake(context=5), 8, 32, config())


CHILD = """
import sys, jax, numpy as np, os, signal, time
from tests import training_tools as tools
from lt_jax.models import params as parameters
from lt_jax.training import run
from lt_jax.training.config import MeshConfig
folder, steps, mesh, kill = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3]), int(sys.argv[4])
class Killer:
    def write(self, done, values):
        print(done, flush=True)
        if done == kill:
            os.kill(os.getpid(), signal.SIGKILL)
    def close(self): pass
params = parameters.init(jax.random.key(0), tools.MODEL)
config = tools.config(steps=steps, save_every=2, log_every=1, mesh=MeshConfig(**mesh), optim={"warmup": 2.0})
result = run.train(config, tools.MODEL, params, tools.data(), folder=folder, writers=[Killer()])
np.savez(sys.argv[5], *map(np.asarray, jax.tree.leaves(result.params)))
"""


def child(folder, out, *, steps=6, mesh="{}", kill=0, devices=1):
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    arguments = [sys.executable, "-c", CHILD, str(folder), str(steps), mesh, str(kill), str(out)]
    return subprocess.run(arguments, env=env, cwd=ROOT, capture_output=True, text=True)


def load(path):
    with np.load(path) as found:
        return [found[name] for name in found.files]


@pytest.mark.slow
def test_kill_9_and_restart_end_bit_identical(tmp_path):
    # Whatever was being written when it died is lost or whole. At step 5 the checkpoint of step 2 is whole: the one of
    # step 4 waited for it.
    kill = int(np.random.default_rng().integers(5, 10))
    killed = child(tmp_path / "run", tmp_path / "end.npz", steps=10, kill=kill)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "end.npz").exists()
    again = child(tmp_path / "run", tmp_path / "end.npz", steps=10)
    assert again.returncode == 0, again.stderr[-2000:]
    assert int(again.stdout.split()[0]) > 2, "it went on from a checkpoint"
    mesh = meshes.make(config().mesh, jax.devices()[:1])
    uninterrupted = run.train(config(steps=10), MODEL, PARAMS, data(), mesh=mesh)
    for a, b in zip(load(tmp_path / "end.npz"), jax.tree.leaves(uninterrupted.params), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=f"killed at step {kill}")


@pytest.mark.slow
def test_a_run_goes_on_on_another_number_of_devices(tmp_path, whole):
    first = child(tmp_path / "run", tmp_path / "end.npz", mesh="{'fsdp': 4, 'tensor': 2}", devices=8, kill=5)
    assert first.returncode == -signal.SIGKILL, first.stderr[-2000:]
    second = child(tmp_path / "run", tmp_path / "end.npz", mesh="{'data': 2, 'fsdp': 1}", devices=2)
    assert second.returncode == 0, second.stderr[-2000:]
    assert int(second.stdout.split()[0]) > 2
    for ours, alone in zip(load(tmp_path / "end.npz"), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(ours, alone, atol=2e-5)
