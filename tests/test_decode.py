"""Decoding is training's forward pass: the evicting, batched, refilled engine against one masked forward."""

import dataclasses
import functools
import itertools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.cache.policies import published
from lt_jax.decode import (
    Completion,
    DecodeConfig,
    Engine,
    Request,
    Sampling,
    TextStreamer,
    control,
    pieces,
    spread,
    weights,
)
from lt_jax.decode.record import as_row
from lt_jax.decode.sample import sample
from lt_jax.errors import UserError
from lt_jax.layout.build import build_row
from lt_jax.layout.closing import closing
from lt_jax.layout.prompt import build_prompt
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import NEVER, Lifetimes, dense_mask
from lt_jax.models import decoder, huggingface, lora
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig, LoraConfig

MODEL = DecoderConfig(
    vocab_size=120, hidden=32, intermediate=48, layers=2, heads=4, kv_heads=2, head_dim=16, qkv_bias=True
)
SPECIAL = SpecialTokens(eos=119, pad=118, trigger=117, output=116, gists=(110, 111, 112), memento=(100, 101, 102, 103))
# Added to the logits, so that a random model ends its thoughts, and does not write what only the engine may feed.
LIKELY = {117: 2.0, 110: -30.0, 111: -30.0, 112: -30.0, 116: -30.0}
LONGEST = 192
VANILLA = Scheme(method="vanilla")


@functools.cache
def params():
    return parameters.init(jax.random.key(0), MODEL)


def requests(n=7, seed=0, longest=16, max_new=(8, 40)):
    rng = np.random.default_rng(seed)
    return [
        Request(rng.integers(0, 100, rng.integers(2, longest + 1)), int(rng.integers(*max_new)), seed=i)
        for i in range(n)
    ]


@functools.partial(jax.jit, static_argnums=3)
def masked_logits(tokens, death, since, gist_rule, block):
    lifetimes = Lifetimes(death, since, None if gist_rule == "causal" else block, gist_rule)
    hidden = decoder.forward(params(), MODEL, tokens, None, lifetimes, implementation="dense")
    return decoder.logits(params(), MODEL, hidden)[0]


def replay(c: Completion) -> np.ndarray:
    """[P + N, V] logits of the masked forward under the lifetimes the engine reported."""
    pad = lambda x, value: np.pad(x, (0, LONGEST - len(c.row)), constant_values=value)[None]
    return np.asarray(
        masked_logits(pad(c.row, 0), pad(c.death, NEVER), pad(c.since, 0), c.gist_rule, pad(c.block, -1))
    )[: len(c.row)]


@pytest.fixture
def seen_logits(monkeypatch, request):
    """Every logits row the engine samples from, by (seed, index); sampling favours the tokens of `LIKELY`."""
    found = {}
    method = request.getfixturevalue("scheme").method if "scheme" in request.fixturenames else None
    likely = LIKELY | {"anllm": {110: 2.0}, "memento": dict.fromkeys(SPECIAL.memento, 4.0)}.get(method, {})
    bias = np.zeros(MODEL.vocab_padded, np.float32)
    for token, more in likely.items():
        bias[token] = more

    def store(*arrays):
        logits, seeds, index = map(np.asarray, arrays)  # no JAX in here: it would wait for the callback to return
        found.update({(int(s), int(i)): row.copy() for s, i, row in zip(seeds, index, logits, strict=True)})

    def spying(logits, barred, seeds, index, sampling, axis):
        jax.debug.callback(store, logits, seeds, index, ordered=True)
        token, _ = sample(logits + bias, barred, seeds, index, sampling, axis)
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], -1)[:, 0]
        return token, own

    monkeypatch.setattr(control, "sample", spying)
    return found


OPTIONS = [
    Scheme(n_gist=3, see_current=see, exclude_continue=exclude, gist_rule=rule)
    for see, exclude, rule in itertools.product((False, True), (False, True), ("causal", "bidirectional"))
]
SCHEMES = [
    *OPTIONS,
    Scheme(n_gist=3, gist_rule="diagonal"),
    Scheme(n_gist=2, see_current=True, gist_rule="diagonal"),
    Scheme(n_gist=2, instruction="squeeze"),
    Scheme(method="anllm"),
    Scheme(level="token", step=5, n_gist=2),
    Scheme(method="memento"),
    Scheme(method="vanilla"),
]


