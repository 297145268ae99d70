"""Completions as a batch: what is in it, a training step on it, what is refused, and what stays on the device."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lt_jax.errors import UserError
from lt_jax.lifetimes import NEVER
from lt_jax.rl import batch_of
from lt_jax.training import mesh as meshes
from lt_jax.training import optimizer, step
from lt_jax.training import state as states
from tests.test_score import MODEL, PARAMS, SPECIAL, sampled
from tests.training_tools import config

S = 80


@pytest.mark.parametrize("name", ["thoughts", "rkv", "rkv layers", "rkv heads"])
def test_a_batch_says_what_the_completions_say(name):
    done = sampled(name)
    batch = batch_of(done, S, SPECIAL.pad, rows=5)
    if name != "thoughts":
        each = (1, 1) if name == "rkv layers" else (MODEL.layers, 1 if name == "rkv heads" else MODEL.kv_heads)
        assert isinstance(batch["death"], jax.Array) and batch["death"].shape == (5, *each, S)
    index, death = np.arange(S), np.asarray(batch["death"])
    for row, c in enumerate(done):
        n, own, sampled_here = len(c.row), np.asarray(c.lifetimes().death)[0], np.flatnonzero(~c.forced) + len(c.prompt)
        np.testing.assert_array_equal(batch["tokens"][row, :n], c.row)
        np.testing.assert_array_equal(np.flatnonzero(batch["response"][row]), sampled_here)
        np.testing.assert_array_equal(np.flatnonzero(batch["weights"][row]), sampled_here - 1)
        np.testing.assert_array_equal(batch["logp_sampler"][row, sampled_here], c.logp[~c.forced])
        np.testing.assert_array_equal(death[row, ..., :n], np.minimum(own, n))  # nobody behind the row's end sees them
        assert (death[row, ..., n:] == index[n:] + 1).all() and (own < n).any()
        np.testing.assert_array_equal(batch["since"][row], np.where(index < n, np.pad(c.since, (0, S - n)), index))
    padding = np.asarray(step.padding(batch))
    np.testing.assert_array_equal(padding, index >= np.array([len(c.row) for c in done] + [0, 0])[:, None])


@pytest.mark.parametrize("name", ["thoughts", "rkv"])
def test_a_training_step_on_completions(name):
    done = sampled(name)
    train = config(attention="blocked", gist_rule=done[0].gist_rule, accumulate=2)
    mesh, tx = meshes.make(train.mesh, jax.devices()[:1]), optimizer.make(train.optim, 6)
    state, frozen = states.create(PARAMS, MODEL, tx, jax.random.key(0), mesh)
    batch = meshes.place_batch(mesh, batch_of(done, S, SPECIAL.pad, rows=4))
    _, found = step.make_step(MODEL, train, tx, mesh, state)(state, frozen, batch)
    assert found["tokens"] == sum(len(c.row) for c in done)
    assert found["trained"] == sum((~c.forced).sum() for c in done)
    # The loss is at temperature 1 and the samples are at 0.8; it is the mean over what was sampled either way.
    assert np.isfinite(found["loss"]) and found["grad_norm"] > 0


def test_records_stay_on_the_device_until_asked_for():
    (first, *_) = done = sampled("rkv")
    assert all(isinstance(c.record, jax.Array) and c.record.shape[-1] == S for c in done)

    @functools.partial(jax.jit, static_argnums=1)
    def death(records, length):  # whoever fetched a record would fail here, where it has no values yet
        given = [dataclasses.replace(c, record=own) for c, own in zip(done, records, strict=True)]
        return batch_of(given, length, SPECIAL.pad)["death"]

    for length in (S - 8, S + 16):
        found = death([c.record for c in done], length)
        np.testing.assert_array_equal(found, batch_of(done, length, SPECIAL.pad)["death"])
        for c, own in zip(done, found, strict=True):
            n = len(c.row)
            np.testing.assert_array_equal(own[..., :n], np.minimum(c.lifetimes().death[0], n))
    assert isinstance(first.evicted, np.ndarray) and first.evicted.shape[-1] == len(first.row)
    assert (first.evicted < NEVER).any()


def test_what_is_no_batch_is_refused_in_one_line():
    done = sampled("rkv")
    unknown = dataclasses.replace(done[0], record=None, unrecorded=True)
    for given, options, line in (
        (done, dict(length=40), "request 0: 45 tokens do not fit into rows of 40; raise the length"),
        (done, dict(length=S, rows=2), "3 completions do not fit into a batch of 2 rows"),
        ((done[0], sampled("rkv layers")[0]), dict(length=S), "must be of one engine"),
        ((unknown,), dict(length=S), "request 0: its evictions were not recorded; set DecodeConfig.horizon"),
    ):
        with pytest.raises(UserError, match=line):
            batch_of(given, pad=SPECIAL.pad, **options)
    with pytest.raises(UserError, match="were not recorded"):
        unknown.lifetimes()
