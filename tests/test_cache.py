"""The cache against a plain list of (birth, death, key) per row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import cache as slots
from lt_jax.errors import UserError
from lt_jax.lifetimes import NEVER

L, B, H, D, C = 2, 3, 2, 4, 64


def key_of(birth, layer, row):
    """A key that says whose it is."""
    return birth * 100.0 + layer * 10 + row


def filled(lengths):
    """A cache whose row r holds births 0 .. lengths[r]-1."""
    cache = slots.empty(L, B, H, C, D)
    cache, start = slots.append(cache, None, jnp.zeros(B, jnp.int32), jnp.asarray(lengths))
    assert start.tolist() == [[0] * B]
    births = np.arange(C, dtype=np.float32)
    k = np.array([[key_of(births, layer, row) for row in range(B)] for layer in range(L)])  # [L, B, C]
    k = np.broadcast_to(k[:, :, None, :, None], (L, B, H, C, D))
    return slots.KVCache(jnp.asarray(k), jnp.asarray(-k), cache.birth, cache.death, cache.length)


def births(cache, row, layer=0):
    """Births of a row in slot order; checks that keys and values moved with them."""
    own = min(layer, cache.birth.shape[0] - 1)
    n = int(cache.length[own, row])
    found = np.asarray(cache.birth[own, row, 0])
    assert (found[n:] == -1).all()
    for layer in range(L):
        want = np.broadcast_to(key_of(found[:n].astype(np.float32), layer, row)[:, None], (n, D))
        for head in range(H):
            np.testing.assert_array_equal(cache.k[layer, row, head, :n], want)
            np.testing.assert_array_equal(cache.v[layer, row, head, :n], -want)
    return found[:n].tolist()


def test_close_cuts_a_run_of_slots_out():
    """The picture of `close`: X X s s w c o -> X X c o, in one row only; the other rows stay as they are."""
    cache = filled([7, 7, 20])
    rows = jnp.array([1, 2])
    closed = jax.jit(slots.close, static_argnums=4)
    cut = closed(cache, rows, jnp.array([[2, 3]]), jnp.array([[5, 9]]), 2, jnp.array([True, False]))
    assert births(cut, 0) == list(range(7))
    assert births(cut, 1) == [0, 1, 5, 6]
    assert births(cut, 2) == list(range(20))
    cut = closed(cut, rows, jnp.array([[0, 3]]), jnp.array([[1, 5]]), 4, jnp.array([False, True]))  # 4 chunks of 4
    assert births(cut, 2) == [0, 1, 2, *range(5, 20)]


def test_drop_hides_and_compact_frees():
    cache = filled([10, 6, 0])
    rows = jnp.array([0, 1])
    cache = slots.drop(cache, rows, jnp.array([2, 0]), jnp.array([5, 0]), jnp.array([12, 9]))
    index = jnp.array([[11, 12], [6, 7]])
    seen = np.asarray(slots.visible(cache, rows, index))
    assert seen[0, 0, 0, 0].nonzero()[0].tolist() == list(range(10))
    assert seen[0, 0, 0, 1].nonzero()[0].tolist() == [0, 1, 5, 6, 7, 8, 9]
    assert seen[0, 1, 0, 1].nonzero()[0].tolist() == list(range(6))
    freed = slots.compact(cache, jnp.array([12, 12]), rows)
    assert births(freed, 0) == [0, 1, 5, 6, 7, 8, 9] and births(freed, 1) == list(range(6)) and births(freed, 2) == []
    same = slots.compact(cache, jnp.array([11, 11, 11]))
    assert births(same, 0) == list(range(10))


def test_compact_for_each_layer_and_head():
    """With deaths of its own every layer and head keeps other keys, in birth order."""
    rng = np.random.default_rng(0)
    base = filled([12, 12, 12])
    cache = slots.empty(L, B, H, C, D, each=True)
    cache, _ = slots.append(cache, None, jnp.zeros(B, jnp.int32), jnp.full(B, 12))
    dead = np.array([[[rng.permutation(12)[:5] for _ in range(H)] for _ in range(B)] for _ in range(L)])
    death = np.full((L, B, H, C), NEVER, np.int32)
    np.put_along_axis(death, dead, 12, -1)
    cache = slots.KVCache(base.k, base.v, cache.birth, jnp.asarray(death), cache.length)
    out = slots.compact(cache, jnp.full(B, 12))
    assert (np.asarray(out.length) == 7).all()
    for place in np.ndindex(L, B, H):
        want = [b for b in range(12) if b not in dead[place]]
        assert out.birth[place][:7].tolist() == want
        np.testing.assert_array_equal(out.k[place][:7, 0], key_of(np.array(want, np.float32), *place[:2]))


def test_append_with_deaths_and_padding():
    cache = filled([3, 5, 0])
    rows = jnp.array([2, 0])
    death = jnp.array([[7, NEVER, 9], [1, 2, 3]])
    cache, start = slots.append(cache, rows, jnp.array([0, 3]), jnp.array([2, 0]), death)
    assert start.tolist() == [[0, 3]] and cache.length.tolist() == [[3, 5, 2]]
    assert cache.birth[0, 2, 0, :4].tolist() == [0, 1, -1, -1]
    assert cache.death[0, 2, 0, :2].tolist() == [7, NEVER]
    assert cache.birth[0, 0, 0, :4].tolist() == [0, 1, 2, -1]


@pytest.mark.parametrize(
    "implementation", ["dense", "blocks", "pallas", pytest.param("triton", marks=pytest.mark.triton_interpreted)]
)
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("tokens, rows", [(1, None), (1, (2,)), (5, (0, 2)), (3, (1,))])
def test_attend_is_attention_over_the_visible_slots(implementation, each, tokens, rows):
    """Against float64 numpy; slots out of bounds hold NaN-free rubbish that must not matter."""
    rng = np.random.default_rng(tokens)
    heads, capacity = 4, 128
    n = B if rows is None else len(rows)
    who = range(B) if rows is None else rows
    keys, values = (rng.normal(size=(L, B, H, capacity, D)).astype(np.float32) for _ in range(2))
    q = rng.normal(size=(n, tokens, heads, D)).astype(np.float32)
    k_new, v_new = (rng.normal(size=(n, tokens, H, D)).astype(np.float32) for _ in range(2))
    start = rng.integers(1, capacity - tokens, n).astype(np.int32)
    mask = rng.random((n, H if each else 1, tokens, capacity)) < 0.4
    bound = start + tokens
    mask &= np.arange(capacity) < bound[:, None, None, None]
    mask[0, :, -1] = False  # a query that sees nothing
    run = lambda: jax.jit(slots.attend, static_argnums=(5, 10))(
        q, k_new, v_new, keys, values, 1, None if rows is None else jnp.array(rows), start, mask, bound, implementation
    )
    if implementation == "pallas" and tokens > 1:
        with pytest.raises(UserError, match="takes one token a row"):
            run()
        return
    out, k, v, _ = run()
    for r, row in enumerate(who):
        keys[1, row, :, start[r] : start[r] + tokens] = k_new[r].swapaxes(0, 1)
        values[1, row, :, start[r] : start[r] + tokens] = v_new[r].swapaxes(0, 1)
    np.testing.assert_array_equal(k, keys)
    np.testing.assert_array_equal(v, values)
    for r, t, h in np.ndindex(n, tokens, heads):
        head = h // (heads // H)
        seen = mask[r, head if each else 0, t]
        scores = keys[1, who[r], head].astype(np.float64) @ q[r, t, h] / np.sqrt(D)
        p = np.where(seen, np.exp(scores), 0)
        want = p @ values[1, who[r], head] / max(p.sum(), 1e-300)
        np.testing.assert_allclose(out[r, t, h], want, atol=2e-5)


def test_truncated_forgets_what_came_later():
    """The picture of `truncated`: keys before the index stay where they are, also with empty slots between them."""
    cache = slots.close(filled([6, 9, 4]), jnp.array([0]), jnp.array([[2]]), jnp.array([[4]]), 4)
    assert births(cache, 0) == [0, 1, 4, 5]
    cut = jax.jit(slots.truncated)(cache, jnp.array([0, 1]), jnp.array([5, 0]))
    assert births(cut, 0) == [0, 1, 4] and births(cut, 1) == [] and births(cut, 2) == [0, 1, 2, 3]
    holes = slots.empty(L, B, H, C, D, each=True)
    holes, _ = slots.append(holes, None, jnp.zeros(B, jnp.int32), jnp.full(B, 8))
    birth = holes.birth.at[:, :, 1, 2:6].set(-1)
    holes = slots.KVCache(holes.k, holes.v, birth, holes.death, holes.length)
    cut = slots.truncated(holes, jnp.array([1]), jnp.array([7]))
    assert cut.length.tolist() == [[8, 7, 8]] * L and cut.birth[0, 1, 1, :8].tolist() == [0, 1, -1, -1, -1, -1, 6, -1]


def test_copied_rows_hold_the_same():
    """One after the other, in place; rows that are not named stay as they are, whatever the padding says."""
    cache = filled([3, 40, 0])
    origin, rows = jnp.array([1, 2, 0]), jnp.array([2, 0, 1])
    out = jax.jit(slots.copied)(cache, origin, rows, 2)
    assert out.birth[0, 2, 0, :41].tolist() == [*range(40), -1] == out.birth[0, 0, 0, :41].tolist()
    assert out.length.tolist() == [[40, 40, 40]]
    for row in (0, 2):  # both came from row 1
        np.testing.assert_array_equal(out.k[:, row, :, :40], cache.k[:, 1, :, :40])
        np.testing.assert_array_equal(out.v[:, row, :, :40], cache.v[:, 1, :, :40])
    np.testing.assert_array_equal(out.k[:, 1], cache.k[:, 1])


def test_keys_die_when_the_new_row_says():
    """The drawing of `redated`; another row, and keys born beyond what is given, keep their deaths."""
    held = slots.empty(1, 2, 1, 64, 4)
    birth = held.birth.at[0, :, 0, :4].set(jnp.asarray([0, 1, 4, 9]))
    held = dataclasses.replace(held, birth=birth, death=held.death.at[0, :, 0, 3].set(12))
    death = jnp.asarray([[NEVER, 6, NEVER, NEVER, 6, NEVER]])
    found = np.asarray(slots.redated(held, jnp.asarray([1]), death).death[0, :, 0])
    assert found[1, :4].tolist() == [NEVER, 6, 6, 12] and (found[1, 4:] == NEVER).all()
    assert found[0, :4].tolist() == [NEVER, NEVER, NEVER, 12]
