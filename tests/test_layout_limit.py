"""Over-length rows: dropped or split between thoughts, every response token trained once, all counted."""

import dataclasses

import numpy as np
import pytest

from lt_jax.errors import UserError
from lt_jax.layout.build import build_row
from lt_jax.layout.limit import cuts, fit
from lt_jax.layout.packing import pack_rows
from lt_jax.layout.scheme import Scheme
from lt_jax.lifetimes import dense_mask
from tests.layout_tools import TABLE, characters

LIMIT = 22
THOUGHTS = [[100 + 10 * number + place for place in range(2 + number % 3)] for number in range(8)]
SCHEMES = [
    Scheme(n_gist=2),
    Scheme(n_gist=2, see_current=True, gist_rule="diagonal", exclude_continue=True),
    Scheme(n_gist=2, prompt="tokens", prompt_step=2, gist_rule="bidirectional"),
    Scheme("anllm"),
    Scheme(level="token", step=3, n_gist=1),
    Scheme("vanilla"),
]


def short(scheme):
    return f"{scheme.method}-{scheme.level}-{scheme.gist_rule}" if isinstance(scheme, Scheme) else str(scheme)


def whole(scheme, thoughts=THOUGHTS, **options):
    return build_row(scheme, TABLE, [30, 31, 32], thoughts, characters, **options)


@pytest.mark.parametrize("scheme", SCHEMES, ids=short)
@pytest.mark.parametrize("context", [0.0, 0.5])
def test_parts_train_every_token_once_in_order(scheme, context):
    row = whole(scheme)
    parts = fit(row, LIMIT, "split", context)
    assert len(parts) > 1 and all(len(part) <= LIMIT for part in parts)
    trained = np.concatenate([part.tokens[part.trained] for part in parts])
    assert trained.tolist() == row.tokens[row.trained].tolist()
    head = row.prompt_length
    for part in parts:
        assert part.tokens[:head].tolist() == row.tokens[:head].tolist()
        assert part.position.tolist() == list(range(len(part)))
        pack_rows([part, part], 2 * len(part), 0)
        assert part.gist.max() < len(part)
    assert all(part.tokens[-1] != TABLE.eos for part in parts[:-1]) and parts[-1].tokens[-1] == TABLE.eos
    for part in parts[1:]:  # something of the response is repeated before what is trained
        assert head < np.flatnonzero(part.trained)[0]


@pytest.mark.parametrize("scheme", SCHEMES[:4], ids=short)
def test_a_part_is_the_row_of_its_own_thoughts(scheme):
    """A part equals `build_row` of the thoughts that it holds, but for what is trained and the thoughts' numbers."""
    for part in fit(whole(scheme), LIMIT, "split"):
        numbers = [n for n, thought in enumerate(THOUGHTS) if thought[0] in part.tokens]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        alone = whole(scheme, [THOUGHTS[n] for n in numbers], add_eos=bool((part.tokens == TABLE.eos).any()))
        for name in ("tokens", "role", "position"):
            np.testing.assert_array_equal(getattr(part, name), getattr(alone, name))
        masks = [np.asarray(dense_mask(each.lifetimes(scheme.gist_rule))) for each in (part, alone)]
        np.testing.assert_array_equal(*masks)
        packed = [pack_rows([each, each], 70, 0)["gist"] for each in (part, alone)]
        np.testing.assert_array_equal(*packed)


def test_memento_is_never_cut_between_block_and_summary():
    blocks = [[7, 100 + n, 200 + n, 8, 9, 50 + n, 10] for n in range(5)]
    scheme = Scheme("memento")
    parts = fit(whole(scheme, [*blocks, [60, 61]]), LIMIT, "split")
    assert [int(token) for part in parts for token in part.tokens[part.trained]] == [*sum(blocks, []), 60, 61, 1]
    for part in parts:
        alone = build_row(scheme, TABLE, part.tokens[:3], [part.tokens[3:]], characters, add_eos=False)
        assert part.death.tolist() == alone.death.tolist()


def test_cuts_lie_between_thoughts_only():
    row = build_row(Scheme(n_gist=1), TABLE, [30, 31], [[100, 101], [102]], characters)  # xx sswco swco e
    assert cuts(row).tolist() == [2, 7, 11, 12]
    memento = build_row(Scheme("memento"), TABLE, [30], [[40, 7, 41, 8, 9, 42, 10, 43, 44]], characters)
    assert cuts(memento).tolist() == [1, 2, 8, 9, 10, 11]  # x t [7 41 8 9 42 10] t t e


def test_drop_and_fit():
    row = whole(SCHEMES[0])
    assert fit(row, len(row)) == [row] and fit(row, len(row), "split") == [row]
    assert fit(row, len(row) - 1) == []


@pytest.mark.parametrize("length, thoughts", [(3, THOUGHTS), (20, [[100] * 4, [101] * 30, [102]])])
def test_what_cannot_be_split_is_dropped_whole(length, thoughts):
    assert fit(whole(SCHEMES[0], thoughts), length, "split") == []


def test_settings_are_checked():
    with pytest.raises(UserError, match="policy 'cut'"):
        fit(whole(SCHEMES[0]), 5, "cut")
    with pytest.raises(UserError, match="context"):
        fit(whole(SCHEMES[0]), 5, "split", 1.0)


def test_rows_stay_as_they_were():
    row = whole(SCHEMES[1])
    before = {field.name: getattr(row, field.name).copy() for field in dataclasses.fields(row)}
    fit(row, LIMIT, "split")
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(row, name), values)
