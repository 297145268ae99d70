"""The kernels for NVIDIA GPUs over the cache, interpreted, against the plain form: outputs 1e-5 (bfloat16 8e-3).

Keys and values of slots that no query of the row sees hold NaN throughout. Without TRITON_INTERPRET=1 only what is
refused is tested here.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import cache as slots
from lt_jax.attention import triton_decode
from lt_jax.attention.triton_decode import Form
from lt_jax.cache.attend import dense, write
from lt_jax.cache.kv_cache import pick
from lt_jax.cache.policies import Eviction, h2o
from lt_jax.decode import DecodeConfig, Engine, Request
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from lt_jax.lifetimes import NEVER
from lt_jax.models import rope
from lt_jax.models.config import DecoderConfig
from lt_jax.models.decoder import rms_norm
from tests.test_decode import MODEL, SPECIAL, params
from tests.test_split import over_eight_devices

interpreted = pytest.mark.triton_interpreted
LAYERS, LAYER = 2, 1


def case(dtype="float32", rows=2, tokens=1, kv_heads=2, share=2, size=64, capacity=128, each=False, chosen=None):
    """Operands of `triton_decode.attend`: the mask has holes, the last row is empty, a query sees nothing."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32).astype(dtype)
    batch = rows if chosen is None else 1 + max(chosen)
    shape = (LAYERS, batch, kv_heads, capacity, size)
    fresh, keys, values = draw(rows, tokens, kv_heads * (share + 2), size), draw(*shape), draw(*shape)
    start = rng.integers(1, capacity - tokens, rows).astype(np.int32)
    start[0] = capacity - tokens
    bound = start + tokens
    mask = rng.random((rows, kv_heads if each else 1, tokens, capacity)) < 0.6
    if rows > 1:
        bound[-1] = 0
    if tokens > 1:
        mask[0, :, -1] = False
    mask &= np.arange(capacity) < bound[:, None, None, None]
    where = np.arange(rows) if chosen is None else np.array(chosen, np.int32)
    seen = np.zeros(shape[:4], bool)
    seen[LAYER, where] = mask.any(2)
    keys, values = (np.where(seen[..., None], x, np.nan).astype(dtype) for x in (keys, values))
    return fresh, keys, values, None if chosen is None else where, start, mask, bound


@functools.partial(jax.jit, static_argnames=("eps",))
def plain(fresh, keys, values, rows, start, mask, bound, angles, norms, eps):
    """Attended, keys, values and received: all slots at once, in float32."""
    kv_heads = keys.shape[2]
    heads = fresh.shape[2] - 2 * kv_heads
    q, k, v = fresh[:, :, :heads], fresh[:, :, heads:-kv_heads], fresh[:, :, -kv_heads:]
    if norms is not None:
        q, k = (rms_norm(x, weight, eps) for x, weight in zip((q, k), norms, strict=True))
    if angles is not None:
        q, k = (rope.rotate(x, *angles) for x in (q, k))
    keys, values = write(keys, k, LAYER, rows, start), write(values, v, LAYER, rows, start)
    seen = jnp.any(mask, 2)
    clean = lambda x: jnp.where(seen[..., None], pick(x[LAYER], rows, 0), 0).astype(jnp.float32)[None]
    q = q.astype(jnp.float32)
    k, v = clean(keys), clean(values)
    return dense(q, k, v, 0, None, mask, bound), keys, values, h2o.received(q, k[0], mask)


