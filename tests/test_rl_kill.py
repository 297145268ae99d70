"""Killed at any moment of rollout, update or save, a run ends bit for bit like one that was never killed."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from lt_jax.models import huggingface
from tests.rl_runs import history, without_clock, write_problems
from tests.tiny_folder import make

KILLS = int(os.environ.get("LT_JAX_KILLS", "2"))  # ten and more of them by hand
STEPS = 4 + 4 * KILLS
PROGRAM = """
import sys
from lt_jax.rl import loop
from tests.rl_runs import BUDGET, settings

config = settings(*sys.argv[1:4], replay=True, updates=2, rollout={"eviction": BUDGET},
                  train={"steps": int(sys.argv[4]), "save_every": 1})
assert loop.learn(config, lambda line: print(line, flush=True))
"""


def start(*arguments) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, arguments), str(STEPS)], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip


def killed(run: subprocess.Popen, seconds: float, saved: Path | None = None) -> bool:
    """Kills a run so many seconds after the first step of its own, or after the first whole checkpoint in a folder;
    False if it was over before."""
    for line in run.stdout:
        if line.startswith("step "):
            break
    while saved and run.poll() is None and not any(each.name.isdigit() for each in saved.iterdir()):
        time.sleep(0.01)
    try:
        run.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        run.kill()
        run.wait()
        return True


def weights(folder):
    return jax.tree.map(np.asarray, huggingface.load(folder / "final", "float32")[0])


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_was_not(tmp_path):
    model, problems = make(tmp_path / "model"), write_problems(tmp_path / "problems.jsonl")
    whole = start(tmp_path / "whole", model, problems)
    text = whole.communicate()[0]
    assert whole.returncode == 0, text[-2000:]
    seconds = np.mean([line["seconds"] for line in history(tmp_path / "whole")[1:]])
    draw = random.Random(3)
    for left in reversed(range(KILLS)):  # in its rollouts, its updates and its saves
        saved = None if left else tmp_path / "killed/checkpoints"  # so that there is one to go on from
        run = start(tmp_path / "killed", model, problems)
        assert killed(run, seconds * draw.uniform(0, 3), saved), "it was over before"
    text = start(tmp_path / "killed", model, problems).communicate()[0]
    assert "exported to" in text and "going on from the checkpoint of step" in text, text[-2000:]
    jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    want, got = (without_clock(history(tmp_path / name)) for name in ("whole", "killed"))
    assert [line["step"] for line in got] == list(range(1, STEPS + 1)) and got == want
