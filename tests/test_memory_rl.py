"""Learning from trajectories: a rollout of them is one of `lt_jax.rl`, and the learner sees what was seen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from configs import memory_rl_tiny
from launch.settings import rl_config
from lt_jax import lifetimes
from lt_jax.data.problem import Problem
from lt_jax.decode import control
from lt_jax.decode.request import sample_seed
from lt_jax.errors import UserError
from lt_jax.layout.scheme import SEMANTICS, Scheme
from lt_jax.memory import rl
from lt_jax.memory.machine import NAMES
from lt_jax.memory.rl import TrajectoryConfig
from lt_jax.memory.syntax import syntax_of
from lt_jax.model import load
from lt_jax.models import huggingface
from lt_jax.rl.batch import batch_of
from lt_jax.rl.loop import make_logps
from lt_jax.rl.losses import LossConfig
from lt_jax.rl.mismatch import correct
from lt_jax.rl.mismatch_config import PRESETS
from lt_jax.rl.rewards import RewardConfig, RewardPool
from lt_jax.rl.rollout import Sampler, seed_of
from lt_jax.rl.validation import Validation
from lt_jax.training import mesh as meshes
from tests.memory_scripts import Script
from tests.rl_runs import BUDGET, history, replaced, settings
from tests.tiny_folder import make

QUIET = lambda line: None
HOW = TrajectoryConfig(turn=40, turns=8, malformed=3, wrong=0.125)
TOOLS = {"find": lambda what: f"{what} is at 12 and 13"}
RIGHT = ["1 2 3 4 5<commit>15</commit>", "6 7<call>find: 8</call>", "8<commit>9</commit>", "a<expand>1</expand>",
         "b<fold>1</fold>", "<final_answer>7</final_answer>"]  # fmt: skip
WRONG = ["1 2", "3<expand>4</expand>", "3 4<commit>7</commit>", "<final_answer>8</final_answer>"]
drawn = control.sample


class Half(Script):
    """The first two samples of every problem are scripted, the others are drawn. Log-probs are those of the draw."""

    def sample(self, logits, barred, seeds, index, how, axis=None):
        token, logp = drawn(logits, barred, seeds, index, how, axis)

        def pick(seeds, index, token):
            found = []
            for seed, at, own in zip(map(int, seeds), map(int, index), map(int, token), strict=True):
                script = self.tokens.get(seed)
                start = self.start.setdefault(seed, at)
                found.append(own if script is None else script[min(max(at - start, 0), len(script) - 1)])
            return np.asarray(found, np.int32)

        token = io_callback(pick, jax.ShapeDtypeStruct(index.shape, jnp.int32), seeds, index, token, ordered=True)
        heat = jnp.where(how.temperature > 0, how.temperature, 1.0)[:, None]
        every = jax.nn.log_softmax(jnp.where(barred, -jnp.inf, logits.astype(jnp.float32)) / heat)
        return token, jnp.take_along_axis(every, token[:, None], 1)[:, 0]


@pytest.fixture(scope="module", params=SEMANTICS)
def run(request, tmp_path_factory):
    """(semantics, the config of a run of a tiny random model, its model, what scripts its first two samples)."""
    folder = tmp_path_factory.mktemp(request.param)
    base = make(folder / "base", Scheme(method="memory", semantics=request.param))
    problems = folder / "problems.jsonl"
    problems.write_text("".join(f'{{"question": "Find {i}", "answer": "7"}}\n' for i in range(4)))
    config = settings(
        folder / "run", base, problems, reward=RewardConfig(workers=1), train={"steps": 2},
        rollout={"prompts": 2, "max_new": 150, "temperature": 0.7}, loss=LossConfig(kl_weight=0.0),
    )  # fmt: skip
    model = load(base)
    script, tokenize, end = Half(), model.tokenize, model.special.eos
    for number in range(4):
        for sample, turns in enumerate((RIGHT, WRONG)):
            seed = sample_seed(seed_of(config.train.seed, number), -1 - sample)
            script.turns(seed, [[*tokenize(text), end] for text in turns])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "sample", script.sample)
        yield request.param, config, model, script


@pytest.fixture(scope="module")
def sampled(run):
    """The groups of two problems, their rows as a batch, and the sampler."""
    _, config, model, _ = run
    sampler = Sampler(model, config, rl.responses(model, config, HOW, TOOLS))
    sampler.load(model.params)
    told = []
    groups = sampler.sample([model.ask(f"Find {i}") for i in range(2)], [0, 1], lambda place, group: told.append(place))
    assert sorted(told) == [0, 1]
    done = [each for group in groups for each in group]
    return groups, batch_of(done, max(len(each.row) for each in done), model.special.pad), sampler


def learned(run, sampled, **changed):
    """Log-probs by the learner of the tokens that were sampled, less those of the sampler."""
    _, config, model, _ = run
    _, batch, sampler = sampled
    mesh = meshes.make(config.train.mesh)
    given = meshes.place_batch(mesh, batch | changed)
    found = make_logps(model.config, config, sampler.never, mesh)(model.params, given)
    return np.asarray(found - given["logp_sampler"])[batch["response"]]


def test_xi_is_one_in_either_semantics(run, sampled):
    """And would not be with the positions, or the deaths, of an ordinary row."""
    semantics, (_, batch, _) = run[0], sampled
    assert np.abs(np.expm1(learned(run, sampled))).max() < 1e-4
    index = np.arange(batch["tokens"].shape[1])
    alive = np.where(batch["death"] > index + 1, lifetimes.NEVER, batch["death"])  # padding sees only itself
    assert np.abs(np.expm1(learned(run, sampled, death=alive))).max() > 1e-2
    positions = np.where(np.asarray(batch["positions"]) > 0, index, 0)
    plain = np.abs(np.expm1(learned(run, sampled, positions=positions))).max()
    assert plain > 1e-2 if semantics == "rebuild" else plain < 1e-4


def test_a_trajectory_is_one_response(run, sampled):
    semantics, _, model, _ = run
    groups = sampled[0]
    syntax = syntax_of(model.special, model.tokenizer)
    for group in groups:
        assert [each.sample for each in group] == [0, 1, 2, 3]
        right, wrong, *free = group
        assert [right.finish, wrong.finish] == ["eos", "eos"]
        texts = [model.text(each.tokens[each.written]) for each in group]
        assert texts[:2] == ["7", "8"]
        assert right.stands_for.counts == dict.fromkeys(NAMES.values(), 1) | {"commit": 2, "malformed": 0, "illegal": 0}
        assert wrong.stands_for.counts["malformed"] == wrong.stands_for.counts["illegal"] == 1
        assert all(each.stands_for.counts["malformed"] for each in free)
        for each in group:
            turns = each.stands_for.turns
            assert (~each.forced).sum() == sum(len(turn.logp) for turn in turns) == each.stands_for.tokens
            np.testing.assert_array_equal(
                each.tokens[~each.forced], [token for turn in turns for token in turn.turn.text + turn.turn.marked]
            )
            np.testing.assert_array_equal(each.visible[~each.forced], np.concatenate([turn.visible for turn in turns]))
            assert not each.forced[-1] and (each.position is not None)
        marks = right.tokens[right.closings].tolist()
        assert marks == [syntax.pair("commit")[1]] * 2
    assert {len(each.prompt) for each in groups[0]} == {len(groups[0][0].prompt)}
    seeds = [sample_seed(each.seed, turn) for group in groups for each in group for turn in range(8)]
    assert len(set(seeds)) == len(seeds)
    assert (np.diff(groups[0][0].position) < 0).any() == (semantics == "rebuild")


def test_a_correction_judges_the_whole_trajectory(sampled):
    """One impossible token in one segment: nothing of that trajectory is learned, all of the others is."""
    groups, batch, _ = sampled
    old, sampler = batch["logp_sampler"], batch["logp_sampler"].copy()
    last = np.flatnonzero(batch["response"][0])[-1]  # of the final answer, many edits behind the first segment
    sampler[0, last] += 12
    found = correct(PRESETS["paper"], jnp.asarray(old), jnp.asarray(sampler), jnp.asarray(batch["response"]))
    assert np.asarray(found.accepted).tolist() == [False] + [True] * 7
    assert not np.asarray(found.learned)[0].any()
    np.testing.assert_array_equal(np.asarray(found.learned)[1:], batch["response"][1:])
    assert len(groups[0][0].stands_for.turns) == 6


@pytest.mark.slow
def test_a_run_learns_and_says_what_was_done(run):
    _, config, model, _ = run
    said = []
    assert rl.learn(config, HOW, said.append, TOOLS)
    lines = history(config.folder)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert abs(line["xi_q01"] - 1) < 1e-4 and abs(line["xi_q99"] - 1) < 1e-4 and line["agreement_q05"] > 0.999
        assert line["grad_norm"] > 0 and line["without_signal"] == 0
        counted = line["memory_malformed"] + line["memory_illegal"]
        assert line["memory_commit"] >= 0.75 and line["memory_illegal"] >= 0.25 and line["memory_malformed"] > 1
        # One of four answers is right; each turn that was not possible costs an eighth.
        assert line["reward_math"] == 0.25 and line["reward"] == pytest.approx(0.25 - counted / 8, abs=1e-6)
    leaves = lambda params: map(np.asarray, jax.tree.leaves(params))
    trained = huggingface.load(f"{config.folder}/final", "float32")[0]
    moved = [np.abs(a - b).max() for a, b in zip(leaves(model.params), leaves(trained), strict=True)]
    assert min(moved) > 0
    assert load(f"{config.folder}/final").scheme == model.scheme
    with pytest.raises(UserError, match="memory.wrong is 0.125 there and 0.5 here"):
        rl.learn(config, dataclasses.replace(HOW, wrong=0.5), QUIET, TOOLS)


def test_a_row_has_a_limit(run, sampled):
    """No trajectory is longer than its row, whatever the environment says; it ends as one that is too long."""
    _, config, model, _ = run
    most = len(sampled[0][0][0].row) - 12
    sampler = Sampler(model, config, rl.responses(model, config, dataclasses.replace(HOW, row=most), TOOLS))
    sampler.engine = sampled[2].engine
    groups = sampler.sample([model.ask("Find 0")], [0], lambda place, group: None)
    assert all(len(each.row) <= most for each in groups[0])
    assert groups[0][0].finish == "length" and not groups[0][0].written.any()
    assert sampler.length == most


def test_held_out_problems_are_answered_by_trajectories_too(run, sampled):
    _, config, model, script = run
    script.turns(sample_seed(0, -1), [[*model.tokenize(text), model.special.eos] for text in RIGHT])
    with RewardPool(config.reward) as pool:
        validation = Validation(model, sampled[2], [Problem(f"Find {i}", "7") for i in range(2)], pool, QUIET)
        validation.engines["dense"] = sampled[2].engine
        found = validation(model.params, 1)
    sampled[2].load(model.params)
    assert found["dense_reward"] == 1.0 and found["dense_tokens"] == len(sampled[0][0][0].tokens)


def test_what_cannot_be_is_refused(run, tmp_path):
    _, config, model, _ = run
    with pytest.raises(UserError, match="rollout.kv is set"):
        rl.learn(replaced(config, "rollout", eviction=BUDGET), HOW, QUIET)
    with pytest.raises(UserError, match="one that was trained for method 'memory'"):
        rl.responses(model.decoding_as("vanilla"), config, HOW)
    with pytest.raises(UserError, match="rollout.max_thought is set"):
        rl.learn(replaced(config, "rollout", max_thought=8), HOW, QUIET)
    with pytest.raises(UserError, match="memory.wrong is -1"):
        TrajectoryConfig(wrong=-1)


def test_the_config_that_comes_along():
    config = memory_rl_tiny.get_config()
    config.model.path = "DIR"
    found, how = rl_config(config), TrajectoryConfig(**config.memory)
    assert config.task == "rl"
    assert how.row > found.rollout.max_prompt + found.rollout.max_new and found.rollout.eviction is None
    assert found.mismatch == PRESETS["paper"]
