"""What a rollout is made in: the memory of its cache, and the seeds of its draws."""

import dataclasses

import jax
import numpy as np
import pytest

from lt_jax.decode.record import as_row
from lt_jax.model import load
from lt_jax.rl.rollout import Sampler, seed_of
from tests.rl_runs import settings
from tests.tiny_folder import make


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(make(tmp_path_factory.mktemp("models") / "base"))


def sampler(model, **rollout):
    config = settings("run", "model", "problems.jsonl", rollout={"max_prompt": 150, "max_new": 4096, **rollout})
    made = Sampler(model, config)
    made.load(model.params)
    return made


def test_the_cache_at_the_lengths_of_the_paper_is_a_fraction_of_a_dense_one(model):
    """Prompts of 150 tokens, responses of 4,096, a budget of 512 + 128 keys; from the arrays that are there."""
    sparse = sampler(model, eviction={"policy": "rkv", "budget": 512, "buffer": 128})
    dense = sampler(model)
    held = lambda each: sum(x.nbytes for x in jax.tree.leaves(each.ready().cache))
    assert held(sparse) < 0.17 * held(dense)  # the goal is 0.47
    assert sparse.cache_bytes(evicts=False) == dense.cache_bytes()
    assert abs(sparse.cache_bytes() - held(sparse)) < 0.01 * held(sparse)
    assert abs(dense.cache_bytes() - held(dense)) < 0.01 * held(dense)
    replay = Sampler(model, dataclasses.replace(sparse.config, replay=True))
    replay.load(model.params)
    recorded = held(replay) - held(sparse)
    assert recorded == replay.record_bytes() and held(replay) < 0.25 * held(dense)


def test_a_rollout_begins_with_the_least_cache(model):
    made = sampler(model, max_new=400)
    engine = made.ready()
    grown = engine.cache.nbytes
    engine.renew()
    assert made.record_bytes() == 0 and made.cache_bytes() > 0  # which are asked for between rollouts, and make no room
    assert engine.cache.nbytes < grown / 2 and made.ready().cache.nbytes == grown


def test_the_programs_that_are_estimated_are_those_that_run(model):
    """Three prompts are read two together at most, in passes of 64 tokens where they have 33 to 64."""
    made = sampler(model, max_prompt=40, max_new=8, group=2)
    block, prefill = made.ready().lowered(40, 3, twins=True)
    shapes = {x.shape for x in jax.tree.leaves(prefill.in_avals)}
    assert (2, 64) in shapes and (3, 64) not in shapes
    block.compile(), prefill.compile()
    compiled = []
    heard = lambda name, seconds, fun_name="", **_: compiled.append((name.split("/")[-1], fun_name))
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        made.sample([as_row(np.arange(40) % 90 + number) for number in range(2)], [0, 1], lambda *_: None)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    again = [name for what, name in compiled if what == "backend_compile_duration"]
    assert sum("prefill" in name for name in again) == 1, "the last tokens, of all samples; the rest was compiled"
    assert not any("decode_block" in name for name in again), again


def test_every_problem_of_a_run_has_draws_of_its_own():
    seeds = {seed_of(seed, number) for seed in range(3) for number in range(1000)}
    assert len(seeds) == 3000 and seed_of(1, 5) == seed_of(1, 5)
