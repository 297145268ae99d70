"""A whole run of reinforcement learning: what it writes, that it goes on bit for bit, and what it says to bad input."""

import dataclasses
import signal
import threading
import time

import jax
import numpy as np
import pytest

import lt_jax
from lt_jax.decode import Engine
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from lt_jax.models import huggingface
from lt_jax.models.config import LoraConfig
from lt_jax.rl import loop
from lt_jax.rl.clock import compiling
from lt_jax.rl.config import ProblemsConfig, preset
from lt_jax.rl.losses import LossConfig
from lt_jax.rl.rewards import RewardConfig
from lt_jax.rl.rollout import Sampler
from lt_jax.training.config import OptimizerConfig
from tests.rl_runs import BUDGET, history, replaced, rewarded, settings, without_clock, write_problems
from tests.tiny_folder import make

QUIET = lambda line: None


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data") / "problems.jsonl")


def weights(folder):
    return jax.tree.map(np.asarray, huggingface.load(folder, "float32")[0])


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(base, problems, tmp_path_factory):
    """A run of three rollouts under a budget that never stopped, with what it said."""
    said = []
    config = settings(
        tmp_path_factory.mktemp("runs") / "whole", base, problems, held_out=4, updates=2,
        rollout={"eviction": BUDGET}, train={"save_every": 1, "accumulate": 2, "eval_every": 3},
    )  # fmt: skip
    assert loop.learn(config, said.append)
    return config, said


def test_what_a_run_writes(whole):
    config, said = whole
    lines = history(config.folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    steps, measured = lines[:3], lines[3]
    for line in steps:
        assert line["grad_norm"] > 0 and line["reward"] > 0 and line["cache_bytes"] < line["cache_bytes_dense"]
        assert 0 < line["agreement_q05"] <= 1 and line["seconds_rollout"] > 0 and line["budget"] == 24
        assert line["responses_per_row"] == 4
        assert line["problems_asked"] == 4 * line["step"] and line["reward"] == pytest.approx(
            line["reward_tests.rl_rewards.vowels"], abs=1e-6
        )
    assert {"eval_dense_reward", "eval_sparse_reward"} <= set(measured)
    text = "\n".join(said)
    assert "the learner reads a prompt once for 4 of its responses: rows of at most 256 tokens" in said
    assert "memory per device" in text and "beside that, GiB: rollout" in text and "exported to" in text
    assert lt_jax.load(f"{config.folder}/final").generate("Sum 1+1", max_new=2) is not None


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_bit_for_bit(whole, base, problems, tmp_path):
    config, _ = whole
    again = dataclasses.replace(config, folder=str(tmp_path / "again"))
    for steps in (1, 2, 3):  # three processes, as far as what they keep is concerned
        shorter = replaced(again, "train", steps=steps, eval_every=0 if steps < 3 else 3)
        assert loop.learn(shorter, QUIET)
    same(weights(f"{config.folder}/final"), weights(f"{again.folder}/final"))
    assert without_clock(history(again.folder))[-2:] == without_clock(history(config.folder))[-2:]


def test_a_signal_stops_after_a_rollout_and_another_run_is_refused(whole, tmp_path):
    config, _ = whole
    config = dataclasses.replace(config, folder=str(tmp_path / "stopped"))

    def stop(line):
        if line.startswith("memory of a step"):  # in the midst of the first step
            signal.raise_signal(signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    assert loop.learn(config, stop) is None
    assert [line["step"] for line in history(config.folder)] == [1]
    with pytest.raises(UserError, match=r"rollout.max_new is 48 there and 40 here"):
        loop.learn(replaced(config, "rollout", max_new=40), QUIET)
    assert loop.learn(replaced(config, "train", steps=2), QUIET)


def test_a_signal_gives_up_a_rollout_after_a_block_and_the_run_goes_on_bit_for_bit(whole, tmp_path, monkeypatch):
    config, _ = whole
    config = replaced(dataclasses.replace(config, folder=str(tmp_path / "stopped")), "train", save_every=0)
    sample, step, rounds = Sampler.sample, Engine._step, []

    def signalled(*given):
        rounds.append(0)
        if len(rounds) == 3:  # two steps are done, and none of them is saved yet
            signal.raise_signal(signal.SIGTERM)
        return sample(*given)

    def counted(engine):
        if rounds:
            rounds[-1] += 1
        return step(engine)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "sample", signalled)
        patch.setattr(Engine, "_step", counted)
        assert loop.learn(config, QUIET) is None
    assert rounds[2] == 1 < rounds[0], "not after the first block"
    assert [line["step"] for line in history(config.folder)] == [1, 2]
    assert loop.learn(config, QUIET)
    assert without_clock(history(config.folder)) == without_clock(history(whole[0].folder))
    same(weights(f"{whole[0].folder}/final"), weights(f"{config.folder}/final"))


def test_a_signal_in_the_first_rollout_saves_nothing_and_loses_nothing(whole, tmp_path, monkeypatch):
    config = dataclasses.replace(whole[0], folder=str(tmp_path / "stopped"))
    sample = Sampler.sample

    def signalled(*given):
        signal.raise_signal(signal.SIGTERM)
        return sample(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "sample", signalled)
        assert loop.learn(config, QUIET) is None
    assert not history(config.folder)
    assert loop.learn(replaced(config, "train", steps=1, eval_every=0), QUIET)
    assert without_clock(history(config.folder))[0] == without_clock(history(whole[0].folder))[0]


def test_compiling_is_no_time_of_a_rollout(whole):
    first, *later = history(whole[0].folder)[:3]
    parts = [first[f"seconds_{name}"] for name in ("rollout", "reward", "logps", "update")]
    assert first["seconds_compile"] > 0.1 and first["seconds"] == pytest.approx(sum(parts))
    assert all(line["seconds_compile"] < first["seconds_compile"] / 2 for line in later)
    nested = lambda x: x
    for _ in range(20):  # each is traced inside of the next
        nested = jax.jit(lambda x, inner=nested: inner(x) + 1)
    with compiling() as spent:
        assert spent() == 0
        began = time.perf_counter()
        nested(np.float32(3))
        assert 0 < spent() <= time.perf_counter() - began, "what is inside of another counts twice"


@pytest.mark.slow
def test_with_room_for_all_keys_every_arm_makes_the_same_update(base, problems, tmp_path):
    steady = OptimizerConfig(learning_rate=3e-2, warmup=0.0, end_fraction=1.0, eps=1e-2)  # Adam's makes noise of zeros
    train = {"steps": 2, "optim": steady}
    plain = settings(tmp_path / "dense", base, problems, train=train, loss=LossConfig(kl_weight=0.0))
    assert loop.learn(plain, QUIET)
    want, told = weights(tmp_path / "dense" / "final"), history(plain.folder)
    roomy = replaced(plain, "rollout", eviction={"policy": "rkv", "budget": 96, "buffer": 8})
    for arm in ("naive", "paper", "release", "replay", "adaptive"):
        config = dataclasses.replace(roomy, folder=str(tmp_path / arm), **preset(arm, roomy.rollout))
        assert loop.learn(config, QUIET)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), want, weights(tmp_path / arm / "final"))
        for ours, theirs in zip(history(config.folder), told, strict=True):
            assert ours["reward"] == theirs["reward"] and ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
            assert abs(ours["xi_q01"] - 1) < 1e-4 and abs(ours["xi_q99"] - 1) < 1e-4 and ours["rejected"] == 0


