"""Packed rows are the separate rows: masks, targets, positions."""

import itertools

import numpy as np
import pytest

from lt_jax.errors import UserError
from lt_jax.layout.build import build_row
from lt_jax.layout.packing import FEATURES, features, finish, pack_rows, stack
from lt_jax.layout.scheme import Scheme
from lt_jax.lifetimes import Lifetimes, dense_mask, draw
from tests.layout_tools import TABLE, assert_drawn, characters

SCHEMES = [
    Scheme("vanilla"),
    Scheme(n_gist=2, exclude_continue=True),
    Scheme(n_gist=3, see_current=True, gist_rule="bidirectional"),
    Scheme(n_gist=3, gist_rule="diagonal", prompt="tokens", prompt_step=2),
    Scheme(level="token", step=2, n_gist=1),
    Scheme("anllm"),
    Scheme("memento"),
]


def rows_of(scheme):
    texts = [["ab"], ["c", "def"], ["g", "hi", "j"]]
    if scheme.method == "memento":
        texts = [[[7, 40, 8, 9, 41, 10]], ["c", [7, 40, 41, 8, 9, 42, 10, 43]], ["ghi"]]
    return [build_row(scheme, TABLE, "xyz"[: i + 1], text, characters) for i, text in enumerate(texts)]


def mask_of(packed, scheme):
    batch = stack([packed])
    gist = None if scheme.gist_rule == "causal" else batch["gist"]
    return np.asarray(dense_mask(Lifetimes(batch["death"], batch["since"], gist, scheme.gist_rule)))[0, 0]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme.method}-{scheme.level}-{scheme.gist_rule}")
def test_a_packed_row_is_its_rows_side_by_side(scheme):
    rows = rows_of(scheme)
    total = sum(map(len, rows))
    packed = pack_rows(rows, total + 3, TABLE.pad)
    expected = np.eye(total + 3, dtype=bool)
    start = 0
    for row in rows:
        stop = start + len(row)
        expected[start:stop, start:stop] = np.asarray(dense_mask(row.lifetimes(scheme.gist_rule)))[0, 0]
        assert packed["tokens"][start:stop].tolist() == row.tokens.tolist()
        assert packed["positions"][start:stop].tolist() == list(range(len(row)))
        assert packed["targets"][start : stop - 1].tolist() == row.tokens[1:].tolist()
        assert packed["weights"][start:stop].tolist() == [*row.trained[1:].astype(float), 0.0]
        start = stop
    np.testing.assert_array_equal(mask_of(packed, scheme), expected)
    assert packed["weights"][total:].sum() == 0 and set(packed["tokens"][total:]) == {TABLE.pad}
    assert packed["weights"].dtype == np.float32
    assert all(packed[name].dtype == np.int32 for name in packed if name != "weights")


def test_no_weight_reaches_over_a_document_even_without_a_prompt_between():
    rows = [build_row(Scheme("vanilla"), TABLE, [30], [[40]], characters)] * 2
    packed = pack_rows(rows, 6, TABLE.pad)
    assert packed["weights"].tolist() == [1, 1, 0, 1, 1, 0]
    assert packed["targets"].tolist() == [40, 1, 0, 40, 1, 0]


def test_the_picture_of_pack_rows_is_its_mask():
    rows = [build_row(Scheme("vanilla"), TABLE, [30], [[40] * size], characters, add_eos=False) for size in (1, 2)]
    assert_drawn("a a b b b -\n" + draw(mask_of(pack_rows(rows, 6, 0), Scheme("vanilla"))), pack_rows)


def test_finish_takes_batches_as_a_packer_leaves_them():
    scheme = SCHEMES[2]
    rows = rows_of(scheme)
    length = max(len(a) + len(b) for a, b in itertools.pairwise(rows)) + 1
    joined = {name: np.zeros((2, length), np.int32) for name in FEATURES}
    segment = np.zeros((2, length), np.int32)
    for line, pair in enumerate(itertools.pairwise(rows)):
        start = 0
        for number, row in enumerate(pair):
            for name, values in features(row).items():
                joined[name][line, start : start + len(row)] = values
            segment[line, start : start + len(row)] = number + 1
            start += len(row)
    batch = finish(joined, segment, TABLE.pad)
    expected = stack([pack_rows(pair, length, TABLE.pad) for pair in itertools.pairwise(rows)])
    for name in expected:
        np.testing.assert_array_equal(batch[name], expected[name], err_msg=name)


def test_rows_that_do_not_fit_are_refused():
    rows = [build_row(Scheme("vanilla"), TABLE, [30], [[40] * 5], characters)] * 2
    with pytest.raises(UserError, match="14 tokens in all do not fit into 13"):
        pack_rows(rows, 13, 0)