def check(name: str, form=None, received=True, around=None, **how):
    fresh, keys, values, rows, start, mask, bound = operands = case(**how)
    around = around or dict(angles=None, norms=None, eps=0.0)
    run = functools.partial(triton_decode.attend, layer=LAYER, received=received, form=form)
    run = functools.partial(run, **around)
    named = ("fresh", "keys", "values", "rows", "start", "mask", "bound")
    got = jax.jit(lambda given: run(**given))(dict(zip(named, operands, strict=True)))
    want = plain(*operands, around["angles"], around["norms"], around["eps"])
    coarse = fresh.dtype != np.float32
    close = lambda a, b, limit: np.testing.assert_allclose(
        np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0, atol=limit, err_msg=name
    )
    close(got[0], want[0], 8e-3 if coarse else 1e-5)
    for new, old, ours in ((got[1], keys, want[1]), (got[2], values, want[2])):
        written = np.zeros(keys.shape[:4], bool)
        for r, row in enumerate(np.arange(len(start)) if rows is None else rows):
            written[LAYER, row, :, start[r] : start[r] + fresh.shape[1]] = True
        close(np.asarray(new)[~written], old[~written], 0)
        close(np.asarray(new)[written], np.asarray(ours)[written], 2e-2 if coarse else 1e-6)
    unseen = ~np.broadcast_to(mask.any(-1), (*mask.shape[:1], keys.shape[2], mask.shape[2]))
    assert unseen.any() or len(start) == 1
    by_head = np.asarray(got[0]).reshape(*fresh.shape[:2], keys.shape[2], -1)
    assert not by_head[unseen.swapaxes(1, 2)].any(), "a query that sees nothing"
    if not received:
        assert got[3] is None
        return
    close(got[3], want[3], 1e-4 if coarse else 1e-5)
    assert not np.asarray(got[3])[~np.broadcast_to(mask.any(2), got[3].shape)].any()


def cut(queries, slots=32, parts=3, stages=2):
    return Form(queries, slots, parts, 4, stages)


CASES = {
    "one token": dict(form=cut(16)),
    "one token, one part": dict(form=cut(16, 64, 1), each=True, share=7),
    "one token, as chosen": dict(rows=1, capacity=256),
    "more parts than blocks": dict(form=cut(16, 64, 5), rows=3, share=1),
    "chosen rows, a mask per head": dict(form=cut(16), rows=3, chosen=(3, 0, 2), each=True, size=128),
    "heads of 80": dict(form=cut(16, 64, 2), size=80, kv_heads=1, share=3),
    "heads of 96": dict(form=cut(16, 64, 1), size=96, kv_heads=1, share=3, received=False),
    "heads of 256": dict(form=cut(16, 32, 2), size=256, kv_heads=1, share=2),
    "5 tokens": dict(form=cut(16), tokens=5, share=3, each=True),
    "5 tokens, chosen rows": dict(form=cut(32, 64, 2), tokens=5, share=6, rows=3, chosen=(1, 0, 3)),
    "40 tokens in tiles": dict(form=cut(32, 64, 2), tokens=40, kv_heads=1, share=3),
    "40 tokens, one part": dict(form=cut(64, 64, 1), tokens=40, share=2, each=True),
    "bfloat16": dict(form=cut(16, 64, 2), dtype="bfloat16", share=6, size=128),
    "bfloat16, 9 tokens": dict(form=cut(64, 64, 2), dtype="bfloat16", tokens=9, share=6, each=True),
}


@interpreted
@pytest.mark.parametrize("name", CASES)
def test_against_the_plain_form(name):
    check(name, **CASES[name])


@interpreted
@pytest.mark.parametrize("dtype, tokens, normed", [("float32", 3, True), ("float32", 1, False), ("bfloat16", 1, True)])
def test_new_queries_and_keys_are_normed_and_turned(dtype, tokens, normed):
    model = DecoderConfig(vocab_size=8, hidden=8, intermediate=8, layers=1, heads=4, kv_heads=2, head_dim=64)
    angles = rope.table(model, np.array([[5], [70]]) + np.arange(tokens))
    weights = tuple(np.random.default_rng(1).uniform(0.5, 1.5, (2, 64)).astype(np.float32))
    around = dict(angles=angles, norms=weights if normed else None, eps=1e-6)
    check("turned", cut(16, 64, 1), False, around, dtype=dtype, tokens=tokens)


