"""The arms side by side: trained once, measured once, in one table and one report."""

import dataclasses
from pathlib import Path

import pytest

from configs import rl_demo as demo_config
from launch.settings import arms_config
from lt_jax import rl_demo
from lt_jax.errors import UserError
from lt_jax.rl.config import preset
from tests.rl_runs import BUDGET, replaced, settings
from tests.tiny_folder import make


def test_arms_of_the_config_differ_in_what_their_names_say():
    config = demo_config.get_config()
    config.arms, config.seeds = ("dense", "naive", "paper", "release", "replay", "adaptive", "naive:snapkv"), (0, 7)
    arms = arms_config(config).arms
    assert len(arms) == 14 and {arm.model for arm in arms.values()} == {"runs/rl_demo/start/final"}
    assert arms["dense-0"].rollout.eviction is None and arms["naive-snapkv-0"].rollout.eviction["policy"] == "snapkv"
    assert arms["replay-7"].replay and not arms["paper-7"].replay and arms["paper-7"].train.seed == 7
    assert arms["adaptive-0"].rollout.budgets == (128, 160, 224) and not arms["release-0"].rollout.budgets
    assert arms["paper-0"].mismatch == preset("paper", arms["paper-0"].rollout)["mismatch"]
    assert arms["release-0"].mismatch.band and not arms["naive-0"].mismatch.veto
    assert len({arm.folder for arm in arms.values()}) == 14


def test_what_was_trained_and_measured_is_not_done_again(tmp_path):
    make(tmp_path / "start" / "final")
    whole = arms_config(demo_config.get_config())
    of = whole.arms["dense-0"].problems
    plain = settings(tmp_path / "dense", tmp_path / "start" / "final", tmp_path, train={"steps": 1})
    plain = replaced(dataclasses.replace(plain, problems=of), "rollout", max_prompt=48, max_new=16, prompts=1, group=2)
    sparse = replaced(dataclasses.replace(plain, folder=str(tmp_path / "naive")), "rollout", eviction=BUDGET)
    config = dataclasses.replace(
        whole, out=str(tmp_path), start=dataclasses.replace(whole.start, folder=str(tmp_path / "start")),
        arms={"dense": plain, "naive": sparse}, problems=4, eviction=BUDGET,
    )  # fmt: skip
    said = []
    found = rl_demo.compare(config, said.append)
    assert list(found) == ["start", "dense", "naive"] and all(len(each.dense) == 4 for each in found.values())
    assert sum(line.startswith("\narm") for line in said) == 2
    again = []
    assert rl_demo.compare(config, again.append) == found and not again
    with pytest.raises(UserError, match="naive: there is a run of other settings"):
        other = replaced(sparse, "rollout", max_new=12)
        rl_demo.compare(dataclasses.replace(config, arms={"naive": other}), again.append)
    text = rl_demo.table(found)
    assert [line.split()[0] for line in text.splitlines()] == ["arm", "start", "dense", "naive"]
    page = (Path(tmp_path) / "report.html").read_text()
    assert "dense" in page and "naive" in page and "reward" in page
