"""The decoding kernel against the plain form over the cache: outputs 1e-5 (bfloat16 3e-3), and what must not matter.

Keys and values of slots that are not visible hold NaN throughout.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lt_jax import cache as slots
from lt_jax import native
from lt_jax.attention import pallas_decode
from lt_jax.attention.pallas_decode import decode, dequantise, quantise
from lt_jax.cache.attend import dense
from lt_jax.cache.policies import Eviction, h2o
from lt_jax.decode import DecodeConfig, Engine, Request
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import NEVER
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig

LAYERS, LAYER = 2, 1


@pytest.fixture(autouse=True)
def few_buffers(monkeypatch):
    """As few as there ever are, so that these small rows come round to each of them again."""
    monkeypatch.setattr(pallas_decode, "FLYING", 0)


def case(dtype="float32", rows=4, kv_heads=2, share=4, size=64, capacity=128, each=False, visible=0, chosen=None,
         block=None, seed=0):  # fmt: skip
    """Operands and options of `decode`, and operands of `plain`."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32).astype("float32" if dtype == "int8" else dtype)
    batch = rows if chosen is None else 1 + max(chosen)
    shape = (LAYERS, batch, kv_heads, capacity, size)
    q, keys, values = draw(rows, kv_heads * share, size), draw(*shape), draw(*shape) / 4
    lengths = rng.integers(1, capacity, (rows, kv_heads if each else 1)).astype(np.int32)
    lengths[0], lengths[1:3, 0] = capacity, (0, 77)[: rows - 1]
    mask = np.arange(capacity) < lengths[..., None]
    options = dict(layer=LAYER, block=block)
    if visible:
        shown = rng.random((rows, visible, capacity)) < 0.6
        shown[0] = True  # a row without holes
        mask = mask & shown
        options |= dict(visible=shown)
    if chosen is not None:
        options |= dict(rows=np.array(chosen, np.int32))
    seen = np.zeros(shape[:4], bool)
    seen[:, np.arange(rows) if chosen is None else chosen] = mask
    if dtype == "int8":
        (k, k_scale), (v, v_scale) = (map(np.asarray, quantise(x)) for x in (keys, values))
        keys, values = (np.asarray(dequantise(x, scale)) for x, scale in ((k, k_scale), (v, v_scale)))
        options |= dict(scales=tuple(np.where(seen, x, np.nan).astype(np.float32) for x in (k_scale, v_scale)))
        operands = q, k, v, lengths
    else:
        spoilt = lambda x: np.where(seen[..., None], x, np.nan).astype(x.dtype)
        operands = q, spoilt(keys), spoilt(values), lengths
    clean = lambda x: np.where(seen[..., None], x, 0).astype(np.float32)
    return operands, options, q.astype(np.float32), clean(keys), clean(values), mask[:, :, None]


@jax.jit
def plain(q, keys, values, rows, mask):
    """Outputs, received and logsumexp of all slots at once."""
    out = dense(q[:, None], keys, values, LAYER, rows, mask, None)[:, 0]
    k = keys[LAYER] if rows is None else keys[LAYER, rows]
    scores = jnp.einsum("rhgd,rhcd->rhgc", q.reshape(*k.shape[:2], -1, k.shape[-1]), k) * k.shape[-1] ** -0.5
    lse = jax.nn.logsumexp(jnp.where(mask, scores, -jnp.inf), -1).reshape(q.shape[:2])
    return out, h2o.received(q[:, None], k, mask), lse


def check(name: str, interpret=None, received=True, **how):
    operands, options, q, keys, values, mask = case(**how)
    fixed = {option: options.pop(option) for option in ("layer", "block")}
    run = functools.partial(decode, **fixed, received=received, logsumexp=received, interpret=interpret)
    got = jax.tree.map(np.asarray, jax.jit(run)(*operands, **options))
    out, sums, lse = map(np.asarray, plain(q, keys, values, options.get("rows"), mask))
    close = lambda a, b, limit: np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=name)
    close(got.out.astype(np.float32), out, 3e-3 if how.get("dtype") == "bfloat16" else 1e-5)
    share = q.shape[1] // keys.shape[2]
    seen = np.broadcast_to(mask.any(-1), (len(q), keys.shape[2], share)).reshape(q.shape[:2])
    assert not got.out[~seen].any(), "a query that sees nothing"
    if not received:
        assert got.received is None and got.logsumexp is None
        return
    close(got.received, sums, 1e-5)
    assert not got.received[~np.broadcast_to(mask[:, :, 0], sums.shape)].any()
    close(got.received.sum(-1), share * seen[:, ::share], 1e-4)
    close(got.logsumexp[seen], lse[seen], 1e-5)


