"""A benchmark that nobody has run for a while still runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_native import needs_native

FOLDER = Path(__file__).parents[1] / "benchmarks"


@needs_native
def test_matmul_cpu_measures_every_form():
    pytest.importorskip("torch")
    small = "import matmul_cpu as m; m.ROWS = (1,); lines = m.measure(32, 64, 'float32')"
    code = f"{small}; print(sorted(line['form'] for line in lines))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(FOLDER)!r}); {code}", "--repeats=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["['native', 'torch_float32', 'xla_float32']"], done.stderr[-2000:]


@pytest.mark.tpu_backend
def test_tpu_program_counts_trips_and_bytes():
    """A loop of 7 over 256 MiB that no vector memory holds: read and written each time, at 8 x 128 numbers a bundle."""
    code = f"""
import sys; sys.path.insert(0, {str(FOLDER)!r})
import jax, jax.numpy as jnp, tpu_schedule, tpu_program
x = jax.ShapeDtypeStruct((65536, 1024), jnp.float32)
body = lambda i, x: jnp.cos(x)
_, found = tpu_program.compile_for(lambda x: jax.lax.fori_loop(0, 7, body, x), (x,), tpu_schedule.CHIPS['v5e'], (0,))
most = max(found, key=lambda x: x.cycles(1))
print(most.times, most.moved / 2**28, most.bundles > 65536)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["7 2.0 True"], done.stdout + done.stderr[-2000:]


@pytest.mark.slow
def test_rl_step_measures_our_side_and_tells_of_a_peer_that_fails(tmp_path):
    """Tiny, and beside a peer whose environment has no package."""
    code = f"""
import sys; sys.path[:0] = [{str(FOLDER)!r}, {str(FOLDER.parent)!r}]
from benchmarks.peers import side
side.ENVIRONMENTS, side.environment = side.Path({str(tmp_path)!r}), lambda name: sys.executable
import rl_step
sys.exit(rl_step.main())
"""
    options = ["--against=tunix", "--quick", "--steps=1", "--warmup=0", f"--out={tmp_path / 'found.json'}"]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True)
    assert done.returncode == 1 and (tmp_path / "found.json").is_file(), done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    ours, theirs = found["rows"]
    assert ours["what"] == "lt_jax" and ours["times lt_jax"] == 1 and ours["rollout tokens/s"] > 0
    (step,) = found["sides"]["lt_jax"]["steps"]
    assert step["tokens"] == 2 * 4 * 8 and 0 < step["rollout"] + step["logps"] + step["update"] <= step["seconds"]
    assert theirs["what"] == "tunix" and "No module named 'tunix'" in theirs["failed"]
    assert "tunix" in done.stdout and "No module named 'tunix'" in done.stdout
