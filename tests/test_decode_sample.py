"""Sampling against numpy that sorts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.decode.sample import Sampling, invert, likeliest, listed_in, sample, settings
from lt_jax.errors import UserError

V = 256


def alike(n, sampling, never=()):
    """`Settings` of n rows that ask for the same."""
    return settings([(sampling, never, ())] * n, len(never), 0)


def reference(logits, sampling):
    """The distribution in float64: sort, cut, renormalise."""
    z = logits.astype(np.float64) / sampling.temperature
    p = np.exp(z - z.max())
    if sampling.top_k:
        p[p < np.sort(p)[-sampling.top_k]] = 0
    if sampling.top_p < 1:
        order = np.argsort(-p)
        cumulative = np.cumsum(p[order]) / p.sum()
        keep = np.searchsorted(cumulative, sampling.top_p) + 1
        p[order[keep:]] = 0
    return p / p.sum()


def draw(logits, seeds, index, how):
    return sample(logits, listed_in(jnp.asarray(how.never), V), seeds, index, how)


DRAW = jax.jit(draw)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.7, top_k=5),
        Sampling(1.3, top_p=0.8),
        Sampling(1.0, top_k=20, top_p=0.5),
        Sampling(2.0, top_k=1),
    ],
)
def test_the_distribution_sampled_from(sampling):
    """Frequencies within 5 standard deviations; logp is that of the very distribution; nothing else is ever drawn."""
    rng = np.random.default_rng(0)
    logits = (2 * rng.normal(size=V)).astype(np.float32)
    logits[200:] = -np.inf
    n = 20000
    seeds, index = jnp.arange(n, dtype=jnp.uint32), jnp.full(n, 7)
    token, logp = DRAW(np.broadcast_to(logits, (n, V)), seeds, index, alike(n, sampling))
    want = reference(logits, sampling)
    np.testing.assert_allclose(logp, np.log(want[token]), atol=2e-5)
    counts = np.bincount(token, minlength=V)
    assert counts[want == 0].sum() == 0
    assert (np.abs(counts - n * want) <= 5 * np.sqrt(n * want * (1 - want)) + 1e-9).all()


def test_greedy_and_independence_of_the_batch():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(6, V)).astype(np.float32)
    seeds, index = jnp.arange(6, dtype=jnp.uint32), jnp.arange(10, 16)
    token, logp = draw(logits, seeds, index, alike(6, Sampling()))
    np.testing.assert_array_equal(token, logits.argmax(-1))
    np.testing.assert_allclose(logp, jax.nn.log_softmax(logits).max(-1), atol=1e-6)
    together, _ = draw(logits, seeds, index, alike(6, Sampling(1.0)))
    own = lambda i: (logits[i : i + 1], seeds[i : i + 1], index[i : i + 1])
    alone = [int(draw(*own(i), alike(1, Sampling(1.0)))[0][0]) for i in range(6)]
    assert together.tolist() == alone
    later, _ = draw(logits, seeds, index + 1, alike(6, Sampling(1.0)))
    assert later.tolist() != alone


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(0.7, top_k=5), Sampling(1.0, top_p=0.5)])
def test_log_probs_are_nan_exactly_where_logits_are_no_numbers(sampling):
    logits = np.random.default_rng(3).normal(size=(7, V)).astype(np.float32)
    logits[:, 200:] = -np.inf
    logits[1, 7], logits[2, 7], logits[3], logits[5, 199], logits[6] = np.nan, np.inf, -np.inf, np.nan, 3e38
    _, logp = DRAW(jnp.asarray(logits), jnp.arange(7, dtype=jnp.uint32), jnp.full(7, 3), alike(7, sampling))
    assert np.isnan(logp).tolist() == [False, True, True, True, False, True, False]


def test_rows_that_differ_share_a_program():
    """Each row of a mixed batch draws what it would draw in a batch of its kind, and what is never to be is not."""
    rng = np.random.default_rng(3)
    kinds = [Sampling(), Sampling(0.5), Sampling(1.0, top_k=3), Sampling(2.0, top_p=0.6), Sampling(1.2, 30, 0.9)]
    n = 100
    logits = rng.normal(size=(n * len(kinds), V)).astype(np.float32)
    seeds, index = np.arange(len(logits), dtype=np.uint32), np.full(len(logits), 3)
    best = logits.argmax(-1)
    rows = [(kinds[i % len(kinds)], (int(best[i]),) if i % 2 else (), ()) for i in range(len(logits))]
    token, logp = DRAW(logits, seeds, index, settings(rows, 1, 0))
    hidden = logits.copy()
    hidden[np.arange(1, len(logits), 2), best[1::2]] = -np.inf
    for i, kind in enumerate(kinds):
        own = slice(i, None, len(kinds))
        want = DRAW(hidden[own], seeds[own], index[own], alike(n, kind))
        np.testing.assert_array_equal(token[own], want[0])
        np.testing.assert_allclose(logp[own], want[1], atol=1e-5)
    assert (token[1::2] != best[1::2]).all() and (token[::2] == best[::2])[:: len(kinds)].all()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=5), Sampling(1.3, top_p=0.8)])
def test_the_most_probable_tokens(sampling):
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(2, V)).astype(np.float32)
    ids, logps = likeliest(jnp.asarray(logits), np.arange(V)[None] == 7, alike(2, sampling, (7,)), 8)
    logits[:, 7] = -np.inf
    for row in range(2):
        want = reference(logits[row], sampling if sampling.temperature else Sampling(1.0))
        found = want[np.asarray(ids[row])]
        order = np.sort(want)[::-1][:8]
        np.testing.assert_allclose(found, order, atol=1e-7)
        np.testing.assert_allclose(np.exp(logps[row]), order, atol=1e-5)


def test_invert_never_draws_weight_zero():
    """At the very ends of the unit interval, too, and with weights that cover 30 orders of magnitude."""
    rng = np.random.default_rng(2)
    weights = np.exp(rng.uniform(-60, 0, (4, V))).astype(np.float32)
    weights[:, ::3] = 0
    weights[:, 0], weights[:, -1] = 0, 0
    for u in (0.0, 1e-30, 0.5, 1 - 2**-24):
        groups = jnp.asarray(weights).reshape(4, -1, 128)
        token, own = invert(groups.sum(-1), lambda at, groups=groups: groups[np.arange(4), at], jnp.full(4, u))
        np.testing.assert_array_equal(own, weights[np.arange(4), token])
        assert (weights[np.arange(4), token] > 0).all()


@pytest.mark.parametrize("bad", [dict(temperature=-1), dict(temperature=1, top_p=0), dict(top_k=3), dict(top_p=0.9)])
def test_bad_sampling_is_refused(bad):
    with pytest.raises(UserError):
        Sampling(**bad)