CASES = {
    "one head each": dict(share=1, size=128),
    "groups of 4, a mask for all heads": dict(share=4, size=64, visible=1),
    "groups of 7, a mask and a length per head": dict(share=7, size=64, each=True, visible=2, kv_heads=2),
    "chosen rows": dict(share=4, size=64, chosen=(3, 0, 4, 1), visible=1),
    "pieces": dict(share=4, size=64, capacity=320, block=128, each=True, visible=2),
    "pieces of the same length": dict(share=2, size=64, capacity=384, block=128, received=False),
    "many rows": dict(rows=19, kv_heads=1, share=2, size=64, each=True),
    "one row, groups of 12, heads of 80": dict(rows=1, chosen=(2,), kv_heads=1, share=12, size=80),
    "many heads": dict(kv_heads=8, share=1, size=64, visible=8),
    "bfloat16": dict(dtype="bfloat16", share=4, size=128, visible=2),
    "bfloat16, groups of 7": dict(dtype="bfloat16", share=7, size=64, each=True),
    "bfloat16, pieces": dict(dtype="bfloat16", share=1, size=128, capacity=320, block=128, visible=1, each=True),
    "int8": dict(dtype="int8", share=4, size=64, visible=2, each=True),
    "int8, pieces": dict(dtype="int8", share=7, size=128, capacity=384, block=256),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_plain_form(name):
    check(name, **CASES[name])


@pytest.fixture
def imitation():
    """An imitation of a TPU that copies as the kernel asks for, starts with NaN everywhere, and looks for races."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call as inside

    yield pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan"), lambda: inside.races
    pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.parametrize("how", [
    dict(share=4, each=True, visible=2, rows=9),
    dict(dtype="bfloat16", capacity=320, block=128, rows=3, kv_heads=1),
    dict(dtype="int8", capacity=384, block=128, rows=3, each=True),
], ids=["heads", "pieces", "int8"])  # fmt: skip
def test_copies_are_as_long_as_the_keys_and_never_race(imitation, how):
    """What is read of the cache: of every row and kv head the slots below its length, to a tile of them."""
    interpret, races = imitation
    check("imitation", interpret, **how)
    assert not races().races_found
    (q, keys, _, lengths), *_ = case(**how)
    granule = 32 // keys.dtype.itemsize
    want = np.broadcast_to(-(-np.asarray(lengths) // granule) * granule, (len(q), keys.shape[2]))
    found = np.zeros((2, *want.shape), int)
    every = [reads for (space, *_), reads in races().reads.items() if space == "hbm" and reads]
    sides = [[at for *_, at, _ in reads] for reads in every if len(reads[0][-2]) == 5]
    assert len(sides) == 2  # keys and values
    for side, reads in enumerate(sides):
        for layer, row, heads, copied, _ in reads:
            assert layer == LAYER
            found[side, row, heads] += copied.stop - copied.start
    np.testing.assert_array_equal(found, [want, want])


def test_quantised_slots():
    x = jnp.asarray([[1.0, -0.25, 0.5], [0, 0, 0]])
    got, scale = quantise(x)
    assert got.tolist() == [[127, -32, 64], [0, 0, 0]]
    np.testing.assert_allclose(scale, [1 / 127, 0])
    np.testing.assert_allclose(dequantise(got, scale), x, atol=0.5 / 127)


@pytest.mark.parametrize("change, line", [
    (dict(keys=(2, 4, 2, 128, 32)), "shapes do not fit"),
    (dict(keys=(2, 4, 2, 96, 64)), "capacity is 96; it must be a multiple of 64"),
    (dict(lengths=(4, 3)), "lengths .4, 3. do not fit"),
    (dict(visible=(4, 1, 64)), "visible .4, 1, 64. does not fit"),
    (dict(dtype="int8"), "without scales"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(change, line):
    shapes = dict(keys=(2, 4, 2, 128, 64), lengths=(4, 1), visible=(4, 1, 128), dtype="float32") | change
    keys = jnp.zeros(shapes["keys"], shapes["dtype"])
    with pytest.raises(ValueError, match=line):
        decode(jnp.zeros((4, 8, 64)), keys, keys, jnp.zeros(shapes["lengths"], jnp.int32),
               visible=jnp.zeros(shapes["visible"], bool))  # fmt: skip


def program(platform, implementation=None, tokens=1, size=64):
    """Text of attention over the cache lowered for a platform by this process, which is on a CPU."""
    shape = jax.ShapeDtypeStruct
    new = shape((2, tokens, 2, size), jnp.float32)
    cached = shape((LAYERS, 2, 2, 128, size), jnp.float32)
    count = shape((2,), jnp.int32)
    run = lambda q, k, v, keys, values, start, mask, bound: slots.attend(
        q, k, v, keys, values, LAYER, None, start, mask, bound, implementation, received=True
    )
    traced = jax.jit(run).trace(new, new, new, cached, cached, count, shape((2, 1, tokens, 128), jnp.bool_), count)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_choice_falls_by_the_platform_that_a_program_is_lowered_for():
    assert "lt_decode" in program("tpu") and "lt_attend" not in program("tpu")
    assert "lt_decode" not in program("tpu", tokens=3) and "lt_attend" not in program("tpu", tokens=3)
    assert "lt_decode" not in program("tpu", "blocks")
    for tokens in (1, 3):
        assert "lt_decode" not in program("cuda", tokens=tokens) and "lt_attend" not in program("cuda", tokens=tokens)
        if native.available():
            assert "lt_attend" in program("cpu", tokens=tokens)


MODEL = DecoderConfig(
    vocab_size=120, hidden=32, intermediate=48, layers=2, heads=4, kv_heads=2, head_dim=16, qkv_bias=True
)


@functools.cache
def params():
    """Random, with queries and keys large enough that attention is not flat, so that it matters who is evicted."""
    tree = parameters.init(jax.random.key(0), MODEL)
    for name in "qk":
        tree["layers"][name]["w"] *= 4
    return tree




def engine(form):
    eviction = Eviction("h2o", budget=24, buffer=8, window=4, sinks=2)
    config = DecodeConfig(2, block_steps=16, eviction=eviction, horizon=96, implementation=form)
    return Engine(params(), MODEL, Scheme(method="vanilla"), SpecialTokens(eos=0, pad=1), config)


def test_an_engine_decodes_alike_by_the_kernel():
    """H2O evicts by what the kernel says that the keys received; prompts are read in passes of several tokens."""
    rng = np.random.default_rng(0)
    asked = [Request(rng.integers(2, 100, 9), 40, seed=i) for i in range(3)]
    done = [engine(form).complete(asked) for form in ("pallas", "plain")]
    for got, want in zip(*done, strict=True):
        np.testing.assert_array_equal(got.tokens, want.tokens)
        np.testing.assert_array_equal(got.evicted, want.evicted)
        np.testing.assert_allclose(got.logp, want.logp, atol=1e-4)
    assert any((c.evicted < NEVER).any() for c in done[0])


def test_an_engine_refuses_the_kernel_where_there_is_none(monkeypatch):
    with pytest.raises(UserError, match="DecodeConfig.implementation is 'palas'; it is one of native, plain, pallas"):
        engine("palas")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match="which is for TPUs; the platform is gpu"):
        engine("pallas")


def test_pieces_are_equal_parts_of_the_capacity():
    assert [pallas_decode._block(c, 768) for c in (64, 640, 768, 832, 2304, 4096)] == [128, 640, 768, 512, 768, 768]
