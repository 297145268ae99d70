"""A benchmark that nobody has run for a while still runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.deaths import NEVER, order, thoughts, visited
from benchmarks.gpu_sides import goals
from benchmarks.gpu_sides.jax_side import model as jax_model
from benchmarks.gpu_sides.sizes import FULL
from lt_jax.attention.blocks import build
from lt_jax.lifetimes import Lifetimes, dense_mask
from lt_jax.models import params as parameters
from lt_jax.models import presets
from tests.test_native import needs_native

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(FOLDER))  # where a script finds its neighbours

import gpu  # noqa: E402


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


def test_the_order_of_keys_without_jax_is_that_of_the_plan():
    """What FlexAttention is given, and the tiles that are counted."""
    death = np.concatenate([thoughts(2, 1024), np.full((1, 1024), NEVER, np.int32)])
    plan = build(Lifetimes(jnp.asarray(death)), 128, 64)
    np.testing.assert_array_equal(order(death, 64), plan.order)
    tiles, pairs = visited(death, 128, 64)
    assert tiles == plan.n_active.sum(1).mean() and pairs == dense_mask(Lifetimes(jnp.asarray(death))).sum() / 3
    assert 0.1 < tiles / (8 * 16) < 0.6


def test_the_sizes_of_the_gpu_benchmark_are_the_model_s():
    shape, preset = FULL.model, presets.PRESETS["qwen2.5-1.5b"]
    assert parameters.count(jax_model(shape)) == parameters.count(preset) == shape.weights
    assert sum(side.limit for name in gpu.DEFAULT for side in gpu.SECTIONS[name]) <= gpu.TOTAL
    assert all(f"    {name} " in gpu.__doc__ for name in gpu.SECTIONS)


def test_goals_are_met_missed_or_said_to_be_not_measured():
    work, none = "4 x 4,096, thoughts of 40", dict(section="sft", side="torch", work="all", form="")
    rows = [dict(section="sft", side="lt_jax", work=work, form="triton", **{"tokens/s": 40_000.0}),
            dict(section="graphs", side="lt_jax", work="limits", form="jax", matmul=7e14, copy=4e12),
            none | dict(failed="torch is not installed")]  # fmt: skip
    found = {line["what"]: line for line in goals.lines(rows, FULL)}
    share = found["SFT step, 4 x 4,096: of the matmul rate"]
    assert share["figure"] == "53 %" and share["goal"] == ">= 40 %" and share["verdict"] == "met"
    beside = found["SFT step, 4 x 4,096: tokens/s of transformers, causal"]
    assert beside["verdict"] == "not measured (torch: torch is not installed)"
    rows[-1] = none | {"work": "4 x 4,096, causal", "tokens/s": 35_000.0}
    found = {line["what"]: line for line in goals.lines(rows, FULL)}
    assert found["SFT step, 4 x 4,096: tokens/s of transformers, causal"]["verdict"] == "missed"


LIMITS, FIRST, RATE = {"work": "limits"}, {"first call s": 20.0}, {"tokens/s": 900.0}


@pytest.mark.parametrize("found, returned, cut, verdict", [
    ([FIRST, RATE], 0, False, False),
    ([], -9, True, False),  # it was compiling
    ([FIRST], -9, True, True),  # and then hung: graphs fail at their second run, if at all
    ([{"failed": "XlaRuntimeError"}], 0, False, True),
    ([], -11, False, True),
])  # fmt: skip
def test_graphs_are_left_out_only_if_they_fail(found, returned, cut, verdict):
    assert gpu.broken([LIMITS, *({"work": "1 row", **row} for row in found)], returned, cut) == verdict


@pytest.mark.slow
@pytest.mark.triton_interpreted
def test_gpu_rehearses_on_a_cpu():
    """Every side of the sections runs, and finds what it looks for. Before a card is at hand, rehearse all of them:
    `python benchmarks/gpu.py --rehearse` takes some minutes."""
    sections = "attention,decode"
    command = [sys.executable, str(FOLDER / "gpu.py"), "--rehearse", f"--sections={sections}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "REHEARSAL" in done.stdout, done.stderr[-2000:]
    found = json.loads(Path(done.stdout.split()[-1]).read_text())
    missing = importlib.util.find_spec("torch") is None
    failed = [row for row in found["rows"] if "failed" in row and not (missing and row["side"] == "torch")]
    assert found["rehearsal"] and not failed
    wanted = {(name, side.name) for name in sections.split(",") for side in gpu.SECTIONS[name]}
    assert wanted <= {(row["section"], row["side"]) for row in found["rows"]}
