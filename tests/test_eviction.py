"""Decoding under a KV budget: replay, equivalences, what the records say, and bad input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.cache.policies import POLICIES, Eviction, pyramid
from lt_jax.decode import DecodeConfig, Engine, Request, control
from lt_jax.decode.counts import count
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import NEVER, Lifetimes
from lt_jax.models import decoder, huggingface
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig
from tests import policy_reference as reference

MODEL = DecoderConfig(
    vocab_size=120, hidden=32, intermediate=48, layers=3, heads=4, kv_heads=2, head_dim=16, qkv_bias=True
)
SPECIAL = SpecialTokens(eos=119, pad=118, trigger=117, output=116, gists=(110, 111, 112))
LONGEST = 192
VANILLA = Scheme(method="vanilla")


@functools.cache
def params():
    """Random, with queries and keys large enough that attention is not flat, so that it matters who is evicted."""
    tree = parameters.init(jax.random.key(0), MODEL)
    for name in "qk":
        tree["layers"][name]["w"] *= 4
    return tree


SHORT = (5,)  # prompts that evict nobody: half as many programs as for an engine that reads others too


def requests(n=5, seed=0, lengths=(5, 30), max_new=(40, 70)):
    """Prompts of few lengths, so that few shapes are compiled."""
    rng = np.random.default_rng(seed)
    return [
        Request(rng.integers(0, 100, lengths[i % len(lengths)]), int(rng.integers(*max_new)), seed=i) for i in range(n)
    ]


def how(policy, **more):
    return Eviction(policy, **(dict(budget=24, buffer=8, window=4, sinks=2, separators=(7, 8, 9)) | more))


@functools.cache
def engine(eviction, rows=3, scheme=VANILLA, horizon=LONGEST, **options):
    config = DecodeConfig(rows=rows, block_steps=16, eviction=eviction, horizon=horizon if eviction else 0, **options)
    return Engine(params(), MODEL, scheme, dataclasses.replace(SPECIAL, eos=-1), config)


UNSAID = np.array([*SPECIAL.gists, SPECIAL.output, SPECIAL.pad])  # have no part in what is sampled from


@jax.jit
def masked_logp(tokens, death, since):
    """[S]: log-prob of each token given those before, under deaths [1, L, Hkv, S]."""
    hidden = decoder.forward(params(), MODEL, tokens, None, Lifetimes(death, since), implementation="dense")
    logits = decoder.logits(params(), MODEL, hidden)[0].at[:, UNSAID].set(-jnp.inf)
    return jnp.take_along_axis(jax.nn.log_softmax(logits)[:-1], tokens[0, 1:, None], -1)[:, 0]


def replayed(c, forget=False) -> np.ndarray:
    """[N]: log-probs of the response by one masked forward under the recorded deaths, or without them (`forget`)."""
    lifetimes = dataclasses.replace(c, record=None).lifetimes() if forget else c.lifetimes()
    death = np.asarray(lifetimes.death)
    death = death if death.ndim == 4 else death[:, None, None]
    death = np.broadcast_to(death, (1, MODEL.layers, MODEL.kv_heads, len(c.row)))
    pad = lambda x, value: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, LONGEST - x.shape[-1])], constant_values=value)
    since = pad(np.asarray(lifetimes.since), 0)
    return np.asarray(masked_logp(pad(c.row[None], 0), pad(death, NEVER), since))[c.prompt_length - 1 : len(c.row) - 1]


def check_replay(c, tolerance=1e-4):
    sampled = ~c.forced
    np.testing.assert_allclose(c.logp[sampled], replayed(c)[sampled], atol=tolerance)


@pytest.mark.parametrize("policy", [*POLICIES])
def test_log_probs_are_those_of_a_forward_under_the_recorded_deaths(policy):
    eviction = how(policy, budget=LONGEST) if policy == "full" else how(policy)
    done = engine(eviction).complete(requests())
    for c in done:
        check_replay(c)
        if policy == "full":
            assert c.evicted is None and c.finish == "length"
            continue
        assert c.held.max() <= 32 and c.visible.max() <= 32
        if len(c.row) > 40:
            assert np.abs(c.logp - replayed(c, forget=True)).max() > 1e-2, "the records say nothing"
            last = np.asarray(c.evicted[0, 0])
            assert (last[:2] == NEVER).all(), "sinks"


@jax.jit
def first_layer(tokens):
    """Rotated queries [H, S, D] and keys [Hkv, S, D] of the first layer, which no eviction changes."""
    layer = jax.tree.map(lambda x: x[0], params()["layers"])
    x = decoder.embed(params(), MODEL, tokens[None])
    q, k, _ = decoder.qkv(layer, MODEL, x, jnp.arange(len(tokens))[None])
    return q[0].transpose(1, 0, 2), k[0].transpose(1, 0, 2)


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy not in ("full", "random")])
def test_the_engine_evicts_whom_the_formulas_evict(policy):
    """Every eviction of the first layer, rebuilt from the tokens alone: keys, queries, attention received."""
    eviction = how(policy)
    for c in engine(eviction).complete(requests(4)):
        q, k = (np.asarray(x, np.float64) for x in first_layer(np.pad(c.row, (0, LONGEST - len(c.row)))))
        group = MODEL.heads // MODEL.kv_heads
        for head in range(MODEL.kv_heads):
            died = c.evicted[0, head]
            birth, total = np.arange(len(died)), np.zeros(len(died))
            ends = np.unique(died[died < NEVER])
            assert len(ends), "nothing was evicted"
            for index in range(ends[-1] + 1):
                if index in ends:
                    there = birth[(birth < index) & (died >= index)]
                    asked = q[:, max(index - 4, 0) : index]
                    marks = np.isin(c.row[there], eviction.separators)
                    heads = lambda x: np.repeat(x[None], MODEL.kv_heads, 0)
                    score = reference.scores(
                        policy, heads(k[head, there]), asked, eviction, index, heads(there), heads(total[there]),
                        heads(marks),
                    )[head]  # fmt: skip
                    safe = (there < eviction.sinks) | (there >= index - eviction.window)
                    if policy != "tova":  # its mean is over all heads, which see the same keys
                        reference.check_kept(died[there] > index, score, safe, eviction.budget, 1e-4)
                    else:
                        score = reference.scores(policy, k[:, there], asked, eviction, index)[head]
                        reference.check_kept(died[there] > index, score, safe, eviction.budget, 1e-4)
                seen = birth[(birth <= index) & (died > index)]
                own = q[head * group : (head + 1) * group, index : index + 1]
                total[seen] += reference.received(k[head, seen], own, [index], seen)


@pytest.mark.parametrize("share", ["heads", "layers"])
def test_shared_choices_replay(share):
    asked = requests(3)
    alone = engine(how("rkv")).complete(asked)
    for c, other in zip(engine(how("rkv", share=share)).complete(asked), alone, strict=True):
        assert (c.evicted < NEVER).any() and not np.array_equal(c.evicted[0, 0], other.evicted[0, 0])
        assert c.evicted.shape[:2] == (1 if share == "layers" else MODEL.layers, 1)
        check_replay(c)


def _seen(c) -> np.ndarray:
    """[N]: keys that each token of the response saw, the mean over layers and heads of the recorded deaths."""
    index = np.arange(len(c.row))
    alive = (index <= index[:, None]) & (np.minimum(c.evicted, c.death)[:, :, None] > index[:, None])
    return alive.sum(-1).mean((0, 1))[c.prompt_length :]


@pytest.mark.parametrize("order", ["birth", "reference"])
def test_pyramid_and_the_order_of_the_release_replay(order):
    budgets = pyramid(3, 24, beta=2, least=8)
    asked = requests(3, max_new=(60, 70), **({} if order == "birth" else dict(lengths=SHORT)))
    found = engine(how("rkv", budget=budgets, order=order)).complete(asked)
    for c in found:
        check_replay(c)
        for layer, head in np.ndindex(MODEL.layers, MODEL.kv_heads):
            died = c.evicted[layer, head]
            ends = np.unique(died[died < NEVER])
            assert len(ends) > (2 if layer == 2 else 0)
            for end in ends:  # just before and after each eviction
                held = lambda at, died=died: int((died[: int(at)] > at).sum())
                assert held(end) == budgets[layer] and held(end - 1) <= budgets[layer] + 8
        seen = _seen(c)
        np.testing.assert_allclose(c.visible, seen, rtol=1e-12)
        np.testing.assert_allclose(c.held, seen, rtol=1e-12)
        assert (c.visible < c.visible.max()).any() and c.held.max() == np.mean(budgets) + 8 == 32, "not the largest"
        assert count(c).dependency == round(seen.sum())
    long = Request(np.random.default_rng(0).integers(0, 100, 90), 3)
    (c,) = engine(how("rkv", budget=budgets, order=order)).complete([long])
    assert 24 < c.prompt_held <= 32, "the mean over layers: the largest alone holds 38 + 8"
    if order == "reference":
        plain = engine(how("rkv", budget=budgets)).complete(asked)
        assert any(not np.array_equal(a.evicted, b.evicted) for a, b in zip(found, plain, strict=True))


def test_lightthinker_composes_with_a_policy():
    scheme = Scheme(n_gist=3)
    found = engine(how("rkv", budget=32, buffer=16), scheme=scheme, max_thought=10).complete(requests(5))
    for c in found:
        check_replay(c)
        gist = np.flatnonzero(c.is_gist) + c.prompt_length
        assert (c.evicted[..., gist] == NEVER).all(), "gists are protected"
        np.testing.assert_allclose(c.visible, _seen(c), rtol=1e-12)
    assert max(c.compressions for c in found) >= 3 and any((c.evicted < NEVER).any() for c in found)


def test_more_gists_than_the_budget_holds_end_the_row():
    scheme = Scheme(n_gist=3)
    (c,) = engine(how("knorm", budget=16, buffer=16, window=1, sinks=0), 1, scheme, max_thought=8).complete(
        [Request(range(6), 100)]
    )
    assert c.finish == "capacity" and c.is_gist.sum() >= 15
    check_replay(c)


def test_evictions_do_not_depend_on_where_blocks_end(monkeypatch):
    """Anchors in a row close thoughts that free next to nothing, so that rows are full after a closing."""
    script = np.full(300, 5, np.int32)
    script[15:20] = 110
    said = jnp.asarray(script)
    say = lambda logits, barred, seed, index, *rest: (said[index], jnp.zeros(index.shape))
    monkeypatch.setattr(control, "sample", say)
    eviction, found = how("knorm", budget=16, buffer=4, window=2, sinks=0), []
    for steps in (2, 16):
        config = DecodeConfig(rows=1, block_steps=steps, eviction=eviction, horizon=60)
        used = Engine(params(), MODEL, Scheme("anllm"), dataclasses.replace(SPECIAL, eos=-1), config)
        found += used.complete([Request(range(15), 12)])
        assert found[-1].held.max() <= 20
    np.testing.assert_array_equal(found[0].evicted, found[1].evicted)


def test_full_is_a_plain_cache_that_ends():
    asked = [Request(range(5), 100)]
    (a,), (b,) = engine(how("full"), 1).complete(asked), engine(None, 1, capacity=32).complete(asked)
    assert a.finish == b.finish == "capacity" and a.held.max() == b.held.max() == 32
    np.testing.assert_array_equal(a.tokens, b.tokens)


def test_prompts_are_read_for_their_deaths_alone():
    prompts = [Request(np.random.default_rng(i).integers(0, 100, 50), 3) for i in range(4)]
    used = engine(how("snapkv"))
    for evicted, c in zip(used.read(prompts), used.complete(prompts), strict=True):
        before = np.where(c.evicted[..., :50] > 50, NEVER, c.evicted[..., :50])
        np.testing.assert_array_equal(evicted, before)


def test_a_budget_above_the_length_changes_nothing():
    asked = requests(3, lengths=SHORT)
    plain = engine(None, capacity=160).complete(asked)
    for policy in ("rkv", "h2o"):  # one that looks at the keys, one at the sums that attention hands over
        for a, b in zip(plain, engine(how(policy, budget=150)).complete(asked), strict=True):
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_array_equal(a.visible, b.visible)
            np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)


@pytest.mark.parametrize("policy", ["rkv", "h2o", "random"])
def test_a_batch_is_its_rows_alone_in_any_order(policy):
    """With a ring of queries, with sums of what was received, with numbers drawn: what the rows keep apart."""
    asked = requests(5)
    batch, single = engine(how(policy)), engine(how(policy), rows=1)
    together = batch.complete(asked)
    backwards = batch.complete(asked[::-1])[::-1]
    for a, b, c in zip(together, backwards, [single.complete([r])[0] for r in asked], strict=True):
        for other in (b, c):
            np.testing.assert_array_equal(a.tokens, other.tokens)
            np.testing.assert_array_equal(a.evicted, other.evicted)


def test_streaming_with_buffer_one_is_the_first_and_the_last_at_every_step():
    steps, sinks, last = 1000, 4, 12
    eviction = Eviction("streaming", budget=sinks + last, buffer=1, window=1, sinks=sinks)
    (c,) = engine(eviction, 1, horizon=1100).complete([Request(range(20), steps)])
    birth = np.arange(len(c.row))
    died = c.evicted
    assert (died[..., :sinks] == NEVER).all()
    # key j is seen by the queries up to j + last: itself and the `last` after it
    want = np.where(birth < sinks, NEVER, birth + last + 1)
    want = np.where(want >= len(c.row), NEVER, want)
    decoded = want > 20
    np.testing.assert_array_equal(died[..., decoded], np.broadcast_to(want, died.shape)[..., decoded])
    assert (c.visible[1:] == sinks + last + 1).all() and len(c.tokens) == steps


def test_prompts_far_over_the_budget_are_fed_in_pieces():
    prompt = np.random.default_rng(3).integers(0, 100, 150)
    (c,) = engine(how("snapkv")).complete([Request(prompt, 12)])
    check_replay(c)
    deaths = np.unique(c.evicted[c.evicted < NEVER])
    np.testing.assert_array_equal(deaths, [*range(32, 150, 8), 150, 158])
    assert c.held.max() <= 32


def test_nobody_reads_what_lies_behind_the_keys():
    used = engine(how("rkv"))
    junk = lambda x: jnp.full_like(x, jnp.nan)
    used.cache = dataclasses.replace(used.cache, k=junk(used.cache.k), queries=junk(used.cache.queries))
    first = used.complete(requests())
    for a, b in zip(first, used.complete(requests()), strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.evicted, b.evicted)
        assert np.isfinite(a.logp).all()


def test_plain_and_native_forms_evict_alike():
    native, plain = (engine(how("rkv"), **form).complete(requests(3)) for form in ({}, dict(implementation="plain")))
    for a, b in zip(native, plain, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.evicted, b.evicted)


def test_one_compilation_of_the_block_and_a_cache_of_one_size():
    used = engine(how("rkv"))
    used.complete(requests(5))
    assert used.programs.block._cache_size() == 1
    rows, slots = 3, 64  # 24 + 8 keys and the spare ones for padding, rounded up
    keys = 2 * 4 * rows * MODEL.layers * MODEL.kv_heads * slots * MODEL.head_dim
    assert used.cache.k.nbytes + used.cache.v.nbytes == keys
    assert engine(how("rkv"), horizon=0).cache.nbytes < 1.5 * keys


def test_bad_input_is_one_line_before_anything_compiles():
    for wrong, line in (
        (lambda: how("sepllm", separators=()), "sepllm keeps separators"),
        (lambda: how("rkv", window=0), "window is 0"),
        (lambda: how("lru"), "policy is 'lru'"),
        (lambda: engine(how("rkv", budget=(24, 24))), "2 budgets were given for a model of 3 layers"),
        (lambda: engine(how("rkv", buffer=2), scheme=Scheme(n_gist=3)), "closing a thought takes 5 keys"),
        (lambda: DecodeConfig(horizon=5), "DecodeConfig.horizon is set"),
        (lambda: how("sepllm", order="reference"), "sepllm needs the order of births"),
        (lambda: how("rkv", budget=()), "budget is"),
        (lambda: how("rkv", budget=24.5), "budget is 24.5"),
        (lambda: how("rkv", threshold=7), "threshold is 7"),
        (lambda: how("sepllm", separator_room=-3), "separator_room is -3"),
        (lambda: DecodeConfig(eviction=how("rkv"), horizon=-5), "horizon is -5"),
        (lambda: pyramid(4, 10, least=20), "cannot have 20 in every layer"),
    ):
        with pytest.raises(UserError, match=line):
            wrong()
    short = Engine(params(), MODEL.replace(max_positions=16), VANILLA, SPECIAL, DecodeConfig(eviction=how("rkv")))
    for used, prompt, line in (
        (engine(how("full")), range(40), "does not fit; the capacity is 32"),
        (engine(how("rkv"), horizon=20), range(30), "leaves no room"),
        (short, range(30), "no room for a response within the 16 positions"),
    ):
        (c,) = used.complete([Request(prompt, 5)])
        assert c.finish == "refused" and line in c.why


@pytest.fixture(scope="module")
def real(real_model):
    return huggingface.load(real_model)  # weights as they are stored, bfloat16; computed with in float32


@functools.partial(jax.jit, static_argnums=1)
def real_logp(tree, model, rows, death):
    """[R, 29]: log-probs after prompts of 40. All rows at once: most of the time goes into weights made float32."""
    hidden = decoder.forward(tree, model, rows, None, Lifetimes(death), implementation="dense")
    scores = jax.nn.log_softmax(decoder.logits(tree, model, hidden[:, 39:-1]))
    return jnp.take_along_axis(scores, rows[:, 40:, None], -1)[..., 0]


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "full"])
def test_the_real_model_replays_a_batch_of_eight_with_refill(policy, real):
    tree, model = real
    rng = np.random.default_rng(5)
    asked = [Request(rng.integers(100, 20_000, 40), int(n), seed=i) for i, n in enumerate(rng.integers(6, 30, 10))]
    eviction = Eviction(policy, budget=32, buffer=8, window=4, sinks=2, separators=tuple(range(10, 20)))
    config = DecodeConfig(rows=8, block_steps=16, eviction=eviction, horizon=80)
    done = Engine(tree, model, VANILLA, SpecialTokens(eos=0, pad=0), config).complete(asked)  # its weights are gone now
    pad = lambda x, value: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 69 - x.shape[-1])], constant_values=value)
    rows = np.stack([pad(c.row, 0) for c in done])
    death = np.stack([pad(c.evicted, NEVER) for c in done])
    for c, again in zip(done, real_logp(tree, model, rows, death), strict=True):
        np.testing.assert_allclose(c.logp, again[: len(c.logp)], atol=1e-4)
        assert (c.evicted < NEVER).any()
