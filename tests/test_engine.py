"""The engine as its users drive it: requests that come and go, settings of their own, one owner at a time."""

import dataclasses

import numpy as np
import pytest

from lt_jax.decode import DecodeConfig, Engine, Request, Sampling
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from tests.test_decode import MODEL, SPECIAL, params, requests

VANILLA = Scheme(method="vanilla")
CONTROL = {110, 111, 112, 116, 118}  # gists, output token, padding


def words(ids):
    return "".join(chr(97 + i % 26) for i in ids)


@pytest.fixture(scope="module")
def engine():
    config = DecodeConfig(8, 120, 8, max_thought=6, top_logps=3)
    return Engine(params(), MODEL, Scheme(n_gist=3), SPECIAL, config, detokenize=words)


def finished(engine):
    """Steps until nothing is left; completions by (handle, sample), each of which must come once."""
    found = {}
    while engine.busy:
        for event in engine.step():
            if event.completion is not None:
                key = event.handle, event.sample
                assert key not in found
                found[key] = event.completion
    return found


BAD = [
    Request([], 5), Request([1, 500], 5), Request([1] * 130, 5), Request([1], 0), Request([1], 5, n=0), Request("a", 5),
    Request([0.5], 5), Request([1], 5, stop=(999,)), Request([1], 5, never=tuple(range(9))), Request([1], 5, seed="x"),
]  # fmt: skip


def test_a_client_that_submits_cancels_and_steps_in_any_order(engine):
    """500 requests, one in ten bad: every one is answered once, greedy ones as each alone."""
    rng = np.random.default_rng(0)
    alone = Engine(params(), MODEL, Scheme(n_gist=3), SPECIAL, DecodeConfig(1, 120, 8, max_thought=6))
    common, asked, found, cancelled = rng.integers(0, 100, 50), {}, {}, set()
    while len(asked) < 500 or engine.busy:
        if len(asked) < 500 and rng.random() < 0.7:
            if rng.random() < 0.1:
                request = BAD[rng.integers(len(BAD))]
            else:
                prompt = rng.integers(0, 100, rng.integers(2, 20))
                prompt = np.concatenate([common[: rng.integers(30, 51)], prompt]) if rng.random() < 0.3 else prompt
                sampling = Sampling(1.0) if rng.random() < 0.3 else None
                request = Request(prompt, int(rng.integers(3, 20)), sampling=sampling, id=len(asked))
            asked[engine.submit(request)] = request
        if asked and rng.random() < 0.05:
            handle = list(asked)[rng.integers(len(asked))]
            if handle not in found:
                cancelled.add(handle)
            engine.cancel(handle)
        if rng.random() < 0.3:
            for event in engine.step():
                if event.completion is not None:
                    assert event.handle not in found
                    found[event.handle] = event.completion
    assert found.keys() == asked.keys() and engine.programs.block._cache_size() == 1
    good = [h for h, request in asked.items() if not any(request is bad for bad in BAD)]
    assert all(found[h].finish == "refused" and found[h].why for h in asked if h not in good)
    greedy = [h for h in good if asked[h].sampling is None and found[h].finish != "cancelled"]
    assert 0 < sum(found[h].finish == "cancelled" for h in good) <= len(cancelled) and len(greedy) > 200
    assert engine.usage.reused > 500 and engine.usage.read > 1000
    for handle in greedy[::4]:
        (want,) = alone.complete([asked[handle]])
        np.testing.assert_array_equal(found[handle].tokens, want.tokens)
        assert found[handle].finish == want.finish
        np.testing.assert_array_equal(found[handle].visible, want.visible)


def test_one_owner_at_a_time(engine):
    """A second iterator is refused while one is under way; closing the first lets go of its own rows alone."""
    first = engine.run([Request([5], 60), Request([6], 3)])
    done = next(first)
    for second in (lambda: next(engine.run([Request([7], 3)])), lambda: engine.submit(Request([7])), engine.step):
        with pytest.raises(UserError, match="the engine belongs to a `run` that is not finished"):
            second()
    first.close()
    handle = engine.submit(Request([5, 6], 40))
    engine.step()
    with pytest.raises(UserError, match="the engine has requests under way"):
        next(engine.run([Request([7], 3)]))
    first.close()  # an old one touches nothing
    assert len(finished(engine)[handle, 0].tokens) >= 40 and len(done.tokens) == 3
    closed = Engine(params(), MODEL, VANILLA, SPECIAL, DecodeConfig(1, 40, 8))
    closed.close()
    with pytest.raises(UserError, match="the engine is closed"):
        closed.submit(Request([1]))


def test_requests_may_come_while_others_run(engine):
    late = engine.submit(Request([9, 9], 50))
    engine.step()
    early = engine.submit(Request([8], 3))
    order = []
    while engine.busy:
        order += [event.handle for event in engine.step() if event.completion is not None]
    assert order == [early, late]


