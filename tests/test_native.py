"""The native forms against the plain ones, one suite for both; the build and its failures."""

from __future__ import annotations

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import native
from lt_jax.errors import UserError
from lt_jax.native import build

needs_native = pytest.mark.skipif(build.reason() is not None, reason=f"no native library: {build.reason()}")
FORMS = [pytest.param("native", marks=needs_native), "plain"]


def draw(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def close(got, want, tolerance=1e-5):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("columns", [1, 31, 64, 100])
def test_packing_is_exact(dtype, columns):
    w = draw(0, 7, columns, dtype=dtype)
    packed = native.prepack(w)
    assert packed.panels.shape == (-(-columns // 32), 7, 32) and packed.dtype == dtype and packed.shape == w.shape
    assert (native.unpack(packed) == w).all()
    some = jnp.arange(columns)[::-1].reshape(1, -1)
    assert (native.take_columns(packed, some) == w.T[some]).all()


def test_order_of_a_bfloat16_panel():
    packed = native.prepack(jnp.arange(32, dtype=jnp.bfloat16)[None])
    assert packed.panels[0, 0, :6].tolist() == [0, 16, 1, 17, 2, 18]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 15, 33, 97, 200])
def test_matmul(form, dtype, rows):
    # 67: no multiple of any unrolling; 1024: rows 4 KiB apart; 100 columns: the last panel is not full.
    for seed, (k, n) in enumerate([(67, 100), (1024, 64), (256, 320)]):
        x, w, b = draw(seed, rows, k), draw(seed + 10, k, n, dtype=dtype), draw(seed + 20, n)
        exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
        packed = native.prepack(w)
        close(native.matmul(x, packed, implementation=form), exact, 3e-6)
        close(native.matmul(x, packed, b, implementation=form), exact + np.asarray(b), 3e-6)


@pytest.mark.parametrize("form", FORMS)
def test_matmul_in_loops_and_with_leading_axes(form):
    x, packed = draw(0, 2, 3, 64), native.prepack(draw(1, 64, 64) / 8)
    step = lambda y, _: (jnp.tanh(native.matmul(y, packed, implementation=form)), y.sum())
    scanned, sums = jax.jit(lambda x: jax.lax.scan(step, x, length=5))(x)
    looped = jax.jit(lambda x: jax.lax.while_loop(
        lambda c: c[0] < 5, lambda c: (c[0] + 1, step(c[1], None)[0]), (0, x))[1])(x)
    want = np.asarray(x)
    for _ in range(5):
        want = np.tanh(want @ np.asarray(native.unpack(packed)))
    close(scanned, want)
    close(looped, want)
    assert sums.shape == (5,)


@pytest.mark.parametrize("form", FORMS)
def test_no_rows(form):
    assert native.matmul(jnp.zeros((0, 8)), native.prepack(draw(0, 8, 40)), implementation=form).shape == (0, 40)


def test_x_that_does_not_fit():
    with pytest.raises(UserError, match="last axis of x must be 8"):
        native.matmul(jnp.zeros((2, 7)), native.prepack(draw(0, 8, 40)))


@dataclasses.dataclass
class Case:
    """A cache of 3 layers and 5 rows, of which some are asked."""

    heads: int = 4
    kv_heads: int = 2
    size: int = 32
    tokens: int = 1
    slots: int = 192
    dtype: type = jnp.float32
    each: bool = False

    def arguments(self, seed=0):
        rng = np.random.default_rng(seed)
        rows = np.array([4, 0, 3])
        cache = lambda s: draw(s, 3, 5, self.kv_heads, self.slots, self.size, dtype=self.dtype)
        new = lambda s: draw(s, 3, self.tokens, self.kv_heads, self.size)
        start = np.array([0, 70, self.slots - self.tokens])
        bound = start + self.tokens
        shape = 3, self.kv_heads if self.each else 1, self.tokens, self.slots
        mask = (rng.random(shape) < 0.5) & (np.arange(self.slots) < bound[:, None, None, None])
        mask[1, :, 0, 16:80] = False  # whole blocks that are hidden
        return (draw(1, 3, self.tokens, self.heads, self.size), new(2), new(3), cache(4), cache(5), 1,
                *map(jnp.asarray, (rows, start, mask, bound)))


CASES = {
    "plain": Case(),
    "one kv head per head": Case(heads=2, kv_heads=2, size=16),
    "seven heads share": Case(heads=14, size=64),
    "many share": Case(heads=11, kv_heads=1, size=48),
    "several tokens": Case(tokens=5),
    "prefill": Case(tokens=70, size=16, heads=6),
    "bfloat16 cache": Case(dtype=jnp.bfloat16),
    "each head its own mask": Case(each=True, tokens=3),
    "slots of no block": Case(slots=75),
    "large heads": Case(size=256, tokens=2),
}


def reference(q, k, v, keys, values, layer, rows, start, mask, bound):
    """Key by key, in float64."""
    keys, values = np.array(keys.astype(jnp.float32)), np.array(values.astype(jnp.float32))
    out = np.zeros(q.shape)
    for r, row in enumerate(np.asarray(rows)):
        for t in range(q.shape[1]):
            keys[layer, row, :, start[r] + t] = k[r, t]
            values[layer, row, :, start[r] + t] = v[r, t]
        for t in range(q.shape[1]):
            for h in range(q.shape[2]):
                kv = h * keys.shape[2] // q.shape[2]
                seen = np.flatnonzero(np.asarray(mask)[r, min(kv, mask.shape[1] - 1), t, : int(bound[r])])
                if len(seen):
                    scores = keys[layer, row, kv, seen].astype(float) @ np.asarray(q[r, t, h], float) * q.shape[3]**-0.5
                    weights = np.exp(scores - scores.max())
                    out[r, t, h] = weights / weights.sum() @ values[layer, row, kv, seen]
    return out, keys, values


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_attend(form, name):
    arguments = CASES[name].arguments()
    if CASES[name].dtype == jnp.bfloat16:  # round the new keys first, so that the reference sees what is stored
        q, k, v, *rest = arguments
        arguments = q, *(x.astype(jnp.bfloat16).astype(jnp.float32) for x in (k, v)), *rest
    out, keys, values = jax.jit(lambda *a: native.attend(*a, implementation=form))(*arguments)
    want, want_keys, want_values = reference(*arguments)
    close(out, want, 2e-6)
    assert keys.dtype == arguments[3].dtype
    assert (np.asarray(keys, np.float32) == want_keys).all() and (np.asarray(values, np.float32) == want_values).all()
    assert not np.asarray(arguments[3] == keys).all()  # the caller's own cache is left alone unless donated


@pytest.mark.parametrize("form", FORMS)
def test_attend_sees_nothing_beyond_the_bound(form):
    q, k, v, keys, values, layer, rows, start, mask, bound = Case().arguments()
    everything = jnp.ones_like(mask)
    behind = jnp.arange(keys.shape[3]) >= 71
    keys, values = (jnp.where(behind[:, None], 1e30, x) for x in (keys, values))
    start, bound = jnp.array([0, 70, 3]), jnp.array([0, 71, 4])
    out = native.attend(q, k, v, keys, values, layer, rows, start, everything, bound, implementation=form)[0]
    assert (out[0] == 0).all()  # bound 0: the row sees nothing at all
    assert np.isfinite(out).all() and np.abs(out[1:]).max() < 10


@pytest.mark.parametrize("form", FORMS)
def test_large_scores(form):
    q, *rest = Case().arguments()
    out = native.attend(q * 1e4, *rest, implementation=form)[0]
    assert np.isfinite(out).all()
    close(out, reference(q * 1e4, *rest)[0])


@needs_native
def test_cache_is_carried_through_a_loop_in_place():
    q, k, v, keys, values, _, rows, start, mask, bound = Case().arguments()

    def run(keys, values, layers):
        step = lambda c, layer: (native.attend(q, k, v, *c, layer, rows, start, mask, bound, "native")[1:], None)
        return jax.lax.scan(step, (keys, values), layers)[0]

    compiled = jax.jit(run, donate_argnums=(0, 1)).lower(keys, values, jnp.arange(3)).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < keys.nbytes / 2  # no copy of the cache, not even of one layer with its rows
    got = compiled(keys + 0, values + 0, jnp.arange(3))
    want = keys, values
    for layer in range(3):
        want = native.attend(q, k, v, *want, layer, rows, start, mask, bound, "plain")[1:]
    assert all((a == b).all() for a, b in zip(got, want, strict=True))


@needs_native
def test_a_slot_outside_the_cache_is_an_error_and_not_memory():
    q, k, v, keys, values, layer, rows, start, mask, bound = Case().arguments()
    with pytest.raises(Exception, match="slots 192 to 192 of a cache of 192"):
        jax.block_until_ready(native.attend(q, k, v, keys, values, layer, rows, start + 1, mask, bound, "native"))


@needs_native
def test_head_size_that_native_does_not_take():
    arguments = Case(size=8).arguments()
    with pytest.raises(UserError, match="multiples of 16"):
        native.attend(*arguments, implementation="native")
    close(native.attend(*arguments)[0], reference(*arguments)[0])


@needs_native
def test_many_threads_at_once():
    # One caller has the pool, the others work alone: results must not mix.
    from concurrent.futures import ThreadPoolExecutor
    packed = native.prepack(draw(0, 256, 256))
    run = jax.jit(lambda x: native.matmul(x, packed, implementation="native"))
    inputs = [draw(seed, 16, 256) for seed in range(8)]
    want = [run(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            got = list(pool.map(run, inputs))
            assert all((a == b).all() for a, b in zip(got, want, strict=True))


@pytest.fixture
def no_library(monkeypatch):
    """As on a machine where the compiler does not work; afterwards the real one is asked again."""
    def broken(reason):
        def compiled():
            raise build.Unavailable(reason)
        monkeypatch.setattr(build, "compiled", compiled)
        build.reason.cache_clear()
        native.available.cache_clear()
    yield broken
    monkeypatch.undo()
    build.reason.cache_clear()
    native.available.cache_clear()


def test_without_a_compiler_one_line_says_so(no_library, caplog):
    no_library("no C++ compiler was found (looked for g++)")
    x, packed = draw(0, 2, 8), native.prepack(draw(1, 8, 8))
    with caplog.at_level(logging.WARNING, "lt_jax"):
        for _ in range(2):
            close(native.matmul(x, packed), np.asarray(x) @ np.asarray(native.unpack(packed)))
    assert [r.getMessage() for r in caplog.records] == ["decoding falls back to XLA's own CPU code, which is several "
                                                        "times slower: no C++ compiler was found (looked for g++)"]
    with pytest.raises(UserError, match="no C\\+\\+ compiler was found"):
        native.matmul(x, packed, implementation="native")
    with pytest.raises(UserError, match="it is one of native, plain"):
        native.matmul(x, packed, implementation="fast")


def test_no_compiler_and_broken_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(build.Unavailable, match="looked for no-such-compiler"):
        build.compiled(tmp_path)
    fails = tmp_path / "fails"
    fails.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'x.cc:1: error: wrong' >&2\nexit 1\n")
    fails.chmod(0o755)
    monkeypatch.setattr(build, "COMPILERS", (str(fails),))
    with pytest.raises(build.Unavailable, match="x.cc:1: error: wrong"):
        build.compiled(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []  # nothing half-written


def test_compiled_once_and_again_when_flags_change(monkeypatch, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nwhile [ $# -gt 1 ]; do shift; done\n"
                        f"echo x >> {tmp_path}/calls\necho made > $1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "COMPILERS", (str(compiler),))
    first = build.compiled(tmp_path / "cache")
    assert build.compiled(tmp_path / "cache") == first and len((tmp_path / "calls").read_text().split()) == 1
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    assert build.compiled(tmp_path / "cache") != first
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".so", ".so"]
