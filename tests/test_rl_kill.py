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
PROGRAM = """
import sys
from lt_jax.rl import loop
from tests.rl_runs import BUDGET, settings

config = settings(*sys.argv[1:4], replay=True, updates=2, rollout={"eviction": BUDGET},
                  train={"steps": 8, "save_every": 1})
assert loop.learn(config, lambda line: print(line, flush=True))
"""


def start(*arguments) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, arguments)], env=environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip


def weights(folder):
    return jax.tree.map(np.asarray, huggingface.load(folder / "final", "float32")[0])


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_was_not(tmp_path):
    model, problems = make(tmp_path / "model"), write_problems(tmp_path / "problems.jsonl")
    began = time.monotonic()
    whole = start(tmp_path / "whole", model, problems)
    assert whole.wait() == 0, whole.stderr.read().decode()[-2000:]
    seconds, draw, killed = time.monotonic() - began, random.Random(3), 0
    while True:
        run = start(tmp_path / "killed", model, problems)
        if killed < KILLS:
            try:
                run.wait(seconds * draw.uniform(0.4, 0.9))  # what comes before is imports, and programs out of a cache
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
                killed += 1
                continue
        assert run.wait() == 0, run.stderr.read().decode()[-2000:]
        break
    jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    want, got = (without_clock(history(tmp_path / name)) for name in ("whole", "killed"))
    assert [line["step"] for line in got] == list(range(1, 9)) and got == want
    assert killed, "the run was over before it could be killed"
