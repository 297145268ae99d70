"""The native forms against the plain ones, one suite for both; the build and its failures."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import shutil
import subprocess

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
    assert (native.unpack(packed)[0] == w).all()
    some = jnp.arange(columns)[::-1].reshape(1, -1)
    assert (native.take_columns(packed, some) == w.T[some]).all()


def test_order_of_a_bfloat16_panel():
    packed = native.prepack(jnp.arange(32, dtype=jnp.bfloat16)[None])
    assert packed.panels[0, 0, :6].tolist() == [0, 16, 1, 17, 2, 18]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_packing_a_gate(dtype):
    gate, up = draw(0, 5, 40, dtype=dtype), draw(1, 5, 40, dtype=dtype)
    packed = native.prepack(gate, up)
    assert packed.gated and packed.panels.shape == (3, 5, 32) and packed.shape == (5, 40)
    assert all((a == b).all() for a, b in zip(native.unpack(packed), (gate, up), strict=True))
    with pytest.raises(UserError, match="must be alike"):
        native.prepack(gate, up[:, :39])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 15, 33, 97, 200])
def test_matmul(form, dtype, rows):
    # 67: no multiple of any unrolling; 1024: rows 4 KiB apart; 100 columns: the last panel is not full.
    for seed, (k, n) in enumerate([(67, 100), (1024, 64), (256, 320)]):
        x, w = draw(seed, rows, k), draw(seed + 10, k, n, dtype=dtype)
        exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
        close(native.matmul(x, native.prepack(w), implementation=form), exact, 3e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("columns", [96, 100])
def test_what_stands_around_the_product(form, gated, columns):
    x, norm, residual = draw(0, 9, 70) * 3, draw(1, 70), draw(2, 9, columns) * 10
    w, up, bias = draw(3, 70, columns), draw(4, 70, columns), draw(5, columns) * 5
    exact = lambda a: np.asarray(a, np.float64)
    normed = exact(x) / np.sqrt((exact(x) ** 2).mean(-1, keepdims=True) + 0.1) * exact(norm)
    want = normed @ exact(w)
    if gated:
        want, bias = want / (1 + np.exp(-want)) * (normed @ exact(up)), None
    packed = native.prepack(w, up if gated else None)
    added = 0 if bias is None else exact(bias)
    got = native.matmul(x, packed, bias, norm=norm, eps=0.1, residual=residual, implementation=form)
    close(got, want + added + exact(residual), 3e-6)
    close(native.matmul(x, packed, bias, norm=norm, eps=0.1, implementation=form), want + added, 3e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gate_far_from_zero(form):
    x = jnp.array([[-1e4], [-90], [-1], [0], [1], [90], [1e4]])
    one = jnp.ones((1, 16))
    got = native.matmul(x, native.prepack(one, one), implementation=form)[:, 0]
    want = np.asarray(x, np.float64)[:, 0]
    np.testing.assert_allclose(got, want**2 / (1 + np.exp(np.minimum(-want, 700))), rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("form", FORMS)
def test_matmul_in_loops_and_with_leading_axes(form):
    x, packed = draw(0, 2, 3, 64), native.prepack(draw(1, 64, 64) / 8)
    step = lambda y, _: (jnp.tanh(native.matmul(y, packed, implementation=form)), y.sum())
    scanned, sums = jax.jit(lambda x: jax.lax.scan(step, x, length=5))(x)
    count = lambda c: (c[0] + 1, step(c[1], None)[0])
    looped = jax.jit(lambda x: jax.lax.while_loop(lambda c: c[0] < 5, count, (0, x))[1])(x)
    want = np.asarray(x)
    for _ in range(5):
        want = np.tanh(want @ np.asarray(native.unpack(packed)[0]))
    close(scanned, want)
    close(looped, want)
    assert sums.shape == (5,)


@pytest.mark.parametrize("form", FORMS)
def test_no_rows(form):
    assert native.matmul(jnp.zeros((0, 8)), native.prepack(draw(0, 8, 40)), implementation=form).shape == (0, 40)


def test_operands_that_do_not_fit():
    x, w = jnp.zeros((2, 8)), draw(0, 8, 40)
    packed, gated = native.prepack(w), native.prepack(w, w)
    with pytest.raises(UserError, match=r"x is \(2, 7\), but \(2, 8\) fits"):
        native.matmul(x[:, :7], packed)
    with pytest.raises(UserError, match=r"residual is \(2, 8\), but \(2, 40\) fits"):
        native.matmul(x, packed, residual=x)
    with pytest.raises(UserError, match="takes no bias"):
        native.matmul(x, gated, jnp.zeros(40))
    with pytest.raises(UserError, match="one matrix"):
        native.prepack(jnp.zeros((2, 8, 40)))


@dataclasses.dataclass
class Case:
    """Three of the five rows of layer 1 of 3."""

    heads: int = 4
    kv_heads: int = 2
    size: int = 32
    tokens: int = 1
    slots: int = 192
    dtype: type = jnp.float32
    each: bool = False
    turned: bool = False
    normed: bool = False

    def arguments(self, seed=0):
        rng = np.random.default_rng(seed)
        rows = np.array([4, 0, 3])
        cache = lambda s: draw(s, 3, 5, self.kv_heads, self.slots, self.size, dtype=self.dtype)
        start = np.array([0, 70, self.slots - self.tokens])
        bound = start + self.tokens
        shape = 3, self.kv_heads if self.each else 1, self.tokens, self.slots
        mask = (rng.random(shape) < 0.5) & (np.arange(self.slots) < bound[:, None, None, None])
        mask[1, :, 0, 16:80] = False  # whole blocks that are hidden
        fresh = draw(1, 3, self.tokens, self.heads + 2 * self.kv_heads, self.size)
        if self.dtype == jnp.bfloat16:  # so that the reference, too, stores what was written
            fresh = fresh.astype(jnp.bfloat16).astype(jnp.float32)
        return fresh, cache(4), cache(5), 1, *map(jnp.asarray, (rows, start, mask, bound))

    def options(self):
        angles = draw(6, 3, self.tokens, 1, self.size // 2)
        return dict(
            angles=(jnp.cos(angles), jnp.sin(angles)) if self.turned else None,
            norms=(draw(7, self.size), draw(8, self.size)) if self.normed else None,
            eps=0.1,
        )


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
    "rotated": Case(tokens=3, turned=True),
    "normed": Case(normed=True),
    "normed and rotated": Case(heads=8, size=16, tokens=2, normed=True, turned=True),
}


def reference(fresh, keys, values, layer, rows, start, mask, bound, angles=None, norms=None, eps=0.0):
    """Key by key, in float64."""
    keys, values = np.array(keys.astype(jnp.float32)), np.array(values.astype(jnp.float32))
    kv_heads, size = keys.shape[2], keys.shape[4]
    heads = fresh.shape[2] - 2 * kv_heads

    def ready(x, r, t, norm):
        if norms is not None:
            x = x / np.sqrt((x**2).mean() + eps) * np.asarray(norms[norm], float)
        if angles is not None:
            turn = np.asarray(angles[0][r, t, 0]) + 1j * np.asarray(angles[1][r, t, 0])
            pairs = (x[: size // 2] + 1j * x[size // 2 :]) * turn
            x = np.concatenate([pairs.real, pairs.imag])
        return x

    out = np.zeros((*fresh.shape[:2], heads, size))
    new = np.asarray(fresh, float)
    for r, row in enumerate(np.asarray(rows)):
        for t in range(fresh.shape[1]):
            for h in range(kv_heads):
                keys[layer, row, h, start[r] + t] = ready(new[r, t, heads + h], r, t, 1)
                values[layer, row, h, start[r] + t] = new[r, t, heads + kv_heads + h]
        for t in range(fresh.shape[1]):
            for h in range(heads):
                kv = h * kv_heads // heads
                seen = np.flatnonzero(np.asarray(mask)[r, min(kv, mask.shape[1] - 1), t, : int(bound[r])])
                if len(seen):
                    scores = keys[layer, row, kv, seen].astype(float) @ ready(new[r, t, h], r, t, 0) * size**-0.5
                    weights = np.exp(scores - scores.max())
                    out[r, t, h] = weights / weights.sum() @ values[layer, row, kv, seen]
    return out, keys, values


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_attend(form, name):
    arguments, options = CASES[name].arguments(), CASES[name].options()
    out, keys, values = jax.jit(lambda *a: native.attend(*a, **options, implementation=form))(*arguments)
    want, want_keys, want_values = reference(*arguments, **options)
    close(out, want, 3e-6)
    assert keys.dtype == arguments[1].dtype
    close(np.asarray(keys, np.float32), want_keys, 1e-6)
    assert (np.asarray(values, np.float32) == want_values).all()
    assert not np.asarray(arguments[1] == keys).all()  # the caller's own cache is left alone unless donated


@pytest.mark.parametrize("form", FORMS)
def test_attend_sums_up_what_slots_receive(form):
    rng = np.random.default_rng(4)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for tokens, heads, kv_heads, slots in ((1, 14, 2, 96), (5, 8, 2, 64), (3, 10, 1, 128)):
        fresh, k, v = normal(3, tokens, heads + 2 * kv_heads, 32), *(normal(2, 4, kv_heads, slots, 32) for _ in "kv")
        rows, start, bound = jnp.asarray([2, 0, 3]), jnp.asarray([40, 7, 20]), jnp.asarray([40, 7, 20]) + tokens
        mask = jnp.asarray(rng.random((3, kv_heads, tokens, slots)) < 0.7).at[1].set(False)
        where = (k, v, 1, rows, start, mask, bound)
        *rest, got = native.attend(fresh, *where, received=True, implementation=form)
        *plain, want = native.attend(fresh, *where, received=True, implementation="plain")
        np.testing.assert_allclose(got, want, atol=2e-5)
        assert not np.any(got[1]) and not np.any(got[0, :, 40 + tokens :])
        np.testing.assert_allclose(got.sum(), heads * tokens * 2, rtol=1e-3)
        for a, b in zip(rest, plain, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_attend_sees_nothing_beyond_the_bound(form):
    fresh, keys, values, layer, rows, start, mask, bound = Case().arguments()
    behind = jnp.arange(keys.shape[3]) >= 71
    keys, values = (jnp.where(behind[:, None], 1e30, x) for x in (keys, values))
    start, bound = jnp.array([0, 70, 3]), jnp.array([0, 71, 4])
    everything = jnp.ones_like(mask)
    out = native.attend(fresh, keys, values, layer, rows, start, everything, bound, implementation=form)[0]
    assert (out[0] == 0).all()  # bound 0: the row sees nothing at all
    assert np.isfinite(out).all() and np.abs(out[1:]).max() < 10


@pytest.mark.parametrize("form", FORMS)
def test_large_scores(form):
    fresh, *rest = Case().arguments()
    fresh = fresh.at[:, :, :4].multiply(1e4)
    out = native.attend(fresh, *rest, implementation=form)[0]
    assert np.isfinite(out).all()
    close(out, reference(fresh, *rest)[0])


@needs_native
def test_cache_is_carried_through_a_loop_in_place():
    fresh, keys, values, _, *where = Case().arguments()

    def run(keys, values, layers):
        step = lambda c, layer: (tuple(native.attend(fresh, *c, layer, *where, implementation="native")[1:]), None)
        return jax.lax.scan(step, (keys, values), layers)[0]

    compiled = jax.jit(run, donate_argnums=(0, 1)).lower(keys, values, jnp.arange(3)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < keys.nbytes / 2  # no copy of the cache
    got = compiled(keys + 0, values + 0, jnp.arange(3))
    want = keys, values
    for layer in range(3):
        want = native.attend(fresh, *want, layer, *where, implementation="plain")[1:]
    assert all((a == b).all() for a, b in zip(got, want, strict=True))


@needs_native
def test_a_slot_outside_the_cache_is_an_error_and_not_memory():
    fresh, keys, values, layer, rows, start, mask, bound = Case().arguments()
    with pytest.raises(Exception, match="slots 192 to 192 of a cache of 192"):
        jax.block_until_ready(
            native.attend(fresh, keys, values, layer, rows, start + 1, mask, bound, implementation="native")
        )


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


@needs_native
def test_loops_of_the_pool(tmp_path):
    """Every item of every loop runs once, however late a helper comes; no loop takes memory on a helper."""
    compiler = next(filter(None, map(shutil.which, build.COMPILERS)))
    made, headers = tmp_path / "pool", pathlib.Path(build.__file__).parent
    flags = ["-w", "-O2", "-std=gnu++17", "-pthread", *build._tuning(), f"-I{headers}"]
    subprocess.run([compiler, *flags, str(pathlib.Path(__file__).with_name("native_pool.cc")), "-o", made], check=True)
    done = subprocess.run([made], capture_output=True, text=True, timeout=60)  # a lost item is waited for for ever
    assert done.stdout == "right\n", (done.returncode, done.stdout, done.stderr)


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
            close(native.matmul(x, packed), np.asarray(x) @ np.asarray(native.unpack(packed)[0]))
    assert [r.getMessage() for r in caplog.records] == ["attention and decoding fall back to XLA's own, several times "
                                                        "slower code: no C++ compiler was found (looked for g++)"]
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
    with monkeypatch.context() as moved:  # an installation beside the clone
        shutil.copytree(pathlib.Path(build.__file__).parent, tmp_path / "elsewhere")
        moved.setattr(build, "__file__", str(tmp_path / "elsewhere" / "build.py"))
        assert build.compiled(tmp_path / "cache") == first
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    assert build.compiled(tmp_path / "cache") != first
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".so", ".so"]