@pytest.mark.parametrize("policy", ["rkv", "snapkv", "h2o", "streaming", "tova", "knorm", "keydiff", "random"])
def test_replay_is_the_policy_that_sampled(policy, base, problems, tmp_path):
    """Under the recorded deaths xi is 1 up to rounding, with rows that are out of phase; without them it is not."""
    config = settings(tmp_path / "replay", base, problems, train={"steps": 1}, replay=True,
                      rollout={"eviction": {"policy": policy, "budget": 16, "buffer": 8}, "rows": 6})  # fmt: skip
    assert loop.learn(config, QUIET)
    (line,) = history(config.folder)
    assert abs(line["xi_q01"] - 1) < 1e-4 and abs(line["xi_q99"] - 1) < 1e-4 and line["logprob_abs_diff"] < 2e-5
    assert line["responses_per_row"] == 1  # the keys of a prompt die at another time for each response
    if policy == "rkv":
        dense = dataclasses.replace(config, folder=str(tmp_path / "dense"), replay=False)
        assert loop.learn(dense, QUIET)
        assert history(dense.folder)[0]["logprob_abs_diff"] > 1e-3


@pytest.mark.parametrize("kind", ["thoughts", "thoughts in a budget", "lora", "dense kl", "bfloat16"])
def test_other_runs(kind, base, problems, tmp_path):
    more, rollout, model = {}, {"eviction": BUDGET}, base
    if kind.startswith("thoughts"):
        model = make(tmp_path / "model", Scheme(n_gist=2))
        rollout = {"max_thought": 8} | ({"eviction": BUDGET} if "budget" in kind else {})
        more = {"replay": "budget" in kind}
    if kind == "lora":
        more = {"lora": LoraConfig(rank=2)}
    if kind == "dense kl":
        more = {"replay": True, "dense_kl": 0.1}
    train = {"steps": 2} | ({"params_dtype": "bfloat16"} if kind == "bfloat16" else {})
    config = settings(tmp_path / "run", model, problems, rollout=rollout, train=train, **more)
    assert loop.learn(config, QUIET)
    first, last = history(config.folder)
    assert last["grad_norm"] > 0
    if kind.startswith("thoughts"):
        assert last["compressions"] > 0 and abs(first["xi_q01"] - 1) < 1e-4  # the deaths are the layout's
    if kind == "dense kl":
        assert last["dense_kl_loss"] > 0
    start, end = weights(model), weights(tmp_path / "run" / "final")
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), start, end))) > 1e-4


