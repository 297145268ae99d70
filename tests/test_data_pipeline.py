"""The Grain pipeline: what a batch holds, shuffling, slicing, exact resumption, what is too long."""

import dataclasses
import itertools
import json

import grain
import numpy as np
import pytest

from lt_jax.data import builder
from lt_jax.data.counts import DataCounts
from lt_jax.data.pipeline import PACKERS, PipelineConfig, count_batches, evaluation_batches, train_batches
from lt_jax.data.sources import Mapped, worked
from lt_jax.data.tasks import Problems
from lt_jax.errors import UserError
from lt_jax.layout.build import build_row
from lt_jax.layout.packing import pack_rows
from lt_jax.layout.scheme import Scheme
from lt_jax.lifetimes import NEVER
from tests.layout_tools import TABLE
from tests.test_data_rows import maker

SCHEME = Scheme(n_gist=2, see_current=True)
PAD = 0
LENGTH = 40


class Numbers:
    """Item i is made from i alone: 1 to 4 thoughts of 1 to 5 tokens, each token 100 + i."""

    def __init__(self, size=30):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        draw = np.random.default_rng(int(index))
        return [[100 + int(index)] * int(draw.integers(1, 6)) for _ in range(1 + index % 4)]


def to_row(thoughts):
    return build_row(SCHEME, TABLE, [30, thoughts[0][0]], thoughts, None)


def config(**more):
    return PipelineConfig(**{"length": LENGTH, "batch": 4, "bins": 6, "seed": 5, "threads": 0, "prefetch": 0, **more})


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def documents(batch):
    """(row, start, stop) of every document, found from the positions and the padding."""
    for number, (tokens, positions) in enumerate(zip(batch["tokens"], batch["positions"], strict=True)):
        starts = [at for at in range(LENGTH) if positions[at] == 0 and tokens[at] == 30]
        ends = [at for at in range(1, LENGTH) if tokens[at - 1] == TABLE.eos and tokens[at - 2] == TABLE.output]
        if tokens[-1] == TABLE.eos:
            ends.append(LENGTH)
        yield from ((number, start, stop) for start, stop in zip(starts, ends, strict=True))


def items(batches):
    """The items whose documents the batches hold, in order."""
    return [int(batch["tokens"][row, start + 1]) - 100 for batch in batches for row, start, _ in documents(batch)]


@pytest.mark.parametrize("packing", PACKERS)
def test_a_packed_document_is_the_row_itself_moved_along(packing):
    for batch in take(train_batches(Numbers(), to_row, config(packing=packing), PAD), 3):
        assert {name: (values.shape, values.dtype.name) for name, values in batch.items()} == {
            **{name: ((4, LENGTH), "int32") for name in ("tokens", "targets", "positions", "death", "since", "gist")},
            "weights": ((4, LENGTH), "float32"),
        }
        covered = np.zeros((4, LENGTH), bool)
        for row, start, stop in documents(batch):
            item = int(batch["tokens"][row, start + 1]) - 100
            alone = pack_rows([to_row(Numbers()[item])], stop - start, PAD)
            here = {name: values[row, start:stop] for name, values in batch.items()}
            for name, values in alone.items():
                expected = values + start if name in ("death", "since") else values
                if name == "gist":
                    expected = np.where(values >= 0, values + start, -1)
                np.testing.assert_array_equal(here[name], expected, err_msg=name)
            covered[row, start:stop] = True
        index = np.broadcast_to(np.arange(LENGTH), covered.shape)
        assert (batch["tokens"][~covered] == PAD).all() and not batch["weights"][~covered].any()
        assert (batch["death"][~covered] == index[~covered] + 1).all()
        assert (batch["since"][~covered] == index[~covered]).all()


def test_packing_fills_rows_and_one_document_a_row_does_not():
    fill = {}
    for packing in PACKERS:
        batches = train_batches(Numbers(), to_row, config(packing=packing), PAD)
        held = [len(list(documents(batch))) for batch in take(batches, 4)]
        fill[packing] = batches.counts.fill
        assert batches.counts.documents == sum(held) and batches.counts.places == 4 * 4 * LENGTH
        assert (max(held) == 4) == (packing == "none")
    assert fill["best_fit"] > fill["none"] * 1.3 and fill["first_fit"] > fill["none"] * 1.3


def test_an_epoch_has_every_item_once_and_each_epoch_its_own_order():
    batches = list(train_batches(Numbers(), to_row, config(epochs=1), PAD))
    assert sorted(items(batches)) == list(range(30))
    assert all(batch["tokens"].shape == (4, LENGTH) for batch in batches)
    ordered = items(list(train_batches(Numbers(), to_row, config(epochs=2, packing="none", bins=1), PAD)))
    first, second = ordered[:30], ordered[30:]
    assert sorted(first) == sorted(second) == list(range(30)) and first != second != list(range(30)) != first
    still = config(epochs=1, packing="none", bins=1, shuffle=False)
    assert items(list(train_batches(Numbers(), to_row, still, PAD))) == list(range(30))