def name(scheme):
    options = (
        scheme.method,
        scheme.level,
        scheme.gist_rule,
        *(o for o in ("see_current", "exclude_continue", "instruction") if getattr(scheme, o)),
    )
    return "-".join(options)


def spell(text):
    return [20 + ord(letter) % 60 for letter in text]


BOTH = [(scheme, None) for scheme in SCHEMES] + [(OPTIONS[7], "plain"), (SCHEMES[11], "plain")]


@pytest.mark.parametrize("scheme, form", BOTH, ids=lambda x: name(x) if isinstance(x, Scheme) else x or "best")
def test_decode_is_the_masked_forward(scheme, form, seen_logits):
    """7 requests through 3 rows, out of phase and refilled: at every sampled place the logits of one masked forward."""
    bounded = scheme.method in ("lightthinker", "anllm", "memento") and scheme.level == "thought"
    config = DecodeConfig(
        rows=3,
        capacity=120,
        block_steps=8,
        closers=2,
        patience=2,
        sampling=Sampling(1.0),
        max_thought=9 if bounded else None,
        implementation=form,
    )
    engine = Engine(params(), MODEL, scheme, SPECIAL, config, spell)
    asked = requests()
    done = engine.complete(asked)
    jax.effects_barrier()
    assert engine.programs.block._cache_size() == 1
    for request, c in zip(asked, done, strict=True):
        n = c.prompt_length
        np.testing.assert_array_equal(c.prompt, request.prompt)
        want = replay(c)
        sampled = np.flatnonzero(~c.forced)
        got = np.array([seen_logits[request.seed, n + i] for i in sampled])
        np.testing.assert_allclose(got[:, :120], want[n + sampled - 1, :120], atol=1e-5, rtol=0)
        logp = got - np.logaddexp.reduce(got, -1, keepdims=True)
        np.testing.assert_allclose(c.logp[sampled], logp[np.arange(len(sampled)), c.tokens[sampled]], atol=1e-5)
        _check_counts(c, 1 if scheme.method == "vanilla" else len(closing(scheme, SPECIAL, spell)))
        _check_layout(scheme, c)
    if scheme.method != "vanilla":
        # What a random model samples depends on rounding; Memento's blocks need two tokens in the right order.
        counted = [c.compressions for c in done]
        assert sum(counted) >= 1 if scheme.method == "memento" else max(counted) >= 2


def _check_counts(c, width):
    """`visible` is what the rule says of the recorded lifetimes; what is held is what is alive, and the newcomers."""
    mask = np.asarray(dense_mask(c.lifetimes()))[0, 0]
    np.testing.assert_array_equal(c.visible, mask.sum(-1)[c.prompt_length :])
    alone = ~np.isin(np.arange(len(c.tokens)), np.concatenate([c.closings + k for k in range(width)] or [[]]))
    np.testing.assert_array_equal(c.held[alone], c.visible[alone])


def _check_layout(scheme, c):
    """The row as training lays the same text out has the same tokens and lifetimes, up to the last closed thought."""
    ends = c.closings
    if scheme.method == "vanilla" or not len(ends):
        assert (c.death[: c.prompt_length + (0 if len(ends) else len(c.tokens))] == NEVER).all()
        return
    if scheme.method == "memento":
        row = build_row(scheme, SPECIAL, c.prompt, [c.tokens], spell, add_eos=False)
        upto = len(c.row)
    else:
        width = len(closing(scheme, SPECIAL, spell))
        thoughts, start = [], 0
        for end in ends:
            thoughts.append(c.tokens[start : end + (scheme.level == "token")])
            start = end + width
        if any(len(t) == 0 for t in thoughts):
            return  # training drops empty thoughts
        row = build_row(scheme, SPECIAL, c.prompt, thoughts, spell, add_eos=False)
        upto = c.prompt_length + start
        assert len(row) == upto
    np.testing.assert_array_equal(row.tokens[:upto], c.row[:upto])
    for ours, theirs in ((c.death, row.death), (c.since, row.since), (c.block, row.gist)):
        np.testing.assert_array_equal(ours[:upto], theirs[:upto])