def test_rewards_that_go_wrong_are_counted_and_the_run_goes_on(base, problems, tmp_path):
    config = settings(tmp_path / "run", base, problems, train={"steps": 1})
    cases = {"raises": "no verdict today", "nan": "finite", "hangs": "no verdict within"}
    for name, why in cases.items():
        said = []
        wrong = dataclasses.replace(config, folder=str(tmp_path / name),
                                    reward=rewarded(name, seconds=0.05 if name == "hangs" else 10.0))  # fmt: skip
        if name == "hangs":
            wrong = replaced(wrong, "rollout", prompts=1, group=2)
        assert loop.learn(wrong, said.append)
        assert any(why in line for line in said), said
        (line,) = history(wrong.folder)
        assert line["reward_failures"] == wrong.rollout.responses and line["without_signal"] == 1
    with pytest.raises(UserError, match="gave 1"):
        loop.learn(dataclasses.replace(config, reward=rewarded("short", listed=("tests.rl_rewards:short",))), QUIET)


def test_all_rewards_equal_change_nothing_and_are_asked_again_where_wanted(base, problems, tmp_path):
    config = settings(tmp_path / "same", base, problems, train={"steps": 1}, reward=rewarded("same"),
                      loss=LossConfig(kl_weight=0.0), rollout={"resample": 2})  # fmt: skip
    assert loop.learn(config, QUIET)
    (line,) = history(config.folder)
    assert line["without_signal"] == 1 and line["loss"] == 0 and line["grad_norm"] == 0
    assert line["problems_asked"] == 12 and line["resampled"] == 8
    same(weights(base), weights(tmp_path / "same" / "final"))


def test_prompts_that_are_too_long_are_left_out(base, tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        "".join(f'{{"question": "{"word " * (40 if i % 2 else 1)}{i}", "answer": "{i}"}}\n' for i in range(8))
    )
    config = settings(tmp_path / "run", base, path, train={"steps": 1})
    assert loop.learn(config, QUIET)
    (line,) = history(config.folder)
    assert line["prompts_left_out"] > 0 and line["problems_asked"] == 4 + line["prompts_left_out"]
    path.write_text('{"question": "' + "word " * 50 + '", "answer": "1"}\n')
    with pytest.raises(UserError, match="longer than rollout.max_prompt"):
        loop.learn(dataclasses.replace(config, folder=str(tmp_path / "long")), QUIET)


def test_a_budget_that_grew_is_gone_on_with(base, problems, tmp_path):
    """The agreement of a random model is far below 1, so that the budget grows after each of the first rollouts."""
    rollout = {"eviction": BUDGET, "budgets": (32, 48), "least_agreement": 0.9999, "resample": 1, "rows": 8}
    config = settings(tmp_path / "whole", base, problems, rollout=rollout, train={"save_every": 1, "steps": 4})
    said = []
    assert loop.learn(config, said.append)
    assert [line["budget"] for line in history(config.folder)] == [24, 32, 48, 48]
    assert sum("the budget grows from" in line for line in said) == 2
    again = dataclasses.replace(config, folder=str(tmp_path / "again"))
    for steps in (1, 4):
        assert loop.learn(replaced(again, "train", steps=steps), QUIET)
    assert without_clock(history(again.folder)) == without_clock(history(config.folder))
    same(weights(tmp_path / "whole" / "final"), weights(tmp_path / "again" / "final"))


def test_a_changed_number_of_problems_is_another_run(base, tmp_path):
    config = settings(tmp_path / "run", base, tmp_path, train={"steps": 1}, loss=LossConfig(kl_weight=0.0))
    embedded = dataclasses.replace(config, problems=ProblemsConfig(embedded=50, families=("gcd",), prefix=""))
    embedded = replaced(embedded, "rollout", max_prompt=48, max_new=8)
    assert loop.learn(embedded, QUIET)
    with pytest.raises(UserError, match="problems.embedded is 50 there and 40 here"):
        loop.learn(replaced(embedded, "problems", embedded=40), QUIET)


def test_a_function_of_ones_own_needs_no_answers(base, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(f'{{"question": "What is {i}?"}}\n' for i in range(8)))
    config = settings(tmp_path / "run", base, path, train={"steps": 1}, count_rejected=False,
                      loss=LossConfig(kl_weight=0.0, count_rejected=False))  # fmt: skip
    assert loop.learn(config, QUIET)
    assert history(config.folder)[0]["reward"] > 0
    with pytest.raises(UserError, match="questions.jsonl:1: no answer"):
        math = dataclasses.replace(config, folder=str(tmp_path / "math"), reward=RewardConfig(workers=1))
        loop.learn(math, QUIET)