def test_the_seed_decides_everything_and_threads_and_prefetch_nothing():
    reference = take(train_batches(Numbers(), to_row, config(), PAD), 6)
    assert_same(take(train_batches(Numbers(), to_row, config(threads=3, prefetch=2), PAD), 6), reference)
    other = take(train_batches(Numbers(), to_row, config(seed=6), PAD), 6)
    assert any((a["tokens"] != b["tokens"]).any() for a, b in zip(other, reference, strict=True))


def test_processes_share_the_items_and_the_batch():
    seen = []
    for process in range(2):
        batches = train_batches(Numbers(), to_row, config(epochs=1), PAD, process, 2)
        share = list(batches)
        assert all(batch["tokens"].shape == (2, LENGTH) for batch in share)
        seen += items(share)
    assert sorted(seen) == list(range(30))
    with pytest.raises(UserError, match="batches.batch is 4; it must divide by the 3 processes"):
        train_batches(Numbers(), to_row, config(), PAD, 0, 3)


@pytest.mark.parametrize(
    "packing, handed_out, threads",
    [*itertools.product(PACKERS, [0, 1, 2, 5, 9], [0]), ("best_fit", 3, 2), ("first_fit", 7, 2)],
)
def test_resuming_goes_on_with_the_very_batches_that_would_have_come(packing, handed_out, threads):
    settings = config(packing=packing, over_length="split", length=24, threads=threads, prefetch=threads)
    whole = train_batches(Numbers(), to_row, settings, PAD)
    expected = take(whole, 12)
    started = train_batches(Numbers(), to_row, settings, PAD)
    take(started, handed_out)
    state = json.loads(json.dumps(started.get_state()))
    resumed = train_batches(Numbers(), to_row, settings, PAD)
    resumed.set_state(state)
    assert resumed.counts == started.counts
    assert_same(take(resumed, 12 - handed_out), expected[handed_out:])
    assert resumed.counts == whole.counts and whole.counts.split > 0


def test_the_state_goes_through_an_orbax_checkpoint_while_the_iterator_runs_on(tmp_path):
    from orbax.checkpoint import v1 as ocp

    batches = train_batches(Numbers(), to_row, config(prefetch=2), PAD)
    take(batches, 3)
    with ocp.training.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save_checkpointables_async(3, {"data": batches})
        expected = take(batches, 4)
    resumed = train_batches(Numbers(), to_row, config(), PAD)
    with ocp.training.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.load_checkpointables(3, {"data": resumed})
    assert_same(take(resumed, 4), expected)
    assert resumed.counts == batches.counts


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("epochs, samples", [(0.5, 15), (1, 30), (2.3, 69)])
def test_batches_of_epochs_are_counted_before_and_end_after_exactly_so_many_samples(packing, epochs, samples):
    laid_out = []
    counted = lambda thoughts: laid_out.append(thoughts[0][0]) or to_row(thoughts)
    for more in ({}, {"over_length": "split", "length": 24}, {"length": 24}, {"shuffle": False, "threads": 2}):
        settings = config(packing=packing, epochs=epochs, **more)
        laid_out.clear()
        count = count_batches(Numbers(), counted, settings)
        assert len(laid_out) == len(set(laid_out)) == min(30, samples), "each sample is laid out once"
        batches = train_batches(Numbers(), to_row, settings, PAD)
        assert len(list(batches)) == count and batches.counts.samples == samples


def test_epochs_of_several_processes_end_at_one_step():
    """The process that runs out first goes on with padding, which trains nothing."""
    settings = config(epochs=1, length=24, over_length="split", batch=6)
    count = count_batches(Numbers(11), to_row, settings, 3)
    parts = [train_batches(Numbers(11), to_row, settings, PAD, process, 3, fill=True) for process in range(3)]
    made = [take(part, count) for part in parts]
    assert sum(part.counts.samples for part in parts) == 11
    real = [[bool(batch["weights"].any()) for batch in each] for each in made]
    assert all(each[-1] for each in real if each == max(real)) and min(map(sum, real)) < count, "one ran out"
    assert {batch["tokens"].shape for each in made for batch in each} == {(2, 24)}
    resumed = train_batches(Numbers(11), to_row, settings, PAD, 1, 3, fill=True)
    resumed.set_state(json.loads(json.dumps(parts[1].get_state())))
    assert not next(resumed)["weights"].any() and resumed.counts.samples == parts[1].counts.samples


def test_grain_agrees_that_checkpoints_are_exact():
    grain.experimental.assert_equal_output_after_checkpoint(_Finite(config(epochs=1)))


class _Finite(grain.IterDataset):
    def __init__(self, settings):
        super().__init__()
        self.settings = settings

    def __iter__(self):
        return train_batches(Numbers(12), to_row, self.settings, PAD)