@pytest.mark.parametrize("prefill_compress", [True, False])
def test_compressed_prompt(prefill_compress, seen_logits):
    """Prompts of chunks and gists, fed in pieces: the keys of the chunks are freed and the logits stay the same."""
    scheme = Scheme(
        n_gist=2, prompt="tokens", prompt_step=4, prefill_compress=prefill_compress, gist_rule="bidirectional"
    )
    config = DecodeConfig(rows=2, capacity=120, block_steps=8, sampling=Sampling(1.0), max_thought=9)
    rng = np.random.default_rng(1)
    rows = [build_prompt(scheme, SPECIAL, rng.integers(0, 100, n).tolist(), spell) for n in (9, 30, 13)]
    engine = Engine(params(), MODEL, scheme, SPECIAL, config)
    done = engine.complete([Request(row, 20, seed=i) for i, row in enumerate(rows)])
    jax.effects_barrier()
    for row, c in zip(rows, done, strict=True):
        want = replay(c)
        n, seed = len(row), [len(r) for r in rows].index(len(row))
        for i in np.flatnonzero(~c.forced):
            np.testing.assert_allclose(seen_logits[seed, n + i][:120], want[n + i - 1, :120], atol=1e-5, rtol=0)
        assert c.visible[0] == np.sum(row.death > n) + 1 == c.held[0] < n


def test_greedy_rows_do_not_touch_each_other():
    """A row alone gives what it gives in a batch; so does another engine with another block length."""
    scheme = Scheme(n_gist=3)
    asked = requests(6, seed=3)
    together = Engine(params(), MODEL, scheme, SPECIAL, DecodeConfig(4, 120, 8, max_thought=5)).complete(asked)
    alone = Engine(params(), MODEL, scheme, SPECIAL, DecodeConfig(1, 120, 5, max_thought=5)).complete(asked)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.visible, b.visible)
        np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)
        assert a.finish == b.finish


@pytest.fixture(scope="module")
def vanilla():
    return Engine(params(), MODEL, Scheme(method="vanilla"), SPECIAL, DecodeConfig(2, 40, 8, stop=(7,)))


def test_counter_of_vanilla_is_the_closed_form(vanilla):
    """Dependency L_P L_O + L_O (L_O + 1) / 2, peak L_P + L_O (LightThinker 5)."""
    for c in vanilla.complete(requests(3, longest=9, max_new=(5, 9))):
        p, o = c.prompt_length, len(c.tokens)
        assert c.visible.sum() == p * o + o * (o + 1) // 2
        assert c.held.max() == p + o
        assert not c.forced.any() and c.compressions == 0


def test_held_while_closing():
    """X + kept + thought + trigger + gists + output token."""
    engine = Engine(params(), MODEL, Scheme(n_gist=3), SPECIAL, DecodeConfig(1, 120, 16, max_thought=6))
    (c,) = engine.complete([Request([1, 2, 3, 4], 30)])
    kept, start = 0, 0
    for end in c.closings:
        assert (c.held[end : end + 5] == 4 + kept + (end - start) + 1 + 3 + 1).all()
        assert c.visible[end + 4] == 4 + kept + 3 + 1
        kept, start = kept + 4, end + 5
    assert c.compressions >= 4 and c.finish == "length"
    assert np.sum(~c.is_gist & (c.tokens != 116)) == 30  # gists and output tokens are free


@pytest.mark.parametrize("capacity, max_thought, last", [(24, 5, 117), (12, 20, None)], ids=["closing", "token"])
def test_a_full_cache_ends_a_thought(capacity, max_thought, last):
    """A row ends where the next closing, or the next token alone, would need more keys than the capacity."""
    engine = Engine(params(), MODEL, Scheme(n_gist=3), SPECIAL, DecodeConfig(1, capacity, 16, max_thought=max_thought))
    (c,) = engine.complete([Request([1, 2, 3, 4], 300)])
    closed = c.compressions
    start = int(c.closings[-1]) + 5 if closed else 0  # of the thought that is open at the end
    held = 4 + 4 * closed + len(c.tokens) - start
    assert c.finish == "capacity" and c.held[-1] == held and c.held.max() <= capacity
    if last is None:  # no room for one token more
        assert held == capacity and c.tokens[-1] != 117
    else:  # the trigger has room, what must follow it has not: three gists and the output token
        assert c.tokens[-1] == last and held <= capacity < held + 4 and closed >= 2


