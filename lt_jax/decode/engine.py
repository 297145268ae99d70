"""The engine: prompts in, completions out, rows refilled as they finish.

Between two compiled blocks the host hands finished rows back and feeds waiting prompts into their rows. The next block
is sent off before the last one's log is read, so that the host's work hides behind it. Rows do not touch each other:
what a row generates does not depend on who shares the batch with it (but for rounding, where the platform's matrix
product rounds differently for another number of rows).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax import cache as slots
from lt_jax.decode import control
from lt_jax.decode.block import decode_block, prefill
from lt_jax.decode.config import Completion, DecodeConfig, Request
from lt_jax.decode.pieces import Piece, alike, feed_of, most_held, pieces
from lt_jax.decode.record import Record
from lt_jax.decode.setup import check, check_request, empty_cache, products, rules_of
from lt_jax.decode.weights import prepare
from lt_jax.errors import UserError
from lt_jax.layout.row import Row
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.models.config import DecoderConfig


class Engine:
    """Decodes requests with one model under one scheme.

    Compiles one decode block, and one prefill for each (piece length, number of rows) it meets.
    """

    def __init__(
        self,
        params: dict,
        model: DecoderConfig,
        scheme: Scheme,
        special: SpecialTokens,
        config: DecodeConfig,
        tokenize: Callable | None = None,
    ):
        """Args:
            params: of `models/params.py`; see `load` to change them later.
            tokenize: text -> ids, needed for `scheme.instruction` only.

        Raises:
            UserError: the scheme, the token table and the config do not go together.
        """
        self.form = products(config)
        self.rules = rules_of(model, scheme, special, config, tokenize)
        check(scheme, model, config, self.rules)
        self.model, self.scheme, self.config = model, scheme, config
        fixed = dict(model=model, rules=self.rules)
        self.block = jax.jit(functools.partial(decode_block, **fixed, config=config), donate_argnums=(1, 2))
        self.prefill = jax.jit(
            functools.partial(prefill, **fixed), static_argnames=("final", "compress", "evict"), donate_argnums=(1, 2)
        )
        self.load(params)
        self.state = control.idle(config.rows)
        self.cache = empty_cache(model, config, self.rules)

    def load(self, params: dict) -> None:
        """Takes new parameters of the same shapes; nothing is compiled again. Rows under way go on with them.

        The old ones are let go of first, so that two copies are held at most: the caller's, and the engine's.
        """
        self.weights = None
        self.weights = jax.jit(prepare, static_argnums=(1, 2))(params, self.model, self.form)

    def run(
        self, requests: Iterable[Request], stream: Callable[[Record, int], None] | None = None
    ) -> Iterator[Completion]:
        """Completions in the order in which they finish.

        Args:
            requests: read as rows become free; may be endless.
            stream: called after each block with every live row's record and the place in it where the news begins.

        Raises:
            UserError: a prompt is empty, does not fit the capacity, or has an id that the model does not know.
        """
        waiting = enumerate(requests)
        records: dict[int, Record] = {}
        more = self._fill(waiting, records, range(self.config.rows))
        sent = self._send(records, more)
        try:
            while records:
                alive, finish = np.asarray(self.state.alive), np.asarray(self.state.finish)
                then = dict(records)
                done = {row: records.pop(row) for row in then if not alive[row]}
                evicted = {row: self._evicted(row) for row in done}
                now = time.perf_counter()
                if more and done:
                    more = self._fill(waiting, records, sorted(set(range(self.config.rows)) - set(records)))
                log, written = sent
                sent = self._send(records, more)
                log, written = np.asarray(log), np.asarray(written)
                for row, record in then.items():
                    news = len(record)
                    record.extend(log[row, : written[row]])
                    if stream is not None:
                        stream(record, news)
                for row, record in done.items():
                    yield record.completion(control.FINISHES[finish[row]], now, evicted[row])
        finally:  # also when the caller stops asking
            self._forget()

    def _evicted(self, row: int) -> jax.Array | None:
        """A copy of the recorded deaths of a row, made on the device before its slot goes to another."""
        return None if self.cache.record is None else self.cache.record[row]

    def _send(self, records: dict[int, Record], more: bool):
        """Starts the next block, if any row is under way; returns its log, which is not there yet."""
        if not records:
            return None
        # With prompts waiting, an eighth of the rows finished is worth a stop; otherwise only the end of all is.
        enough = max(1, len(records) // 8) if more else len(records)
        self.state, self.cache, *log = self.block(self.weights, self.state, self.cache, np.int32(enough))
        return log

    def complete(self, requests: Iterable[Request]) -> list[Completion]:
        """All completions, in the order of the requests."""
        requests = list(requests)
        numbered = [dataclasses.replace(request, id=number) for number, request in enumerate(requests)]
        found = {c.id: c for c in self.run(numbered)}
        own = lambda number, request: number if request.id is None else request.id
        return [dataclasses.replace(found[i], id=own(i, request)) for i, request in enumerate(requests)]

    def read(self, requests: Iterable[Request]) -> list[np.ndarray]:
        """Reads prompts through the cache, without decoding; the deaths that were recorded, [Lr, Kr, P] each.

        Raises:
            UserError: as `run`, or nothing is recorded.
        """
        if self.cache.record is None:
            raise UserError("reading prompts for their deaths needs decode.eviction and decode.horizon")
        waiting, found, more = enumerate(requests), [], True
        try:
            while more:
                records: dict[int, Record] = {}
                more = self._fill(waiting, records, range(self.config.rows))
                found += [np.asarray(self._evicted(row))[..., : len(record.prompt)] for row, record in records.items()]
        finally:
            self._forget()
        return found

    def _forget(self) -> None:
        """Leaves no row alive."""
        self.state = dataclasses.replace(self.state, alive=jnp.zeros_like(self.state.alive))

    def _fill(self, waiting, records: dict[int, Record], free) -> bool:
        """Feeds prompts into the free rows; False when there are no prompts left.

        Rows that ended as `NAN` are emptied first: a weight of zero does not hide a value of NaN from the next request.
        """
        new: dict[int, Record] = {}
        for row in free:
            number, request = next(waiting, (None, None))
            if request is None:
                break
            new[row] = self._record(request, number)
        records.update(new)
        finish = np.asarray(self.state.finish)
        if spoilt := [row for row in new if finish[row] == control.NAN]:
            self.cache = slots.cleared(self.cache, jnp.asarray(spoilt))
        for rows in alike({row: self.cut(record.prompt_row) for row, record in new.items()}):
            self._feed([(row, new[row]) for row in rows])
        return len(new) == len(free)

    def _record(self, request: Request, number: int) -> Record:
        record = Record(request, number if request.id is None else request.id, self.rules, time.perf_counter())
        check_request(record, self.model, self.config, self.rules)
        budgets = () if self.rules.eviction is None else self.rules.eviction.budgets(self.model.layers)
        record.prompt_held = most_held(self.cut(record.prompt_row), budgets)
        return record

    def cut(self, prompt: Row) -> list[Piece]:
        """The pieces in which a prompt is fed."""
        return pieces(prompt, self.cache.capacity, self.config)

    def _feed(self, group: list[tuple[int, Record]]) -> None:
        """Prefills rows whose prompts are cut into the same pieces."""
        prompts = [record.prompt_row for _, record in group]
        rows = jnp.asarray([row for row, _ in group], jnp.int32)
        left = jnp.asarray([record.request.max_new for _, record in group], jnp.int32)
        seed = jnp.asarray([record.request.seed & 0xFFFFFFFF for _, record in group], jnp.uint32)
        starts = [0] * len(group)
        cut = self.cut(prompts[0])
        for number, piece in enumerate(cut):
            final = number == len(cut) - 1
            stops = [len(p) if final else start + piece.take for p, start in zip(prompts, starts, strict=True)]
            feed = feed_of(prompts, rows, starts, stops, piece.padded, self.scheme, self.rules)
            self.state, self.cache = self.prefill(
                self.weights,
                self.state,
                self.cache,
                feed,
                left,
                seed,
                final=final,
                compress=self.scheme.prompt is not None,
                evict=piece.evict,
            )
            starts = stops