def test_too_long_samples_are_left_out_or_split_and_counted():
    lengths = [len(to_row(Numbers()[index])) for index in range(30)]
    length = 24
    long = sum(size > length for size in lengths)
    assert 0 < long < 30
    dropping = train_batches(Numbers(), to_row, config(epochs=1, length=length), PAD)
    list(dropping)
    assert (dropping.counts.samples, dropping.counts.dropped, dropping.counts.split) == (30, long, 0)
    assert dropping.counts.tokens == sum(size for size in lengths if size <= length)
    assert f"{long} left out as too long" in dropping.counts.describe()
    splitting = train_batches(Numbers(), to_row, config(epochs=1, length=length, over_length="split"), PAD)
    weights = sum(batch["weights"].sum() for batch in splitting)
    assert (splitting.counts.samples, splitting.counts.dropped, splitting.counts.split) == (30, 0, long)
    assert splitting.counts.documents > 30
    assert weights == splitting.counts.trained == sum(to_row(Numbers()[index]).trained.sum() for index in range(30))


@pytest.mark.parametrize("packing", PACKERS)
def test_what_is_left_out_takes_no_row_and_its_count_survives_a_resume(packing):
    settings = config(length=16, packing=packing, batch=2, bins=3)
    whole = train_batches(Numbers(), to_row, settings, PAD)
    expected = take(whole, 8)
    assert whole.counts.dropped > 5
    assert all((batch["positions"].max(axis=1) > 0).all() for batch in expected), "no row is all padding"
    for handed_out in range(6):
        started, resumed = (train_batches(Numbers(), to_row, settings, PAD) for _ in range(2))
        take(started, handed_out)
        resumed.set_state(json.loads(json.dumps(started.get_state())))
        assert_same(take(resumed, 8 - handed_out), expected[handed_out:])
        assert resumed.counts == whole.counts


def test_nothing_fits_is_said_instead_of_waiting_for_ever():
    with pytest.raises(UserError, match="batches.length 6 tokens .the shortest has 9. and batches.over_length 'drop'"):
        next(train_batches(Numbers(), to_row, config(length=6), PAD))
    with pytest.raises(UserError, match="the training data is empty"):
        train_batches([], to_row, config(), PAD)


def test_an_error_of_the_layout_reaches_the_one_who_asks_for_batches():
    def fails(item):
        raise UserError("segment 3 has the token 4")

    with pytest.raises(UserError, match="segment 3 has the token 4"):
        next(train_batches(Numbers(), fails, config(), PAD))


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_goes_through_in_order_once_and_padded(processes):
    found = {}
    for process in range(processes):
        batches = evaluation_batches(Numbers(29), to_row, config(length=LENGTH), PAD, process, processes)
        share = list(batches)
        assert [batch["tokens"].shape for batch in share] == [(4 // processes, LENGTH)] * 8
        listed = items(share)
        assert listed == list(range(process, 29, processes))
        assert batches.counts.samples == batches.counts.documents == len(listed)
        found.update(dict.fromkeys(listed))
    assert sorted(found) == list(range(29))


def test_evaluation_leaves_out_what_is_too_long_and_counts_it():
    batches = evaluation_batches(Numbers(), to_row, config(length=24), PAD)
    kept = sum((batch["death"] == 24).any(axis=1).sum() for batch in batches)
    assert batches.counts.dropped > 0 and batches.counts.documents + batches.counts.dropped == 30 and kept > 0
    with pytest.raises(UserError, match="the evaluation data is empty"):
        evaluation_batches([], to_row, config(), PAD)


@pytest.mark.parametrize(
    "bad, said",
    [
        ({"length": 0}, "batches.length is 0; it must be at least 1"),
        ({"packing": "tight"}, "batches.packing is 'tight'; it must be one of best_fit, first_fit, none"),
        ({"over_length": "cut"}, "batches.over_length is 'cut'; it must be one of drop, split"),
        ({"epochs": 0}, "PipelineConfig.epochs is 0"),
        ({"prefetch": -1}, "batches.prefetch is -1"),
    ],
)
def test_settings_that_cannot_be(bad, said):
    with pytest.raises(UserError, match=said):
        config(**bad)


def test_from_a_file_through_tfds_to_batches_and_from_problems_made_up_by_index(tmp_path):
    path = tmp_path / "traces.jsonl"
    records = [{"question": f"{number}?", "response": "a\n\nb" * (number % 3 + 1)} for number in range(9)]
    path.write_text("\n".join(map(json.dumps, records)))
    prepared = builder.open_prepared(builder.prepare(path, tmp_path / "data"))
    problems = Mapped(Problems(24, steps=(2, 3)), worked)
    for source in (prepared, problems):
        settings = config(length=512, batch=2, bins=2)
        reference = train_batches(source, maker(), settings, PAD)
        expected = take(reference, 4)
        assert reference.counts.dropped == 0 and reference.counts.trained > 0
        threaded = dataclasses.replace(settings, threads=3, prefetch=1)
        assert_same(take(train_batches(source, maker(), threaded, PAD), 4), expected)


def test_counts_add_and_survive_a_packer():
    a, b = DataCounts(samples=3, documents=4, split=1, tokens=70, trained=9), DataCounts(samples=1, dropped=1)
    assert DataCounts.of_packed(np.stack([a.packed(), b.packed()]), 100) == DataCounts(4, 4, 1, 1, 70, 9, 100)
    assert (a + b).samples == 4 and DataCounts(tokens=70, places=100).fill == 0.7 and NEVER > LENGTH