@pytest.mark.parametrize("form", [None, "plain"])
def test_adapters_decode_as_the_merged_export(form, tmp_path):
    """bfloat16 weights with adapters and new rows: the engine's weights are those that an export has."""
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    half = half | {"embed": half["embed"].at[MODEL.vocab_size :].set(0)}  # no export has the padding
    model = MODEL.replace(model_type="qwen2")
    adapted, config = lora.add(half, model, LoraConfig(rank=4, rows=(110, 10)), jax.random.key(1))
    draw = np.random.default_rng(5)
    stir = lambda x, on: x + draw.normal(0, 0.1, x.shape).astype(np.float32) if on else x
    adapted = jax.tree.map(stir, adapted, lora.trainable(adapted))
    merged, plain = huggingface.load(huggingface.save(tmp_path / "merged", adapted, config))
    one = Engine(adapted, config, Scheme(n_gist=3), SPECIAL, DecodeConfig(2, 60, 8, max_thought=5, implementation=form))
    two = Engine(merged, plain, Scheme(n_gist=3), SPECIAL, DecodeConfig(2, 60, 8, max_thought=5, implementation=form))
    different = total = 0
    for a, b in zip(jax.tree.leaves(one.weights), jax.tree.leaves(two.weights), strict=True):
        different, total = different + int(np.sum(a != b)), total + a.size
    assert different <= total / 1000  # sums of the same numbers in float32, rounded once
    for a, b in zip(one.complete(requests(3)), two.complete(requests(3)), strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.logp, b.logp, atol=1e-3)


@pytest.fixture
def scripted(monkeypatch):
    """A token for every index of a row, set by the test, in place of sampling."""
    script = np.full(600, 5, np.int32)
    say = lambda logits, barred, seed, index, *rest: (jnp.asarray(script)[index], jnp.zeros(index.shape))
    monkeypatch.setattr(control, "sample", say)
    return script


def scripted_engine(scheme=VANILLA, model=MODEL, eviction=None, **options):
    config = DecodeConfig(**dict(rows=2, capacity=120, block_steps=8, stop=(7,), eviction=eviction) | options)
    return Engine(params(), model, scheme, SPECIAL, config)


def test_finishes(scripted):
    scripted[[6, 9]] = 7, 119
    done = scripted_engine(capacity=40).complete(
        [Request([5] * n, most) for n, most in ((1, 3), (2, 500), (8, 500), (12, 500))]
    )
    assert [c.finish for c in done] == ["length", "stop", "eos", "capacity"]
    assert [c.row.tolist()[c.prompt_length :] for c in done] == [[5] * 3, [5] * 4 + [7], [5, 119], [5] * 28]
    assert done[3].held.max() == 40 == len(done[3].row)


@pytest.mark.parametrize("scheme", [Scheme(method="vanilla"), Scheme(n_gist=3)], ids=["vanilla", "lightthinker"])
def test_a_row_ends_at_the_last_position_whatever_else_is_asked(scheme, scripted):
    """With an eviction, without, and with deaths recorded further or not at all; as vLLM's max_model_len."""
    scripted[[25, 46, 48]] = 117  # closed; would need 5 indices of 50
    scripted = None if scheme.method == "vanilla" else (25, 46)
    model, budget = MODEL.replace(max_positions=50), published("knorm", 30, 16)
    ways = [dict(), dict(eviction=budget), dict(eviction=budget, horizon=300), dict(eviction=budget, horizon=50)]
    rows = []
    for options in ways:
        (c,) = scripted_engine(scheme, model, **options).complete([Request([5] * 20, 500)])
        assert c.finish == "positions" and len(c.row) == (50 if scripted is None else 47)
        assert c.compressions == (0 if scripted is None else 1)
        rows.append(c.row)
    assert all((row == rows[0]).all() for row in rows)
    (short,) = scripted_engine(scheme, model, eviction=budget, horizon=40).complete([Request([5] * 20, 500)])
    assert short.finish == "positions" and len(short.row) == 40
    for options in ways:  # a prompt that leaves no room for one token
        (c,) = scripted_engine(scheme, model, **options).complete([Request([5] * 50, 5)])
        assert "a prompt of 50 tokens leaves no room for a response within the 50 posit" in c.why


