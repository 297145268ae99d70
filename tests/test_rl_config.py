"""The settings of reinforcement learning: what is refused, the presets, and what command lines make of a config."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from absl import flags
from ml_collections import config_flags

from configs import rl_defaults, sparse_rl_tiny
from launch.settings import rl_config
from lt_jax.cache.policies.config import POLICIES
from lt_jax.errors import UserError
from lt_jax.models.config import LoraConfig
from lt_jax.rl import config as rl
from lt_jax.rl.config import ProblemsConfig, RlConfig, RolloutConfig, preset
from lt_jax.rl.losses import LossConfig
from lt_jax.rl.mismatch_config import PRESETS, MismatchConfig
from lt_jax.training.config import OptimizerConfig, TrainConfig

ROOT = Path(__file__).parents[1]
KV = {"policy": "rkv", "budget": 64, "buffer": 16}
NAN, INF = float("nan"), float("inf")


def refused(make, **given):
    """The line that a config is refused with."""
    with pytest.raises(UserError) as error:
        make(**given)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("given, line", [
    ({}, "data.path is empty; give a file of problems with answers, --config.data.path=problems.jsonl, or a number of"),
    (dict(paths=("",)), "data.path is empty"),
    (dict(paths=("a.jsonl",), embedded=5), "both data.path and data.embedded are given"),
    (dict(embedded=-1), "data.embedded is -1; it must be 0 or more"),
    (dict(embedded=5, held_out=-2), "data.held_out is -2; it must be 0 or more"),
    (dict(embedded=5, format="gsm8k"), "data.format is 'gsm8k', and embedded problems have none"),
    (dict(paths=("a.jsonl",), families=("gcd",)), "data.families is ('gcd',), which chooses among the embedded"),
    (dict(embedded=5, steps=(6,)), "data.steps is (6,); it is two numbers"),
])  # fmt: skip
def test_problems_that_are_refused(given, line):
    assert refused(ProblemsConfig, **given).startswith(line)


@pytest.mark.parametrize("given, line", [
    *((({name: 0}), f"rollout.{name} is 0; it must be 1 or more") for name in
      ("prompts", "max_prompt", "max_new", "block_steps")),
    (dict(group=1), "rollout.group is 1; a response is compared with the others of its group"),
    *((dict(temperature=value), f"rollout.temperature is {value}; it must be above 0") for value in (0, -1, NAN, INF)),
    (dict(rows=-1), "rollout: rows, resample and overlong must not be negative"),
    (dict(overlong=100, max_new=100), "rollout.overlong is 100; it must be below rollout.max_new (100)"),
    (dict(max_thought=0), "rollout.max_thought is 0; it must be 1 or more"),
    (dict(budgets=(96,)), "rollout.budgets and rollout.least_agreement are for a KV budget; set rollout.kv too"),
    (dict(least_agreement=0.5), "rollout.budgets and rollout.least_agreement are for a KV budget"),
    (dict(eviction=KV | {"policy": "lru"}), "rollout.kv is 'lru'; it is one of streaming, h2o, "),
    (dict(eviction=KV | {"policy": "full"}), "rollout.kv is 'full'; it is one of streaming, h2o, "),
    (dict(eviction=KV | {"budget": 8}), "rollout.budget 8 leaves no room beside the window (8)"),
    (dict(eviction=KV | {"budget": 0}), "rollout.budget is 0; it must be a number of keys, 1 or more"),
    (dict(eviction=KV | {"buffer": 0}), "rollout.buffer is 0; at least one token must pass"),
    (dict(eviction=KV | {"window": -1}), "rollout.window is -1; it cannot be negative"),
    (dict(eviction=KV | {"share": "rows"}), "rollout.share is 'rows'; it is None, 'heads' or 'layers'"),
    *((dict(eviction=KV, least_agreement=value), f"rollout.least_agreement is {value}; it must be above 0 and below 1")
      for value in (1.0, -0.5, NAN)),
    *((dict(eviction=KV, budgets=given), f"rollout.budgets is {given}; each must be above the one before, and above "
       "rollout.budget (64)") for given in ((64,), (96, 96), (128, 96), (96.5,), ("a",))),
])  # fmt: skip
def test_rollouts_that_are_refused(given, line):
    assert refused(RolloutConfig, **given).startswith(line)


def test_every_policy_that_evicts_makes_a_rollout():
    for policy in POLICIES:
        if policy != "full":
            assert RolloutConfig(eviction=KV | {"policy": policy}).eviction["policy"] == policy


def of(**given):
    return RlConfig(**{"folder": "run", "model": "model", "problems": ProblemsConfig(embedded=9, held_out=2), **given})


BUDGET = RolloutConfig(eviction=KV)


@pytest.mark.parametrize("given, line", [
    (dict(model=""), "model.path is empty; give a checkpoint folder, --config.model.path=DIR"),
    (dict(folder=""), "folder is empty; give the run a folder, --config.folder=runs/NAME"),
    (dict(advantage="gae"), "advantage is 'gae'; it is one of grpo, dr_grpo, rloo"),
    (dict(train=TrainConfig(steps=0, epochs=1.0)), "train.steps is the number of rollouts and must be given"),
    (dict(train=TrainConfig(steps=5, epochs=1.0)), "train.steps is the number of rollouts and must be given"),
    (dict(updates=0), "updates is 0, which does not divide rollout.prompts (8)"),
    (dict(updates=3), "updates is 3, which does not divide rollout.prompts (8): an update is made from whole groups"),
    (dict(updates=4, train=TrainConfig(accumulate=3)), "train.accumulate is 3, which does not divide the 16 responses"),
    (dict(replay=True), "replay is set, but without a KV budget the sampler sees what the learner sees; set rollout"),
    *((dict(dense_kl=value, rollout=BUDGET, replay=True), f"dense_kl is {value}; it must be a number, 0 or more")
      for value in (-1.0, NAN, INF)),
    (dict(dense_kl=0.1, rollout=BUDGET), "dense_kl is 0.1; it must be a number, 0 or more, and is for replay only"),
    (dict(train=TrainConfig(eval_every=5), problems=ProblemsConfig(embedded=9)),
     "train.eval_every is 5 and data.held_out is 0: there is nothing to evaluate on"),
    (dict(train=TrainConfig(optim=OptimizerConfig("muon")), lora=LoraConfig()), "optim.name is 'muon' and lora.rank"),
    (dict(rollout=dataclasses.replace(BUDGET, budgets=(96,))), "rollout.budgets is (96,) and rollout.least_agreement "
     "is 0.0; give both, or neither, or take preset 'adaptive'"),
    (dict(rollout=dataclasses.replace(BUDGET, least_agreement=0.5)), "rollout.budgets is () and rollout.least_agreeme"),
])  # fmt: skip
def test_runs_that_are_refused(given, line):
    assert of().updates == 1
    assert refused(of, **given).startswith(line)


@pytest.mark.parametrize("name", ["kl_weight", "entropy_weight"])
def test_weights_of_the_loss_are_numbers(name):
    for value in (-1.0, NAN, INF):
        assert refused(LossConfig, **{name: value}).startswith(f"loss.{name} is {value}; it must be a number")


@pytest.mark.parametrize("given, line", [
    (dict(veto="a"), "mismatch.veto is 'a'; it must be above 2.1e-09 and below 1"),
    (dict(band=0.5), "mismatch.band is 0.5; it is (low, high), such as (0.5, 1.5)"),
    (dict(band="0.5_1.5"), "mismatch.band is '0.5_1.5'; it is (low, high)"),
    (dict(band=(0.5, 1.0, 1.5)), "mismatch.band is (0.5, 1.0, 1.5); it is (low, high)"),
    (dict(tail=("a", 0.5)), "mismatch.tail is ('a', 0.5); it is (quantile, least xi)"),
    (dict(rollout_is="token", rollout_is_batch_normalize="no"), "mismatch.rollout_is_batch_normalize is 'no'; it is "),
    (dict(rollout_rs=5, rollout_rs_threshold=2), "mismatch.rollout_rs has '5'; criteria are token_k1"),
])  # fmt: skip
def test_corrections_of_a_wrong_type_are_refused(given, line):
    assert refused(MismatchConfig, **given).startswith(line)


def test_presets():
    for name in ("naive", "paper", "release"):
        for rollout in (BUDGET, RolloutConfig()):
            assert preset(name, rollout) == {"mismatch": PRESETS[name], "rollout": rollout, "replay": False}
    assert PRESETS["naive"] == MismatchConfig()
    assert preset("replay", BUDGET) == {"mismatch": MismatchConfig(), "rollout": BUDGET, "replay": True}
    found = preset("adaptive", BUDGET)
    assert found == {"mismatch": PRESETS["paper"], "replay": False, "rollout": found["rollout"]}
    assert (found["rollout"].budgets, found["rollout"].least_agreement) == ((96, 128, 192, 256), rl.LEAST_AGREEMENT)
    assert found["rollout"].eviction == KV
    # What the config says itself is kept, the one with the other's default.
    own = preset("adaptive", dataclasses.replace(BUDGET, budgets=(80, 100)))["rollout"]
    assert (own.budgets, own.least_agreement) == ((80, 100), rl.LEAST_AGREEMENT)
    own = preset("adaptive", dataclasses.replace(BUDGET, least_agreement=0.86))["rollout"]
    assert (own.budgets, own.least_agreement) == ((96, 128, 192, 256), 0.86)
    for name in rl.PRESETS:
        of(**preset(name, BUDGET))


def test_presets_that_are_refused():
    with pytest.raises(UserError, match="^preset is 'papers'; it is one of naive, paper, release, replay, adaptive$"):
        preset("papers", BUDGET)
    for name in ("replay", "adaptive"):
        with pytest.raises(UserError, match=f"^preset '{name}' is for a KV budget; set rollout.kv, or take another"):
            preset(name, RolloutConfig())
    layers = RolloutConfig(eviction=KV | {"budget": (64, 48)})
    with pytest.raises(UserError, match="^preset 'adaptive' needs rollout.budgets where every layer has a budget"):
        preset("adaptive", layers)


def command_line(*options):
    """The `RlConfig` of a command line, by the parser of the scripts."""
    values = flags.FlagValues()
    options = ("preset=paper", *options)  # what most of these tests change something of
    argv = ["train.py", f"--config={ROOT}/configs/sparse_rl_tiny.py", *(f"--config.{option}" for option in options)]
    with mock.patch.object(sys, "argv", argv):  # where config_flags looks for what is overridden
        config_flags.DEFINE_config_file("config", None, flag_values=values)
        values(argv)
    return rl_config(values.config)


def test_the_tiny_config():
    found = rl_config(sparse_rl_tiny.get_config())
    assert found == command_line("preset=replay")
    assert found.mismatch == PRESETS["naive"] and found.replay and found.lora is None
    assert found.rollout.eviction == KV | {"budget": 96} and found.problems.embedded and found.problems.paths == ()
    assert found.loss.clip is None and found.loss.length is None and found.train.attention is None
    assert found.method is found.wandb is found.export_dtype is found.rollout.max_thought is None


PAPER, RELEASE = PRESETS["paper"], PRESETS["release"]


@pytest.mark.parametrize("options, expected", [
    (["mismatch.veto=1e-3"], dataclasses.replace(PAPER, veto=1e-3)),
    (["mismatch.veto=none"], dataclasses.replace(PAPER, veto=None)),
    (["mismatch.veto=None"], dataclasses.replace(PAPER, veto=None)),
    (["mismatch.veto="], PAPER),
    (["mismatch.rollout_is_threshold=3"], dataclasses.replace(PAPER, rollout_is_threshold="3")),
    # Not 0.55 and 15, as Python reads these.
    (["mismatch.rollout_is_threshold=0.5_5"], dataclasses.replace(PAPER, rollout_is_threshold="0.5_5")),
    (["mismatch.rollout_is_threshold=1_5"], dataclasses.replace(PAPER, rollout_is_threshold="1_5")),
    (["mismatch.rollout_is=sequence"], dataclasses.replace(PAPER, rollout_is="sequence")),
    # Without weights there is no threshold of theirs and no normalisation.
    (["mismatch.rollout_is=none"], MismatchConfig(veto=1e-4)),
    (["mismatch.rollout_is=None"], MismatchConfig(veto=1e-4)),
    (["preset=release", "mismatch.rollout_is=none"], MismatchConfig(veto=1e-4, band=(0.5, 1.5))),
    (["preset=release", "mismatch.band=none", "mismatch.rollout_is_batch_normalize=false"], PAPER),
    (["preset=release", "mismatch.band=none", "mismatch.rollout_is_batch_normalize=none"], PAPER),
    (["mismatch.band=0.5,1.5", "mismatch.rollout_is_batch_normalize=True"], RELEASE),
    (["preset=naive", "mismatch.rollout_rs=token_k1,seq_mean_k3", "mismatch.rollout_rs_threshold=0.5_2,1"],
     MismatchConfig(rollout_rs="token_k1,seq_mean_k3", rollout_rs_threshold="0.5_2,1")),
    (["preset=naive", "mismatch.tail=(0.05,0.5)"], MismatchConfig(tail=(0.05, 0.5))),
    (["preset=replay"], MismatchConfig()),
])  # fmt: skip
def test_corrections_of_a_command_line(options, expected):
    found = command_line(*options)
    assert found.mismatch == expected and found.replay == ("preset=replay" in options)


@pytest.mark.parametrize("options, line", [
    (["mismatch.rollout_is_batch_normalize=yes"], "mismatch.rollout_is_batch_normalize is 'yes'; it is True or False"),
    (["mismatch.veto=low"], "mismatch.veto is 'low'"),
    (["mismatch.band=0.5"], "mismatch.band is 0.5"),
    (["mismatch.rollout_is=none", "mismatch.rollout_is_threshold=2"], "mismatch.rollout_is_threshold is 2, but"),
    (["preset=replay", "rollout.kv="], "preset 'replay' is for a KV budget; set rollout.kv, or take another preset"),
    (["rollout.least_agreement=0.8"], "rollout.budgets is () and rollout.least_agreement is 0.8; give both"),
    (["rollout.window=100"], "rollout.budget 96 leaves no room beside the window (100)"),
    (["data.path=problems.jsonl"], "both data.path and data.embedded are given"),
    (["loss.kind=dr_grpo"], "loss.length is None and loss.kind is 'dr_grpo'; dr_grpo needs a length above 0"),
])  # fmt: skip
def test_command_lines_that_are_refused(options, line):
    with pytest.raises(UserError) as error:
        command_line(*options)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_settings_of_the_kv_budget():
    find = lambda *options: command_line(*(f"rollout.{option}" for option in options)).rollout
    assert find("kv=").eviction is None
    assert find("kv=snapkv", "budget=32").eviction == {"policy": "snapkv", "budget": 32, "buffer": 16}
    assert find("window=4", "share=layers").eviction == KV | {"budget": 96, "window": 4, "share": "layers"}
    assert find("max_thought=50").max_thought == 50
    adaptive = command_line("preset=adaptive", "rollout.least_agreement=0.86").rollout
    assert (adaptive.budgets, adaptive.least_agreement) == ((144, 192, 288, 384), 0.86)
    adaptive = command_line("preset=adaptive", "rollout.budgets=120,").rollout
    assert (adaptive.budgets, adaptive.least_agreement) == ((120,), rl.LEAST_AGREEMENT)


def test_a_dash_is_what_the_folder_says_and_an_empty_text_is_empty():
    values = rl_defaults.get_config()
    values.model.path, values.data.path = "model", ("a.jsonl", "b.jsonl")
    found = rl_config(values).problems
    assert (found.chat, found.system, found.prefix, found.suffix) == (None,) * 4 and found.format is None
    assert found.paths == ("a.jsonl", "b.jsonl")
    values.data.update(chat="qwen", system="", prefix="Q: ", suffix="-")
    found = rl_config(values).problems
    assert (found.chat, found.system, found.prefix, found.suffix) == ("qwen", "", "Q: ", None)


def test_zeros_and_empty_texts_of_a_config_are_its_defaults():
    values = sparse_rl_tiny.get_config()
    values.loss.update(kind="dr_grpo", length=384, clip=(0.1, 0.3))
    values.lora.rank, values.log.wandb, values.model.method, values.train.attention = 4, "project", "vanilla", "dense"
    found = rl_config(values)
    assert (found.loss.length, found.loss.clip, found.lora) == (384, (0.1, 0.3), LoraConfig(rank=4))
    assert (found.wandb, found.method, found.train.attention) == ("project", "vanilla", "dense")


@pytest.mark.parametrize("option, line", [
    ("preset=papers", "error: preset is 'papers'; it is one of naive, paper, release, replay, adaptive\n"),
    ("rollout.kv=lru", "error: rollout.kv is 'lru'; it is one of streaming, "),
    ("mismatch.vito=1", "error: unknown config key --config.mismatch.vito: config.mismatch has no key 'vito'; did"),
])  # fmt: skip
def test_the_script_ends_with_one_line(option, line):
    command = [sys.executable, "launch/train.py", "--config=sparse_rl_tiny", f"--config.{option}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_settings_without_what_they_are_for_are_refused():
    for options, why in (
        (["rollout.kv=", "rollout.window=4"], "rollout.window is given, but no KV policy"),
        (["preset=replay", "rollout.budgets=(128,)", "rollout.least_agreement=0.9"], "the budget would never grow"),
        (["preset=replay", "rollout.kv="], "set rollout.kv, or take another preset"),
    ):
        with pytest.raises(UserError) as caught:
            command_line(*options)
        assert why in str(caught.value)


def test_the_advantage_is_that_of_the_paper_of_the_loss():
    for kind, own in {"grpo": "grpo", "dr_grpo": "dr_grpo", "rloo": "rloo", "dapo": "grpo", "gspo": "grpo"}.items():
        length = ["loss.length=330"] if kind == "dr_grpo" else []
        assert command_line(f"loss.kind={kind}", *length).advantage == own
    assert command_line("loss.kind=rloo", "advantage=grpo").advantage == "grpo"