@interpreted
def test_rows_that_are_padding_get_zeros():
    fresh, *rest = case(rows=1)
    keys, values, rows, start, mask, bound = rest
    wide = np.concatenate([fresh, np.full_like(fresh, np.nan)])
    run = jax.jit(lambda x: triton_decode.attend(x, keys, values, LAYER, rows, start, mask, bound, form=cut(16))[0])
    got, want = np.asarray(run(wide)), np.asarray(run(fresh))
    np.testing.assert_array_equal(got[:1], want)
    assert not got[1:].any()


KINDS = {
    "lightthinker": (Scheme(n_gist=3), dict(max_thought=6)),
    "h2o": (Scheme(method="vanilla"), dict(eviction=Eviction("h2o", 12, 6, window=4, sinks=2), horizon=60)),
}


@interpreted
@pytest.mark.parametrize("name, rows", [("lightthinker", 1), ("h2o", 2)])
def test_an_engine_decodes_alike_by_the_kernels(name, rows):
    """Prompts, closings and single steps; one row is decoded beside a line of padding."""
    scheme, more = KINDS[name]
    asked = [Request(np.arange(5, 14) + i, 16, seed=i) for i in range(rows)]
    engine = lambda form: Engine(
        params(), MODEL, scheme, SPECIAL, DecodeConfig(rows, 60, 16, implementation=form, **more)
    )
    for got, want in zip(engine("triton").complete(asked), engine("plain").complete(asked), strict=True):
        np.testing.assert_array_equal(got.tokens, want.tokens)
        np.testing.assert_allclose(got.logp, want.logp, atol=1e-4)
        np.testing.assert_array_equal(got.death, want.death)
        assert (np.asarray(got.death if name == "lightthinker" else got.evicted) < NEVER).any()


MESH = """
import jax, numpy as np
from lt_jax.decode import DecodeConfig, Engine, Request
from lt_jax.decode.spread import over_devices
from lt_jax.layout.scheme import Scheme
from tests.test_decode import MODEL, SPECIAL, params

asked = [Request(np.arange(3, 12) + i, 6, seed=i) for i in range(2)]
engine = lambda form, split: Engine(
    params(), MODEL, Scheme(method="vanilla"), SPECIAL, DecodeConfig(2, 60, 4, implementation=form), split=split)
want = engine("plain", None).complete(asked)
for tensor in (1, 2):
    got = engine("triton", over_devices(jax.devices()[:2], tensor)).complete(asked)
    for a, b in zip(got, want):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.logp, b.logp, atol=1e-4)
print("the same")
"""


@interpreted
def test_over_a_mesh_of_two_devices():
    """Rows over them, and heads over them: each device calls the kernels for its own part."""
    assert "the same" in over_eight_devices(MESH)


def test_what_the_kernels_do_not_take_is_refused():
    def attend(size, dtype):
        new, cached = jnp.zeros((2, 1, 2, size), dtype), jnp.zeros((1, 2, 2, 64, size), dtype)
        start = jnp.zeros(2, jnp.int32)
        slots.attend(new, new, new, cached, cached, 0, None, start, jnp.ones((2, 1, 1, 64), bool), start, "triton")

    for size, dtype in ((64, "float16"), (320, "float32"), (5, "float32")):
        with pytest.raises(UserError, match=f"even head sizes up to 256 .* not {size} and {dtype}; name 'blocks'"):
            attend(size, dtype)


def test_an_engine_refuses_the_kernels_where_there_are_none(monkeypatch):
    monkeypatch.setattr("lt_jax.cuda.kernel.interpreting", lambda: False)
    why = "'triton' is (for NVIDIA GPUs from Ampere on; the platform is cpu|made of Triton kernels)"
    with pytest.raises(UserError, match=why):
        Engine(params(), MODEL, Scheme(method="vanilla"), SPECIAL, DecodeConfig(implementation="triton"))