@pytest.mark.parametrize("form", [None, "plain"])
def test_logits_that_are_no_numbers_end_their_row_alone(form):
    """In a prompt, in the middle of a response, and while a thought is closed; nor does the next request notice."""
    model, scheme = MODEL.replace(tie_embeddings=False), Scheme(n_gist=3)
    tree = parameters.init(jax.random.key(0), model)
    config = DecodeConfig(2, 120, 8, Sampling(1.0), max_thought=6, implementation=form)
    asked = [Request([1, 2, 3], 20, 0), Request([4, 5, 6], 20, 1), Request([10, 11, 12], 20, 2)]
    whole = Engine(tree, model, scheme, SPECIAL, config).complete(asked)
    mine, other = set(whole[1].tokens[1:6]), set(whole[0].tokens) | set(whole[2].tokens) | {*range(13), 99}
    bad = int(min(mine - other))  # of the second row alone
    at = int(np.flatnonzero(whole[1].tokens == bad)[0])
    spoilt = tree | {"embed": tree["embed"].at[jnp.asarray([bad, 99])].set(jnp.nan)}
    engine = Engine(spoilt, model, scheme, SPECIAL, config)
    done = engine.complete([*asked[:2], Request([1, 99, 1], 20), *asked[2:], asked[0]])
    assert [c.finish for c in done] == [whole[0].finish, "nan", "nan", whole[2].finish, whole[0].finish]
    np.testing.assert_array_equal(done[1].tokens, whole[1].tokens[: at + 1])
    assert len(done[2].tokens) == 0 and done[2].held.max(initial=0) == 0 and done[2].prompt_held == 3
    for a, b in zip((done[0], done[3], done[4]), (whole[0], whole[2], whole[0]), strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
    spoilt = tree | {"embed": tree["embed"].at[111].set(jnp.inf)}  # a gist
    for c in Engine(spoilt, model, scheme, SPECIAL, config).complete(asked[:2]):
        assert c.finish == "nan" and c.compressions == 1 and c.closings[0] + 5 == len(c.tokens)


def test_new_weights_take_the_place_of_the_old(vanilla, monkeypatch):
    """While they are made, the engine holds none: two copies with the caller's, not three."""
    old, seen = [weakref.ref(x) for x in jax.tree.leaves(vanilla.weights)], []
    own = [ref for ref in old if not any(ref() is x for x in jax.tree.leaves(params()))]
    assert own

    def making(*arguments):
        seen.append([ref() for ref in own])
        return weights.tables_form(*arguments)

    monkeypatch.setattr(spread, "tables_form", making)
    del vanilla.spread.__dict__["making"]  # so that it is traced once more
    vanilla.load(params())
    vanilla.load(params())
    assert seen == [[None] * len(own)], "not, or compiled again for weights of the same shapes"


@pytest.mark.parametrize("length", [520, 1030])
def test_no_pass_of_a_prompt_is_larger_than_allowed(length):
    cut = pieces.pieces(as_row([1] * length), 4096, DecodeConfig())
    groups = pieces.alike([cut] * 33, [0] * 33, [0] * 33)
    assert sorted(sum(groups, [])) == list(range(33))
    assert max(len(group) for group in groups) * max(p.padded for p in cut) <= pieces.TOGETHER
    short = pieces.pieces(as_row([1] * 16), 4096, DecodeConfig())
    assert [len(g) for g in pieces.alike([short] * 33, [0] * 33, [0] * 33)] == [32, 1]
    assert pieces.group_size(short) == 32
    kinds = pieces.alike([cut, short, cut, short], [0, 0, 1, 0], [0] * 4)
    assert sorted(map(sorted, kinds)) == [[0], [1, 3], [2]], "neither other pieces nor other lifetimes go together"


def test_replaced_configs_derive_anew():
    config = DecodeConfig(rows=64)
    assert (config.closing_rows, config.evicting_rows, config.most_keys) == (4, 8, 4096)
    small = dataclasses.replace(config, rows=2, capacity=100)
    assert (small.closing_rows, small.evicting_rows, small.most_keys) == (1, 1, 100)
    cut = dataclasses.replace(small, eviction=published("full", 64, 16), horizon=20)
    assert (cut.most_keys, cut.evicts, cut.recorded) == (80, None, 0)
    assert dataclasses.replace(cut, eviction=None, horizon=0) == small
    cut = dataclasses.replace(cut, eviction=published("rkv", 32, 16))
    assert (cut.most_keys, cut.evicts.policy, cut.recorded) == (48, "rkv", 20)
    assert MODEL.vocab_padded == 128 and MODEL.replace(vocab_size=500).vocab_padded == 512


def test_the_callers_leave_is_no_harm(vanilla):
    """Stopping the iterator and running again gives what a fresh run gives; new weights need no compilation."""
    asked = requests(3, seed=5, longest=9, max_new=(8, 12))
    want = vanilla.complete(asked)
    for _ in vanilla.run(asked):
        break
    vanilla.load(params())
    for a, b in zip(want, vanilla.complete(asked), strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
    assert vanilla.programs.block._cache_size() == 1


@pytest.mark.parametrize("form", [None, "plain"])
def test_the_cache_is_never_copied(form):
    """Temporaries of the block are far smaller than the cache, which is donated and updated in place."""
    scheme, config = Scheme(n_gist=3, exclude_continue=True), DecodeConfig(16, 4000, 8, closers=2, implementation=form)
    model = dataclasses.replace(MODEL, layers=3)
    engine = Engine(parameters.init(jax.random.key(0), model), model, scheme, SPECIAL, config)
    lowered = engine.programs.block.lower(engine.weights, engine.state, engine.cache, np.ones(1, np.int32))
    memory = lowered.compile().memory_analysis()
    keys = engine.cache.k.nbytes + engine.cache.v.nbytes
    assert memory.temp_size_in_bytes < keys / 8, (memory.temp_size_in_bytes, keys)
    assert memory.alias_size_in_bytes > keys


def test_streaming_marks_gists():
    engine = Engine(params(), MODEL, Scheme(n_gist=2), SPECIAL, DecodeConfig(1, 120, 4, max_thought=3))
    out, blocks = [], []
    streamer = TextStreamer(lambda ids: "".join(f"<{i}>" for i in ids), out.append)

    def both(record, start):
        blocks.append(len(record) - start)
        streamer(record, start)

    (c,) = engine.run([Request([1, 2, 3], 9)], both)
    text, written = "".join(out), c.tokens[~c.forced | (c.tokens == 117)]
    assert text.count("[2 gists for 4 keys]") == c.compressions == 2
    assert text.replace("\n[2 gists for 4 keys]\n", "") == "".join(f"<{t}>" for t in written)
    assert len(blocks) > 1 and sum(blocks) == len(c.tokens)


def test_streamed_and_returned_text_are_the_same():
    """Where thoughts are ended by force with a token that is text, such as two line ends, and at a row's very end."""
    for scheme, most in ((Scheme(n_gist=2), 9), (Scheme(n_gist=2), 8), (Scheme("memento"), 9)):
        engine = Engine(params(), MODEL, scheme, SPECIAL, DecodeConfig(1, 120, 4, max_thought=3))
        out = []
        streamer = TextStreamer(lambda ids: "".join(f"<{i}>" for i in ids), out.append, mark=lambda gists, keys: "")
        (c,) = engine.run([Request([1, 2, 3], most)], streamer)
        assert "".join(out) == "".join(f"<{t}>" for t in c.tokens[c.written])
        assert scheme.method == "memento" or (c.forced & c.written).sum() >= 2, "ended by force"
        assert not (c.is_gist & c.written).any() and (c.written | c.forced).all()


@pytest.mark.parametrize(
    "change, match",
    [
        (dict(max_thought=5), "vanilla has no thoughts"),
        (dict(rows=0), "decode.rows is 0"),
        (dict(closers=3), "DecodeConfig.closers is 3"),
    ],
)
def test_bad_configs_say_what_is_wrong(change, match):
    with pytest.raises(UserError, match=match):
        Engine(params(), MODEL, Scheme(method="vanilla"), SPECIAL, DecodeConfig(**dict(rows=2) | change))


def test_bad_requests_say_what_is_wrong(vanilla):
    for request, match in (
        (Request([], 3), "request 0: the prompt is empty"),
        (Request([1] * 40, 3), "a prompt of 40 tokens does not fit; the capacity is 40"),
        (Request([1], 0), "max_new is 0"),
        (Request([1, 120, 2], 3), "request 0: token id 120 of the prompt is outside the model's vocabulary of 120"),
        (Request([3, -1], 3), "request 0: token id -1 of the prompt is outside"),
    ):
        good, bad = vanilla.complete([Request([5], 3), request])
        assert good.finish != "refused" and bad.finish == "refused" and len(bad.tokens) == 0
        assert match.replace("request 0", "request 1") in bad.why
    with pytest.raises(UserError, match="outside the model's vocabulary"):
        Engine(params(), MODEL, Scheme(method="vanilla"), dataclasses.replace(SPECIAL, eos=500), DecodeConfig())