def test_equal_requests_draw_differently_unless_they_bring_a_seed(engine):
    hot = Request([3, 4, 5], 12, sampling=Sampling(1.0))
    told = lambda done: {tuple(c.tokens[~c.forced]) for c in done}
    assert len(told(engine.complete([hot] * 4))) == 4
    samples = engine.complete([dataclasses.replace(hot, n=4)])
    assert len(told(samples)) == 4 and [c.sample for c in samples] == [0, 1, 2, 3]
    seeded = dataclasses.replace(hot, seed=7)
    assert len(told(engine.complete([seeded] * 4))) == 1
    again = engine.complete([dataclasses.replace(seeded, n=3)])
    assert len(told(again)) == 3
    np.testing.assert_array_equal(again[0].tokens, engine.complete([seeded])[0].tokens)


def test_settings_of_their_own_share_one_program(engine):
    """Stop ids, ids never sampled, temperatures: each row keeps to its own, and nothing is compiled for it."""
    (free,) = engine.complete([Request([3, 4], 20)])
    token = int(free.tokens[~free.forced][1])
    asked = [
        Request([3, 4], 20, stop=(token,)), Request([3, 4], 20, never=(token,)), Request([3, 4], 20),
        Request([3, 4], 20, sampling=Sampling(1.5, top_k=2), seed=1),
        Request([3, 4], 20, sampling=Sampling(1.5), seed=1),
    ]  # fmt: skip
    stopped, without, plain, cold, hot = engine.complete(asked)
    assert stopped.finish == "stop" and stopped.tokens[-1] == token
    assert token not in without.tokens[~without.forced]
    np.testing.assert_array_equal(plain.tokens, free.tokens)
    assert hot.tokens.tolist() != cold.tokens.tolist() and engine.programs.block._cache_size() == 1
    drawn = cold.top_ids[~cold.forced, :2] == cold.tokens[~cold.forced, None]
    assert drawn.any(1).all()  # of the two most probable


def test_the_most_probable_tokens_are_handed_back(engine):
    (c,) = engine.complete([Request([3, 4], 20)])
    sampled = ~c.forced
    np.testing.assert_array_equal(c.top_ids[sampled, 0], c.tokens[sampled])
    np.testing.assert_allclose(c.top_logps[sampled, 0], c.logp[sampled], atol=1e-5)
    assert (np.diff(c.top_logps[sampled]) <= 0).all() and (c.top_ids[c.forced] == -1).all()
    assert c.compressions > 0 and len(c.top_ids) == len(c.tokens)


def test_a_stop_text_ends_a_row_wherever_it_falls(engine):
    """Over the edge of a block, in any row: the tokens end with the one that completes it."""
    asked = [Request([i, 4], 30, id=i) for i in range(5)]
    for whole in engine.complete(asked):
        text = words(whole.tokens[whole.written])
        for place in (2, 9, 15):
            wanted = text[place : place + 3]
            (c,) = engine.complete([Request([whole.id, 4], 30, stop_text=("#", wanted))])
            said = words(c.tokens[c.written])
            assert c.finish == "stop" and c.stop_text == wanted and said == text[: text.index(wanted) + 3]
            assert len(c.visible) == len(c.tokens) == len(c.logp) == len(c.top_ids)
            np.testing.assert_array_equal(c.tokens, whole.tokens[: len(c.tokens)])
    with pytest.raises(UserError, match="stop_text needs an engine that can read ids as text"):
        bare = Engine(params(), MODEL, VANILLA, SPECIAL, DecodeConfig(1, 40, 8))
        raise UserError(bare.complete([Request([1], 3, stop_text=("a",))])[0].why)


@pytest.mark.parametrize("scheme", [Scheme(n_gist=3), Scheme(method="anllm"), VANILLA], ids=lambda s: s.method)
def test_what_only_the_engine_may_feed_is_never_sampled(scheme):
    """A random model gives gists, output token and padding a chance of one in 25 at every step."""
    thoughts = 8 if scheme.method != "vanilla" else None
    config = DecodeConfig(8, 120, 16, sampling=Sampling(3.0), max_thought=thoughts)
    done = Engine(params(), MODEL, scheme, SPECIAL, config).complete([Request([i], 60) for i in range(16)])
    sampled = np.concatenate([c.tokens[~c.forced] for c in done])
    own = {110} if scheme.method == "anllm" else set()
    assert len(sampled) > 300 and not set(sampled.tolist()) & (CONTROL - own)
    if own:
        assert own & set(sampled.tolist())


def test_refusals_take_nothing_with_them(engine):
    """A bad request in the middle costs no other one its answer, nor the iterator."""
    asked = [*requests(4), Request([], 5), *requests(4, seed=1)]
    done = engine.complete(asked)
    assert [c.finish == "refused" for c in done] == [False] * 4 + [True] + [False] * 4
    assert "request 4: the prompt is empty" == done[4].why
