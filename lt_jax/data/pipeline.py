"""From samples to batches with Grain: shuffle, slice per process, lay out, pack, batch, prefetch; exact to resume.

    source ─ shuffle(seed), anew every epoch ─ repeat ─ slice per process ─ to_row (threads) ─ pack ─ batch ─ prefetch

A source is any sequence with `len` and `[index]`: prepared traces, a list, problems made up from their index. `to_row`
lays an item out. A row that is too long is left out or split (`layout.limit`), and counted. The counts travel with the
rows through Grain's packer, so they are exact over a resume as well, and whatever the prefetch has read ahead.

The iterators are Grain's own kind (`get_state`, `set_state`; Orbax saves them as they are). Their state is that of one
process among `processes`: resuming needs the same number of processes, not of devices.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from lt_jax.data.counts import DataCounts
from lt_jax.errors import UserError
from lt_jax.layout.limit import POLICIES, fit
from lt_jax.layout.packing import FEATURES, features, finish, pack_rows, stack
from lt_jax.layout.row import Row

PACKERS = {
    "best_fit": grain.experimental.BestFitPackIterDataset,
    "first_fit": grain.experimental.FirstFitPackIterDataset,
    "none": grain.experimental.FirstFitPackIterDataset,  # one document a row
}
ToRow = Callable[[Any], Row]
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """How samples become batches.

    Attributes:
        length: how many tokens a row has, S.
        batch: how many rows a batch has over all processes, B.
        seed: of the shuffle and of the packer's order of rows.
        shuffle: whether to shuffle; each epoch has its own order.
        epochs: how many passes over the source, which may be a fraction; None repeats it without end. Packed rows may
            join the end of one epoch and the start of the next. Processes get different numbers of batches, which
            `fill` of `train_batches` evens out.
        over_length: what happens to samples of more than `length` tokens: "drop" or "split" (`layout.limit`).
        packing: a key of PACKERS.
        bins: how many rows are packed at the same time. With more, less padding is wasted, but resuming has to prepare
            more rows again.
        threads: how many threads prepare samples; with 0, the thread that packs does.
        prefetch: how many batches are made in advance.
    """

    length: int
    batch: int
    seed: int = 0
    shuffle: bool = True
    epochs: float | None = None
    over_length: str = "drop"
    packing: str = "best_fit"
    bins: int = 64
    threads: int = 2
    prefetch: int = 2

    def __post_init__(self):
        for name, least in (("length", 1), ("batch", 1), ("bins", 1), ("threads", 0), ("prefetch", 0)):
            if getattr(self, name) < least:
                raise UserError(f"batches.{name} is {getattr(self, name)}; it must be at least {least}")
        if self.epochs is not None and not self.epochs > 0:
            raise UserError(f"PipelineConfig.epochs is {self.epochs}; it must be above 0, or None for no end")
        if self.over_length not in POLICIES:
            raise UserError(f"batches.over_length is {self.over_length!r}; it must be one of {', '.join(POLICIES)}")
        if self.packing not in PACKERS:
            raise UserError(f"batches.packing is {self.packing!r}; it must be one of {', '.join(PACKERS)}")


class TrainBatches(grain.DatasetIterator):
    """Training batches [B of this process, S] (`layout.packing.pack_rows` names the arrays), for one process.

    `counts` are those of the batches handed out so far, also after a resume. With a `filler` the batches never end: it
    comes once the parent has no more.
    """

    def __init__(self, parent: grain.DatasetIterator, filler: Batch | None = None):
        super().__init__(parent)
        self.counts, self.filler = DataCounts(), filler
        weakref.finalize(self, _shut, weakref.ref(self), parent)

    def __next__(self) -> Batch:
        try:
            batch = dict(next(self._parent))
        except StopIteration:
            if self.filler is None:
                raise
            batch = dict(self.filler)
        self.counts += DataCounts.of_packed(batch.pop("counts"), batch["tokens"].size)
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"parent": self._parent.get_state(), "counts": dataclasses.asdict(self.counts)}

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["parent"])
        self.counts = DataCounts(**state["counts"])


def _shut(owner: weakref.ref, parent: grain.DatasetIterator) -> None:
    """Stops the threads and lets the iterators go, at exit before the interpreter takes away the modules they need."""
    parent.close()
    if owner() is not None:
        owner()._parents = ()


def train_batches(
    source: Sequence,
    to_row: ToRow,
    config: PipelineConfig,
    pad: int,
    process: int = 0,
    processes: int = 1,
    fill: bool = False,
) -> TrainBatches:
    """The training iterator of one process.

    Args:
        source: random access; item i must be the same whenever it is asked for. Read from several threads.
        to_row: item -> row; deterministic, safe to call from several threads (`rows.RowMaker`).
        pad: id of the padding token.
        process, processes: which part of the batch this process feeds, and of how many (`training.mesh.share`).
        fill: after the last epoch go on with batches of padding, for a process whose part makes fewer batches than
            another's.

    Raises:
        UserError: the source is empty, the batch does not divide by the processes; while iterating: no sample fits.
    """
    if not len(source):
        raise UserError("the training data is empty")
    rows = _share(config.batch, processes)
    dataset = _packed(source, _Elements(to_row, config, -(-len(source) // processes)), config, process, processes)
    dataset = dataset.map(lambda packed: _finished(packed["row"], packed["row_segment_ids"], packed["counts"], pad))
    empty = _empty_row(config.length, pad)
    dataset = dataset.batch(rows, batch_fn=lambda listed: stack([*listed, *[empty] * (rows - len(listed))]))
    if config.prefetch:
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=config.prefetch)
    return TrainBatches(iter(dataset), stack([empty] * rows) if fill else None)


def count_batches(source: Sequence, to_row: ToRow, config: PipelineConfig, processes: int = 1) -> int:
    """How many batches `config.epochs` passes make: those of the process whose part makes most of them.

    The very pipeline is run, over rows of the right lengths and nothing in them; every sample is laid out once, however
    many epochs there are. Arguments and errors as `train_batches`.
    """
    if not len(source):
        raise UserError("the training data is empty")
    rows = _share(config.batch, processes)
    sizes = _Sizes(source, _Elements(to_row, config, len(source)))
    numbers = range(len(source))
    packed = [_packed(numbers, sizes, config, process, processes) for process in range(processes)]
    return -(-max(sum(1 for _ in each) for each in packed) // rows)


def _packed(source: Sequence, elements: Callable, config: PipelineConfig, process: int, processes: int):
    """The packed rows of one process, as the packer gives them; `elements` makes of an item what is packed."""
    dataset = grain.MapDataset.source(source)
    if config.shuffle:
        dataset = dataset.shuffle(seed=config.seed)
    if config.epochs is None:
        dataset = dataset.repeat(None)
    else:
        dataset = dataset.repeat(math.ceil(config.epochs))[: max(1, round(config.epochs * len(source)))]
    dataset = dataset[process::processes].map(elements).to_iter_dataset(_reading(config, ahead=8))
    dataset = _Carried(grain.experimental.FlatMapIterDataset(dataset, _Each()))
    return PACKERS[config.packing](
        dataset,
        length_struct={"row": config.length, "counts": _most_documents(config)},
        num_packing_bins=config.bins,
        seed=config.seed,
        max_sequences_per_bin=1 if config.packing == "none" else None,
    )


def evaluation_batches(
    source: Sequence, to_row: ToRow, config: PipelineConfig, pad: int, process: int = 0, processes: int = 1
) -> TrainBatches:
    """One pass in order, one document a row, padded; `seed`, `shuffle`, `epochs`, `packing` and `bins` have no part.

    Every process gets the same number of batches: rows are missing (all padding, no weights) where samples are too
    long, whatever `over_length` says, and at the end. Arguments and errors as `train_batches`.
    """
    if not len(source):
        raise UserError("the evaluation data is empty")
    rows = _share(config.batch, processes)
    total = -(-len(source) // config.batch) * rows
    empty = _empty_row(config.length, pad)

    def one(place: int) -> Batch:
        index = place * processes + process
        if index >= len(source):
            return empty
        row = to_row(source[index])
        if len(row) > config.length:
            return {**empty, "counts": DataCounts(samples=1, dropped=1).packed()}
        return {**pack_rows([row], config.length, pad), "counts": (_counts(row) + DataCounts(samples=1)).packed()}

    dataset = grain.MapDataset.range(total).map(one).batch(rows, batch_fn=stack)
    return TrainBatches(iter(dataset.to_iter_dataset(_reading(config, ahead=max(1, config.prefetch)))))


class _Elements:
    """Item -> what the packer packs: a list of {"row": int32 [N, features], "counts": int32 [1, counts]}.

    A sample that is left out is an element of no tokens, whose count `_Carried` puts on the next one.
    """

    def __init__(self, to_row: ToRow, config: PipelineConfig, patience: int):
        self._to_row, self._config, self._patience = to_row, config, patience
        self._dropped, self._shortest, self._fits = 0, 2**31, False

    def __call__(self, item) -> list[dict[str, np.ndarray]]:
        whole = self._to_row(item)
        rows = fit(whole, self._config.length, self._config.over_length)
        if not rows:
            self._left_out(len(whole))
            return [_element(None, DataCounts(samples=1, dropped=1))]
        self._fits = True
        counts = [_counts(row) for row in rows]
        counts[0] += DataCounts(samples=1, split=int(len(rows) > 1))
        return [_element(row, count) for row, count in zip(rows, counts, strict=True)]

    def _left_out(self, length: int) -> None:
        """Once as many samples as an epoch has were all left out, the packer would wait for ever: say so instead."""
        self._dropped += 1
        self._shortest = min(self._shortest, length)
        if not self._fits and self._dropped >= self._patience:
            raise UserError(
                f"all of the first {self._dropped} samples are longer than batches.length {self._config.length} tokens "
                f"(the shortest has {self._shortest}) and batches.over_length {self._config.over_length!r} drops them; "
                "raise the length"
            )


class _Sizes:
    """Index -> what `elements` makes of that item, with empty rows of the same lengths; each item is made once."""

    def __init__(self, source: Sequence, elements: _Elements):
        self._source, self._elements, self._known = source, elements, {}

    def __call__(self, index: int) -> list[dict[str, np.ndarray]]:
        if index not in self._known:
            made = self._elements(self._source[index])
            self._known[index] = [(len(element["row"]), element["counts"]) for element in made]
        return [{"row": np.zeros((n, len(FEATURES)), np.int32), "counts": counts} for n, counts in self._known[index]]


class _Each(grain.experimental.FlatMapTransform):
    max_fan_out = 2**31

    def flat_map(self, element):
        return element


class _Carried(grain.IterDataset):
    """Elements without tokens left out, their counts added to the next element: else each would take a row of its own
    where a row holds one document. Only those at the very end stay, as one element.
    """

    def __iter__(self) -> grain.DatasetIterator:
        return _CarriedIterator(iter(self._parent))


class _CarriedIterator(grain.DatasetIterator):
    """Holds nothing between two elements, so its state is its parent's."""

    def __next__(self) -> dict[str, np.ndarray]:
        held = np.zeros_like(DataCounts().packed()[None])
        while True:
            try:
                element = next(self._parent)
            except StopIteration:
                if not held.any():
                    raise
                return _element(None, DataCounts()) | {"counts": held}
            held = held + element["counts"]
            if len(element["row"]):
                return element | {"counts": held}

    def get_state(self) -> dict[str, Any]:
        return self._parent.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state)


def _element(row: Row | None, counts: DataCounts) -> dict[str, np.ndarray]:
    columns = np.zeros((0, len(FEATURES)), np.int32) if row is None else np.stack([*features(row).values()], axis=1)
    return {"row": columns, "counts": counts.packed()[None]}


def _finished(columns, segment, counts, pad) -> Batch:
    """A packed row: `columns` [S, features], `segment` [S] a number per document, `counts` [documents, counts]."""
    joined = {name: columns[:, place] for place, name in enumerate(FEATURES)}
    return {**finish(joined, segment, pad), "counts": counts.sum(axis=0)}


def _empty_row(length: int, pad: int) -> Batch:
    return {**pack_rows([], length, pad), "counts": DataCounts().packed()}


def _counts(row: Row) -> DataCounts:
    return DataCounts(documents=1, tokens=len(row), trained=int(row.trained.sum()))


def _share(batch: int, processes: int) -> int:
    if batch % processes:
        raise UserError(f"batches.batch is {batch}; it must divide by the {processes} processes")
    return batch // processes


def _most_documents(config: PipelineConfig) -> int:
    """How many documents one packed row may hold: more than real ones ever do."""
    return 64 + config.length // 8


def _reading(config: PipelineConfig, ahead: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=ahead * config.threads)
