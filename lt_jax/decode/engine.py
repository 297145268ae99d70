"""The engine: requests in, completions out, rows refilled as they finish.

    handle = engine.submit(request)      it waits for a row
    events = engine.step()               what live rows wrote since the last step, and what is finished
    engine.cancel(handle)
    engine.close()

`run` and `complete` stand on these. Between two compiled blocks the host hands finished rows back and feeds waiting
prompts into their rows, from the longest prefix that is there (`prefix.py`, `placing.py`). Where nothing waits, the
next block is sent off before the last one's log is read, so that the host's work hides behind it. Rows do not touch
each other: what a row generates does not depend on who shares the batch with it (but for rounding, where the platform's
matrix product rounds differently for another number of rows).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.attention import Split
from lt_jax.decode import control
from lt_jax.decode.admit import check_request
from lt_jax.decode.block import slack
from lt_jax.decode.completion import Completion, refused
from lt_jax.decode.config import DecodeConfig
from lt_jax.decode.event import Event, Usage
from lt_jax.decode.pieces import (
    PIECES,
    TOGETHER,
    Piece,
    alike,
    feed_of,
    keys_kept,
    last_apart,
    living,
    most_held,
    pieces,
    powers,
)
from lt_jax.decode.placing import Rows, Start
from lt_jax.decode.record import Record
from lt_jax.decode.request import Request, sample_seed
from lt_jax.decode.sample import Settings
from lt_jax.decode.setup import capacity, check, empty_cache, products, rules_of, settings_of, size_for
from lt_jax.decode.spread import Spread
from lt_jax.errors import UserError
from lt_jax.layout.row import Row
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import NEVER
from lt_jax.models.config import DecoderConfig


class Engine:
    """Decodes requests with one model under one scheme.

    Compiles one decode block for each capacity that its rows come to need (`setup.capacity`), and one prefill for each
    (piece length, number of rows) that it meets. One owner at a time: either `run` and what stands on it, or `submit`
    and `step`.

    Attributes:
        usage: tokens of all prompts so far.
    """

    def __init__(
        self,
        params: dict,
        model: DecoderConfig,
        scheme: Scheme,
        special: SpecialTokens,
        config: DecodeConfig,
        tokenize: Callable | None = None,
        detokenize: Callable | None = None,
        weights: dict | None = None,
        split: Split | None = None,
    ):
        """Args:
            params: of `models/params.py`; see `load` to change them later.
            tokenize: text -> ids, needed for `scheme.instruction` only.
            detokenize: ids -> text, needed for requests with `stop_text` only.
            weights: of another engine of these parameters, `config.implementation` and `split`, to be shared with it.
            split: the devices to use, see `spread.py`; of this process alone. None is one device.

        Raises:
            UserError: the scheme, the token table, the config and the mesh do not go together.
        """
        self.spread = Spread(split, config.rows, model)
        self.form = products(config, several=split is not None)
        self.rules = rules_of(model, scheme, special, config, tokenize)
        check(scheme, model, config, self.rules)
        self.model, self.scheme, self.config, self.detokenize = model, scheme, config, detokenize
        self.rows = Rows(config.rows, self.rules, self.spread.own)
        self.weights = weights
        if weights is None:
            self.load(params)
        self.state = self.spread.state(self._settings([Request(())] * config.rows), config.top_logps)
        self.renew()
        self.programs = self.spread.programs(self.rules, config, self.cache)
        self.waiting: collections.deque[Record] = collections.deque()
        self.said: list[Event] = []  # refusals and cancellations, told at the next step
        self.sent: tuple | None = None  # records by row, log, most probable tokens, lines written
        self.usage = Usage()
        self.submitted, self.owner, self.closed = 0, None, False

    def load(self, params: dict) -> None:
        """Takes new parameters of the same shapes; nothing is compiled again. Rows under way go on with them.

        The old ones are let go of first, so that two copies are held at most: the caller's, and the engine's. No prefix
        of before is reused.
        """
        self.weights = None
        self.weights = self.spread.weights(params, self.form)
        self.forget()

    def forget(self) -> None:
        """Lets go of what finished rows hold, and what those under way will: the prompts to come are read whole."""
        self.rows.forget()

    def renew(self) -> None:
        """Begins anew with an empty cache of the least size, as a new engine would; what it grew to is given back.
        Nothing may be under way."""
        self.cache = None  # never two at once
        self.cache = self.spread.empty(functools.partial(empty_cache, self.model, self.config, self.rules, 0))
        self.rows.forget()
        self.rows.spoilt.clear()
        self.rows.slots = self.cache.capacity - self.rules.longest

    def reserve(self, keys: int) -> None:
        """Gives every row room for so many keys now, where it would otherwise come when one needs it."""
        self._make_room(keys)

    def submit(self, request: Request) -> int:
        """Queues a request; the handle by which `step` and `cancel` know it. One that cannot be answered is told so by
        the next `step`, as a completion whose finish is "refused".

        Raises:
            UserError: the engine is closed, or `run` has it.
        """
        self._check_owner(None)
        return self._submit(request)

    def cancel(self, handle: int) -> None:
        """Ends a request wherever it is; its samples come back at the next step with what they have, as "cancelled".
        A handle that is finished or unknown is left alone."""
        stays = collections.deque()
        for record in self.waiting:
            if record.handle == handle:
                self._say(record, 0, record.completion("cancelled", time.perf_counter()))
            else:
                stays.append(record)
        self.waiting = stays
        mine = [row for row, record in self.rows.live.items() if record.handle == handle]
        for row in mine:
            record = self.rows.live[row]
            self._say(record, len(record), record.completion("cancelled", time.perf_counter(), self._evicted(row)))
            self.rows.finished(row, "cancelled", known=self.sent is None)
        self._silence(mine)

    def ended(self, handle: int) -> None:
        """Says that nothing will be submitted that goes on from a finished request. Its row is then taken before those
        of others, whose next turn may come."""
        self.rows.ended(handle)

    def step(self) -> list[Event]:
        """Waits for the block under way, hands out what it brought, and sends off the next one.

        Returns:
            an event for every live row that has news and for every sample that is finished; empty if nothing is left to
            do. A call takes as long as a block of `config.block_steps` steps at most, and prefill.

        Raises:
            UserError: the engine is closed, or `run` has it.
        """
        self._check_owner(None)
        return self._step()

    def close(self) -> None:
        """Ends everything and gives the cache's memory back; the engine takes no more requests."""
        self.closed, self.waiting, self.said, self.sent = True, collections.deque(), [], None
        self.cache = self.state = self.weights = None

    @property
    def busy(self) -> bool:
        """Whether there is anything left to do or to tell."""
        return bool(self.rows.live or self.waiting or self.said)

    def run(
        self, requests: Iterable[Request], stream: Callable[[Record, int], None] | None = None
    ) -> Iterator[Completion]:
        """Completions in the order in which they finish.

        Args:
            requests: as `events` takes them.
            stream: called after each block with every live row's record and the place in it where the news begins.

        Raises:
            UserError: the engine is closed or has other work under way.
        """
        with contextlib.closing(self.events(requests)) as rounds:
            for events in rounds:
                for event in events:
                    if stream is not None and event.record is not None and event.start < len(event.record):
                        stream(event.record, event.start)
                for event in events:
                    if event.completion is not None:
                        yield event.completion

    def events(self, requests: Iterable[Request]) -> Iterator[list[Event]]:
        """What each `step` tells, until all requests are answered; the engine is the iterator's until it is closed.

        Args:
            requests: the next one is asked for when a row becomes free; may be endless. (Where the next one may be long
                in coming, use `submit` and `step`: this would wait for it.)

        Raises:
            UserError: the engine is closed or has other work under way.
        """
        self._check_owner(None)
        if self.busy:
            raise UserError("the engine has requests under way; end them first, or go on with `submit` and `step`")
        self.owner = owner = object()
        mine: set[int] = set()
        source, more = iter(requests), True
        try:
            while True:
                # One more than there are free rows, so that a block knows whether somebody waits for its rows.
                while more and len(self.waiting) <= len(self.rows.free):
                    request = next(source, None)
                    more = request is not None
                    if more:
                        mine.add(self._submit(request))
                events = self._step()
                yield events
                if not events and not more and not self.busy:
                    return
        finally:  # also when the caller stops asking
            if self.owner is owner:
                for handle in mine:
                    self.cancel(handle)
                self.said, self.owner = [], None

    def complete(self, requests: Iterable[Request]) -> list[Completion]:
        """All completions, in the order of the requests; the `n` samples of one stand together."""
        requests = list(requests)
        numbered = [dataclasses.replace(request, id=number) for number, request in enumerate(requests)]
        found = sorted(self.run(numbered), key=lambda done: (done.id, done.sample))
        own = lambda number: number if requests[number].id is None else requests[number].id
        return [dataclasses.replace(done, id=own(done.id)) for done in found]

    def read(self, requests: Iterable[Request]) -> list[np.ndarray]:
        """Reads prompts through the cache, without decoding; the deaths that were recorded, [Lr, Kr, P] each.

        Raises:
            UserError: as `run`, a request that cannot be answered, or nothing is recorded.
        """
        self._check_owner(None)
        if self.cache.record is None:
            raise UserError("reading prompts for their deaths needs DecodeConfig.eviction and DecodeConfig.horizon")
        found = {}
        for request in requests:
            self._submit(request)
        if self.said:
            raise UserError(next(event.completion.why for event in self.said))
        while self.waiting:
            self._fill()
            began = list(self.rows.live.items())
            for row, record in began:
                found[record.handle, record.sample] = np.asarray(self._evicted(row))[..., : len(record.prompt)]
                self.rows.finished(row, "cancelled")
            self._silence([row for row, _ in began])
        return [found[key] for key in sorted(found)]

    def cut(self, prompt: Row, begin: int = 0) -> list[Piece]:
        """The pieces in which a prompt is fed, from the token `begin` on, when there is room for it."""
        most = int(keys_kept(prompt).max())
        room = capacity(self.config, self.rules, most + PIECES[0] + self.rules.longest + slack(self.rules))
        return pieces(prompt, max(room, self.cache.capacity), self.config, begin)

    def lowered(self, length: int, count: int, twins: bool) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
        """The block, and the widest pass in which `count` different prompts of `length` tokens are read; not run.

        Args:
            twins: whether several samples of each are asked for.
        """
        enough = jnp.zeros(self.spread.parts, jnp.int32)
        block = self.programs.block.lower(self.weights, self.state, self.cache, enough)
        record = Record(Request(np.zeros(length, np.int32), 1), 0, 0, 0, 0, self.rules)
        cut = self.cut(record.prompt_row)
        cut = last_apart(cut) if twins else cut
        piece = max(cut, key=lambda piece: piece.padded)
        own = -(-count // self.spread.parts)  # rows of each part, as in `powers`
        own = min(1 << (own.bit_length() - 1), max(1, TOGETHER // piece.padded))
        rows = (part * self.spread.own + row for part in range(self.spread.parts) for row in range(own))
        given, how = self._given([(row, record, 0, piece.take) for row in rows], piece, piece is cut[-1])
        return block, self.programs.prefill.lower(self.weights, self.state, self.cache, *given, **how)

    def _check_owner(self, owner) -> None:
        if self.closed:
            raise UserError("the engine is closed")
        if self.owner is not owner:
            raise UserError("the engine belongs to a `run` that is not finished; close that iterator first")

    def _submit(self, request: Request) -> int:
        handle, self.submitted = self.submitted, self.submitted + 1
        name = handle if request.id is None else request.id
        try:
            check_request(request, name, self.model, self.config, self.rules, self.detokenize is not None)
        except UserError as error:
            self.said.append(Event(handle, 0, None, 0, refused(name, 0, str(error))))
            return handle
        seed = sample_seed(0, handle + 1) if request.seed is None else int(request.seed)
        budgets = () if self.rules.eviction is None else self.rules.eviction.budgets(self.model.layers)
        for sample in range(request.n):
            record = Record(request, name, handle, sample, sample_seed(seed, sample), self.rules)
            record.prompt_held = most_held(self.cut(record.prompt_row), record.prompt_row, budgets)
            self.waiting.append(record)
        return handle

    def _say(self, record: Record, start: int, completion: Completion) -> None:
        self.said.append(Event(record.handle, record.sample, record, start, completion))

    def _step(self) -> list[Event]:
        if self.sent is None:
            self._fill()
            self._send()
        events, self.said = self.said, []
        if self.sent is None:
            return events
        then, log, tops, written = self.sent
        self.sent = None
        then = {row: record for row, record in then.items() if self.rows.live.get(row) is record}
        alive, finish = np.asarray(self.state.alive), np.asarray(self.state.finish)  # waits for the block
        done = {row: self._evicted(row) for row in then if not alive[row]}
        now = time.perf_counter()
        self._make_room(1 + int(np.where(alive, np.asarray(self.cache.length).max(0), 0).max()))
        if not self.waiting:  # nothing is to be decided by what the block wrote
            self._send(besides=done)
        log, written, *tops = map(np.asarray, (log, written, *tops))
        for row, record in then.items():
            start, new = len(record), written[row]
            record.extend(log[row, :new], tuple(top[row, :new] for top in tops))
            stopped = record.cut_at_stop_text(start, self.detokenize)
            completion = None
            if row in done or stopped:
                reason = "stop" if stopped else control.FINISHES[finish[row]]
                evicted = done[row] if row in done else self._evicted(row)
                completion = record.completion(reason, now, evicted)
                self.rows.finished(row, reason, known=not stopped)
                self._silence([row] * stopped)
            events.append(Event(record.handle, record.sample, record, min(start, len(record)), completion))
        if self.sent is None:
            self._fill()
            self._send()
        return events

    def _make_room(self, keys: int) -> None:
        """Gives every row more slots if one of them is to hold so many keys, and what closing a thought adds."""
        need = keys + self.rules.longest + slack(self.rules)
        if (more := capacity(self.config, self.rules, need)) > self.cache.capacity:
            self.cache = self.programs.grow(self.cache, more)
            self.rows.slots = more - self.rules.longest

    def _silence(self, rows: list[int]) -> None:
        """Ends rows that have not ended by themselves; a block that is under way still goes on with them."""
        if rows:
            self.state = self.programs.silence(self.state, jnp.asarray(rows))

    def _evicted(self, row: int) -> jax.Array | None:
        """A copy of the recorded deaths of a row, made on the device before its slots go to another."""
        return None if self.cache.record is None else self.cache.record[row]

    def _send(self, besides=()) -> None:
        """Starts the next block, if any row is under way; its log is not there yet."""
        live = {row: record for row, record in self.rows.live.items() if row not in besides}
        if not live:
            return
        # With requests waiting, an eighth of the rows finished is worth a stop; otherwise only the end of all is.
        own = np.bincount([self.spread.part(row) for row in live], minlength=self.spread.parts)
        enough = np.maximum(1, own // 8 if self.waiting else own).astype(np.int32)
        self.state, self.cache, *written = self.programs.block(self.weights, self.state, self.cache, enough)
        self.sent = live, *written

    def _fill(self) -> None:
        """Feeds waiting prompts into free rows, wave by wave."""
        while self.waiting and (wave := self.rows.wave(self.waiting)):
            self._make_room(max(int(keys_kept(start.record.prompt_row).max()) for start in wave) + PIECES[0])
            new = [row for start in wave for row, _ in start.members]
            # A weight of zero does not hide a value of NaN from the next request.
            if spoilt := sorted(self.rows.spoilt.intersection(new)):
                self.cache = self.programs.clear(self.cache, jnp.asarray(spoilt))
                self.rows.spoilt -= set(spoilt)
            self._copy([(start.origin, start.row) for start in wave if start.origin not in (None, start.row)])
            self._redate([start for start in wave if start.redated])
            cuts = [self.cut(start.record.prompt_row, start.begin) for start in wave]
            cuts = [last_apart(cut) if start.twins else cut for cut, start in zip(cuts, wave, strict=True)]
            kinds = [living(start.record.prompt_row) for start in wave]
            for group in alike(cuts, kinds, [self.spread.part(start.row) for start in wave]):
                self._feed([wave[i] for i in group], [cuts[i] for i in group])
            for _, record in (member for start in wave for member in start.members):
                record.started = time.perf_counter()
                self.usage += Usage(record.read, record.reused, record.read_again)

    def _copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copies what rows hold, (from, to) each, one after the other; both in the same part."""
        spread = self.spread
        own = [[pair for pair in pairs if spread.part(pair[0]) == part] for part in range(spread.parts)]
        while any(own):
            moves = np.zeros((2, spread.parts, spread.own), np.int32)
            count = np.asarray([min(len(pairs), spread.own) for pairs in own], np.int32)
            for part, n in enumerate(count):
                moves[:, part, :n] = np.transpose(own[part][:n]) % spread.own if n else 0
                own[part] = own[part][n:]
            self.cache = self.programs.copy(self.cache, *moves.reshape(2, -1), count)

    def _redate(self, starts: list[Start]) -> None:
        """Lets the keys that these rows took over die when their own prompts say."""
        for some in powers(starts, TOGETHER):
            death = np.full((len(some), size_for(max(start.begin for start in some))), NEVER, np.int32)
            for line, start in zip(death, some, strict=True):
                line[: start.begin] = start.record.prompt_row.death[: start.begin]
            rows = np.asarray([start.row for start in some], np.int32)
            self.cache = self.programs.redate(self.cache, rows, death)

    def _feed(self, group: list[Start], cuts: list[list[Piece]]) -> None:
        """Prefills rows whose prompts are cut alike; twins join in for the last token."""
        at = [start.begin for start in group]
        for number in range(len(cuts[0])):
            piece, final = cuts[0][number], number == len(cuts[0]) - 1
            until = [place + cut[number].take for place, cut in zip(at, cuts, strict=True)]
            members = [(start.row, start.record, a, b) for start, a, b in zip(group, at, until, strict=True)]
            if final:
                self._copy([(start.row, row) for start in group for row, _ in start.twins])
                members += [(row, record, a, b) for start, a, b in zip(group, at, until, strict=True)
                            for row, record in start.twins]  # fmt: skip
            for some in powers(members, max(1, TOGETHER // piece.padded), lambda member: self.spread.part(member[0])):
                self._pass(some, piece, final)
            at = until

    def _pass(self, members: list[tuple[int, Record, int, int]], piece: Piece, final: bool) -> None:
        """One pass of prefill: tokens a..b-1 of the prompts of (row, record, a, b), as many in each part or none."""
        given, how = self._given(members, piece, final)
        self.state, self.cache = self.programs.prefill(self.weights, self.state, self.cache, *given, **how)

    def _given(self, members: list[tuple[int, Record, int, int]], piece: Piece, final: bool) -> tuple[tuple, dict]:
        """What the program of a pass is given besides weights, state and cache."""
        places, there = self.spread.lined([row for row, *_ in members])
        members = [members[place or 0] for place in places]  # where a part has none, anything
        rows, records, starts, stops = zip(*members, strict=True)
        prompts = [record.prompt_row for record in records]
        how = self._settings([record.request for record in records])
        rows = jnp.asarray(np.asarray(rows, np.int32) % self.spread.own)
        feed = feed_of(prompts, rows, starts, stops, piece.padded, self.rules)
        left = np.asarray([record.request.max_new for record in records], np.int32)
        seed = np.asarray([record.seed for record in records], np.uint32)
        return (feed, left, seed, how, there), dict(final=final, compress=living(prompts[0]), evict=piece.evict)

    def _settings(self, requests: list[Request]) -> Settings:
        return settings_of(requests, self.config, self.rules)
