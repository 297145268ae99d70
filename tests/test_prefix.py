"""Rows that start from the longest prefix that is there: exact wherever they do, and not at all where they must not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.cache.policies import Eviction
from lt_jax.decode import DecodeConfig, Engine, Request, Sampling, Usage, control
from lt_jax.decode.prefix import WORTH, Held, reusable
from lt_jax.decode.record import as_row
from lt_jax.decode.sample import sample
from lt_jax.decode.setup import rules_of
from lt_jax.layout.row import Role, Row
from lt_jax.layout.scheme import Scheme
from lt_jax.lifetimes import NEVER
from lt_jax.models import decoder
from tests.test_decode import LONGEST, MODEL, SPECIAL, params, replay

VANILLA, THOUGHTS = Scheme(method="vanilla"), Scheme(n_gist=3)
RNG = np.random.default_rng(0)
SYSTEM, QUESTIONS = RNG.integers(0, 100, 60), RNG.integers(0, 100, (6, 12))
RKV = Eviction("rkv", 64, 32, window=8)


@pytest.fixture(scope="module", autouse=True)
def spied():
    """Every logits row that is sampled from, by (seed, index). For all tests here, so that they share their engines."""
    found = {}

    def store(*arrays):
        rows, seeds, index = map(np.asarray, arrays)
        found.update({(int(s), int(i)): row.copy() for s, i, row in zip(seeds, index, rows, strict=True)})

    def spying(logits, barred, seeds, index, how, axis):
        jax.debug.callback(store, logits, seeds, index, ordered=True)
        return sample(logits, barred, seeds, index, how, axis)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "sample", spying)
        yield found
        compiled.cache_clear()


@pytest.fixture
def logits(spied):
    spied.clear()
    return spied


def engine(*args, **more):
    """An engine that holds no prefix of before, with the program of an earlier one where there is one."""
    found = compiled(*args, **more)
    found.rows.forget()
    found.usage = Usage()
    return found


@functools.cache
def compiled(scheme=VANILLA, rows=2, eviction=None, **more):
    thoughts = dict(max_thought=7) if scheme.method == "lightthinker" else {}
    config = DecodeConfig(rows, 190, 8, sampling=Sampling(1.0), eviction=eviction, **thoughts, **more)
    return Engine(params(), MODEL, scheme, SPECIAL, config)


def check_exact(logits, done):
    """At every sampled place the logits of one masked forward over the whole row."""
    jax.effects_barrier()
    for c in done:
        want, sampled = replay(c), np.flatnonzero(~c.forced)
        got = np.array([logits[c.seed, c.prompt_length + i] for i in sampled])
        np.testing.assert_allclose(got[:, :120], want[c.prompt_length + sampled - 1, :120], atol=1e-5, rtol=0)


@pytest.mark.parametrize("scheme", [VANILLA, THOUGHTS], ids=lambda s: s.method)
def test_samples_share_their_prompt(scheme, logits):
    """Eight samples over two rows: the prompt is read once, and once more for none of them."""
    one = engine(scheme)
    prompt = np.concatenate([SYSTEM, QUESTIONS[0]])
    done = one.complete([Request(prompt, 12, n=8, seed=5)])
    assert [c.sample for c in done] == list(range(8)) and len({tuple(c.tokens) for c in done}) == 8
    assert sorted(c.read for c in done) == [1] * 7 + [72] and one.usage.read == 79 and one.usage.reused == 7 * 71
    check_exact(logits, done)


@pytest.mark.parametrize("scheme", [VANILLA, THOUGHTS], ids=lambda s: s.method)
def test_a_common_system_prompt_is_read_once(scheme, logits):
    one = engine(scheme)
    done = one.complete([Request(np.concatenate([SYSTEM, q]), 9, seed=i) for i, q in enumerate(QUESTIONS)])
    assert sorted(c.read for c in done) == [12] * 5 + [72]
    check_exact(logits, done)


def test_the_next_turn_of_a_chat_and_an_edited_one(logits):
    """A conversation goes on from all that was said; one whose middle was edited from what is before the edit."""
    one = engine()
    (first,) = one.complete([Request(np.concatenate([SYSTEM, QUESTIONS[0]]), 15, seed=1)])
    turn = np.concatenate([first.row, QUESTIONS[1]])
    (second,) = one.complete([Request(turn, 15, seed=2)])
    assert (second.reused, second.read, second.read_again) == (len(first.row), 12, 0)
    edited = turn.copy()
    edited[66] = (edited[66] + 1) % 100
    (third,) = one.complete([Request(edited, 15, seed=3)])
    assert (third.reused, third.read) == (66, len(edited) - 66)
    shorter = np.concatenate([SYSTEM, QUESTIONS[1]])
    (fourth,) = one.complete([Request(shorter, 15, seed=4)])
    assert fourth.reused >= 60
    check_exact(logits, [first, second, third, fourth])


def test_a_live_row_is_gone_on_from_while_it_writes(logits):
    one = engine()
    prompt = np.concatenate([SYSTEM, QUESTIONS[0]])
    one.submit(Request(prompt, 60, seed=1))
    one.step()
    one.submit(Request(np.concatenate([prompt, QUESTIONS[1]]), 20, seed=2))
    done = []
    while one.busy:
        done += [event.completion for event in one.step() if event.completion is not None]
    assert {c.seed: c.reused for c in done} == {1: 0, 2: 72}
    check_exact(logits, done)


def test_thoughts_that_were_closed_are_not_gone_on_from_as_text(logits):
    """The keys of closed thoughts are gone: plain text of them is read again, gists with their lifetimes are not."""
    one = engine(THOUGHTS)
    (first,) = one.complete([Request(np.concatenate([SYSTEM, QUESTIONS[0]]), 20, seed=1)])
    assert first.compressions >= 2
    plain = np.concatenate([first.row, QUESTIONS[1]])
    (again,) = one.complete([Request(plain, 9, seed=2)])
    gist = int((first.block >= 0).argmax())  # up to there all is the same, but the keys of the thought are gone
    assert again.reused == 72 and again.read_again == gist - 72 > 0
    n, new = len(first.row), len(QUESTIONS[1])
    fill = lambda value, kind=np.int32: np.full(n + new, value, kind)
    own = lambda name, value: np.concatenate([getattr(first, name), np.full(new, value, np.int32)])
    lived = Row(
        plain.astype(np.int32), fill(Role.PROMPT, np.int8), fill(False, bool), np.arange(n + new, dtype=np.int32),
        own("death", NEVER), own("since", 0), own("block", -1), fill(-1),
    )  # fmt: skip
    fresh = engine(THOUGHTS)
    (first_again,) = fresh.complete([Request(np.concatenate([SYSTEM, QUESTIONS[0]]), 20, seed=1)])
    np.testing.assert_array_equal(first_again.tokens, first.tokens)
    (kept,) = fresh.complete([Request(lived, 9, seed=3)])
    assert kept.reused == n and kept.visible[0] == np.sum(lived.death > n + new) + 1
    check_exact(logits, [first, again, kept])


@pytest.mark.parametrize("policy", ["rkv", "snapkv", "h2o", "streaming"])
def test_samples_share_a_prompt_that_is_evicted(policy):
    """Each gives what it gives alone, read whole: the same tokens, and the same deaths."""
    how = dataclasses.replace(RKV, policy=policy, budget=32, buffer=16)
    prompt = np.concatenate([SYSTEM, QUESTIONS[0]])
    done = engine(eviction=how, horizon=160).complete([Request(prompt, 40, n=2, seed=9)])
    assert sorted(c.read for c in done) == [1, 72]
    for c in done:
        (want,) = engine(eviction=how, horizon=160).complete([Request(prompt, 40, seed=c.seed)])
        assert want.read == 72
        np.testing.assert_array_equal(c.tokens, want.tokens)
        np.testing.assert_allclose(c.logp, want.logp, atol=1e-5)
        np.testing.assert_array_equal(c.evicted, want.evicted)


def test_under_a_budget_rows_are_gone_on_from_until_they_evict():
    """The first eviction of a row that took a prefix over is the one of a row that read it whole."""
    asked = Request(np.concatenate([SYSTEM[:55], QUESTIONS[0]]), 80, seed=2)
    (want,) = engine(eviction=RKV, horizon=180).complete([asked])
    one = engine(eviction=RKV, horizon=180)
    (first,) = one.complete([Request(SYSTEM, 10, seed=1)])
    (second,) = one.complete([asked])
    assert second.reused == 55 and want.reused == 0
    np.testing.assert_array_equal(second.tokens, want.tokens)
    np.testing.assert_array_equal(second.evicted, want.evicted)
    assert (second.evicted < NEVER).any()
    (third,) = one.complete([Request(np.concatenate([second.row[:100], QUESTIONS[1]]), 5, seed=3)])
    assert third.reused in (0, 55) and first.reused == 0


def test_new_weights_forget_every_prefix():
    one = engine()
    prompt = np.concatenate([SYSTEM, QUESTIONS[0]])
    one.complete([Request(prompt, 5)])
    other = jax.tree.map(lambda x: x * 1.01, params())
    one.load(other)
    (c,) = one.complete([Request(prompt, 5, seed=1)])
    one.load(params())  # it is the engine of other tests too
    assert c.reused == 0
    hidden = decoder.forward(other, MODEL, jnp.asarray(np.pad(c.row, (0, LONGEST - len(c.row)))[None]))
    logps = jax.nn.log_softmax(decoder.logits(other, MODEL, hidden)[0, :, : SPECIAL.pad])[len(prompt) - 1]
    assert abs(float(logps[c.tokens[0]]) - c.logp[0]) < 0.05


def held(n, deaths=()):
    row = as_row(np.arange(n))
    for start, stop, death in deaths:
        row.death[start:stop] = death
    return Held(row.tokens, row.death, row.since, row.gist, n)


RULES = rules_of(MODEL, VANILLA, SPECIAL, DecodeConfig())


def test_what_can_be_taken_over():
    """The drawing of `reusable`, and its edges."""
    prompt = as_row(np.arange(100))
    assert reusable(held(80), prompt, RULES) == 80 and reusable(held(120), prompt, RULES) == 99
    assert reusable(held(WORTH - 1), prompt, RULES) == 0 and reusable(held(80).until(40), prompt, RULES) == 40
    died = held(90, [(50, 60, 70)])
    assert reusable(died, prompt, RULES) == 50  # the prompt's own tokens there live on
    same = as_row(np.arange(100))
    same.death[50:60] = 70
    assert reusable(died, same, RULES) == 90
    short = as_row(np.arange(66))
    short.death[50:60] = 70
    assert reusable(died, short, RULES) == 50  # tokens 50 to 59 are gone, and token 65 would see them
    gone = dataclasses.replace(RULES, eviction=dataclasses.replace(RKV, policy="h2o"))
    assert reusable(held(80), prompt, gone) == 80 and reusable(held(120), prompt, gone) == 0
    assert reusable(held(80), prompt, dataclasses.replace(RULES, eviction=RKV)) == 80
    assert reusable(held(94), prompt, dataclasses.replace(RULES, eviction=RKV)) == 96 - 8


def test_a_row_that_may_be_gone_on_from_is_taken_last():
    """A request that takes over only the start of a row goes elsewhere, first of all to a row of one that has ended."""
    one = engine(VANILLA, rows=2)
    (first,) = one.complete([Request(np.concatenate([SYSTEM, *QUESTIONS[:3]]), 4, seed=1)])
    (other,) = one.complete([Request(np.concatenate([SYSTEM, QUESTIONS[3]]), 4, seed=2)])
    assert (first.reused, other.reused) == (0, 60)
    (again,) = one.complete([Request(np.concatenate([first.row, QUESTIONS[4]]), 4, seed=3)])
    assert again.reused == len(first.row), "its row was left alone"
    handle = one.submit(Request(np.concatenate([SYSTEM, QUESTIONS[3], QUESTIONS[0]]), 4, seed=4))
    while one.busy:
        one.step()
    one.ended(handle)
    (last,) = one.complete([Request(np.concatenate([QUESTIONS[5], SYSTEM]), 4, seed=5)])
    (kept,) = one.complete([Request(np.concatenate([again.row, QUESTIONS[5]]), 4, seed=6)])
    assert last.reused == 0 and kept.reused == len(again.row), "the row that had ended was taken"
