"""Rollouts and updates on one mesh of eight CPU devices: the rewards and losses of one device."""

import pytest

from lt_jax.rl import loop
from lt_jax.training.config import MeshConfig, OptimizerConfig
from tests.rl_runs import BUDGET, history, settings, write_problems
from tests.test_split import over_eight_devices
from tests.tiny_folder import make

PROGRAM = '''
import sys
from lt_jax.rl import loop
from lt_jax.training.config import MeshConfig
from tests.test_rl_mesh import asked

config = asked(*sys.argv[1:5], mesh=MeshConfig(data=2, fsdp=2, tensor=2))
assert loop.learn(config, lambda line: None)
'''
# Adam's eps is large, so that gradients that are zero but for rounding make no steps of full size.
STEADY = OptimizerConfig(learning_rate=3e-3, warmup=0.0, end_fraction=1.0, eps=1e-2)


def asked(folder, model, problems, learner, mesh):
    return settings(folder, model, problems, updates=2, replay=learner == "replay", rollout={"eviction": BUDGET},
                    train={"steps": 5, "optim": STEADY, "mesh": mesh})  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["dense", "replay"])
def test_eight_devices_learn_what_one_does(learner, tmp_path):
    model, problems = make(tmp_path / "model"), write_problems(tmp_path / "problems.jsonl")
    assert loop.learn(asked(tmp_path / "one", model, problems, learner, MeshConfig()), lambda line: None)
    over_eight_devices(PROGRAM, *map(str, (tmp_path / "eight", model, problems, learner)))
    one, eight = history(tmp_path / "one"), history(tmp_path / "eight")
    assert len(one) == len(eight) == 5
    for a, b in zip(one, eight, strict=True):
        assert a["reward"] == pytest.approx(b["reward"], abs=1e-5) and a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["agreement_q05"] == pytest.approx(b["agreement_q05"], abs=1e-3)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


