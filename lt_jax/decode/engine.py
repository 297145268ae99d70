"""The engine: prompts in, completions out, rows refilled as they finish.

Between two compiled blocks the host hands finished rows back and feeds waiting prompts into their rows. The next block
is sent off before the last one's log is read, so that the host's work hides behind it. Rows do not touch each other:
what a row generates does not depend on who shares the batch with it (but for rounding, where the platform's matrix
product rounds differently for another number of rows).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax import cache as slots
from lt_jax import native
from lt_jax.cache import KVCache
from lt_jax.cache.policies import Eviction
from lt_jax.decode import control
from lt_jax.decode.block import decode_block, prefill, slack
from lt_jax.decode.config import Completion, DecodeConfig, Request
from lt_jax.decode.control import Rules
from lt_jax.decode.passes import Feed
from lt_jax.decode.record import Record
from lt_jax.decode.weights import prepare
from lt_jax.errors import UserError
from lt_jax.layout.closing import closing
from lt_jax.layout.row import Row
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.models.config import DecoderConfig

PIECES = (16, 32, 64, 128, 256, 512)  # lengths a piece of prompt is padded to
CRUMBS = (1, 4)  # and what is left of one where the slots end before it does
TOGETHER = 512  # tokens of prompt fed in one pass


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
        self.form = native.choose(config.implementation)
        self.rules = rules_of(scheme, special, config, tokenize)
        _check(scheme, model, config, self.rules)
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
        """Takes new parameters of the same shapes; nothing is compiled again. Rows under way go on with them."""
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
        finally:  # also when the caller stops asking: whatever is under way is forgotten
            self.state = dataclasses.replace(self.state, alive=jnp.zeros_like(self.state.alive))

    def _evicted(self, row: int) -> np.ndarray | None:
        """The recorded deaths of a row, before its slot goes to another."""
        return None if self.cache.record is None else np.asarray(self.cache.record[row])

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

    def _fill(self, waiting, records: dict[int, Record], free) -> bool:
        """Feeds prompts into the free rows; False when there are no prompts left."""
        new: dict[int, Record] = {}
        for row in free:
            number, request = next(waiting, (None, None))
            if request is None:
                break
            new[row] = self._record(request, number)
        records.update(new)
        for rows in _alike({row: self.cut(record.prompt_row) for row, record in new.items()}):
            self._feed([(row, new[row]) for row in rows])
        return len(new) == len(free)

    def _record(self, request: Request, number: int) -> Record:
        record = Record(request, number if request.id is None else request.id, self.rules, time.perf_counter())
        length, room = len(record.prompt), self.config.capacity
        if not length:
            raise UserError(f"request {record.id}: the prompt is empty")
        outside = (record.prompt < 0) | (record.prompt >= self.model.vocab_size)
        if outside.any():
            raise UserError(
                f"request {record.id}: token id {record.prompt[outside.argmax()]} of the prompt is outside the model's "
                f"vocabulary of {self.model.vocab_size}"
            )
        if length > self.model.max_positions:
            raise UserError(
                f"request {record.id}: a prompt of {length} tokens is longer than the {self.model.max_positions} "
                "positions that the model was made for"
            )
        if self.config.eviction is not None:
            self._check_budget(record)
        elif length + 1 > room:
            raise UserError(
                f"request {record.id}: a prompt of {length} tokens does not fit; the capacity is {room} "
                "keys, and the response needs at least one"
            )
        if request.max_new < 1:
            raise UserError(f"request {record.id}: max_new is {request.max_new}; it must be 1 or more")
        return record

    def _check_budget(self, record: Record) -> None:
        """Raises UserError if eviction cannot bring the prompt of a request within the budget."""
        how, horizon, length = self.config.eviction, self.config.horizon, len(record.prompt)
        gists = int((record.prompt_row.gist >= 0).sum())
        least = min(how.budgets(self.model.layers))
        if how.policy == "full" and length > least:
            raise UserError(f"request {record.id}: policy 'full' evicts nobody, and a prompt of {length} tokens is over "
                            f"the budget of {least}")  # fmt: skip
        if how.window + how.sinks + gists > least:
            raise UserError(f"request {record.id}: window ({how.window}), sinks ({how.sinks}) and {gists} gists of the "
                            f"prompt are protected, which is more than the budget of {least}")  # fmt: skip
        if horizon and length + self.rules.longest > horizon:
            raise UserError(f"request {record.id}: a prompt of {length} tokens leaves no room for a response within "
                            f"decode.horizon ({horizon})")  # fmt: skip

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
            feed = _feed_of(prompts, rows, starts, stops, piece.padded, self.scheme, self.rules)
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


def rules_of(scheme: Scheme, special: SpecialTokens, config: DecodeConfig, tokenize: Callable | None = None) -> Rules:
    """What the compiled functions need to know of scheme, token table and config."""
    attention = {None: None, "native": "native", "plain": "blocks"}[config.implementation]
    return Rules(
        closing(scheme, special, tokenize), scheme.gist_rule, special.eos, config.stop, config.max_thought,
        config.capacity, config.sampling, attention, config.eviction, config.horizon,
    )  # fmt: skip


def empty_cache(model: DecoderConfig, config: DecodeConfig, rules: Rules) -> KVCache:
    """The cache of an engine, without keys."""
    capacity = config.capacity + slack(rules)
    if config.eviction is None:
        return slots.empty(model.layers, config.rows, model.kv_heads, capacity, model.head_dim, model.dtype)
    return slots.empty_evicting(model, config.rows, capacity, config.eviction, config.horizon)


@dataclasses.dataclass(frozen=True)
class Piece:
    """`take` tokens of a prompt, fed in a pass of `padded` tokens; `evict`: then the row is cut down to its budget."""

    take: int
    padded: int
    evict: bool = False


def pieces(prompt: Row, room: int, config: DecodeConfig) -> list[Piece]:
    """Cuts a prompt into pieces that are padded to `PIECES`, never through a gist block.

    Under an eviction the row is cut down whenever it is full, and at the end if it is over its budget.

    Args:
        room: slots of a row.
    """
    out, start, held, how = [], 0, 0, config.eviction
    while start < len(prompt):
        rest = len(prompt) - start
        take = rest if how is None else min(rest, config.capacity - held)
        fitting = [n for n in PIECES if n >= take and held + n <= room]
        padded = fitting[0] if fitting else max(n for n in (*CRUMBS, *PIECES) if n <= take and held + n <= room)
        take = min(take, padded)
        while take and start + take < len(prompt) and _inside(prompt, start + take):
            take -= 1
        if not take and not (out and held > how.most and not out[-1].evict):
            raise UserError(f"a gist block of the prompt is longer than {padded} tokens")
        if not take:  # the next gist block does not fit behind what is held
            out[-1], held = dataclasses.replace(out[-1], evict=True), how.most
            continue
        start, held = start + take, held + take
        over = how is not None and held > (config.capacity - 1 if start < len(prompt) else min(_budgets(how)))
        out.append(Piece(take, padded, over))
        held = min(held, how.most) if over else held
    return out


def _budgets(how: Eviction) -> tuple[int, ...]:
    return how.budget if isinstance(how.budget, tuple) else (how.budget,)


def _inside(prompt: Row, index: int) -> bool:
    """Whether a cut before `index` goes through a gist block."""
    return prompt.gist[index] >= 0 and prompt.gist[index] == prompt.gist[index - 1]


def _alike(cuts: dict[int, list[Piece]]) -> list[list[int]]:
    """Rows whose prompts can be fed together, in groups of 1, 2, 4 ... rows, so that few shapes are compiled."""
    by_shape = collections.defaultdict(list)
    for row, cut in cuts.items():
        by_shape[(*cut[:-1], cut[-1].evict, cut[-1].padded)].append(row)
    groups = []
    for shape, rows in by_shape.items():
        while rows:
            size = min(len(rows), max(1, TOGETHER // shape[-1]))
            size = 1 << (size.bit_length() - 1)
            groups.append(rows[:size])
            rows = rows[size:]
    return groups


def _feed_of(prompts, rows, starts, stops, padded: int, scheme: Scheme, rules: Rules) -> Feed:
    def column(name, blank):
        out = np.full((len(prompts), padded), blank, np.int32)
        for r, (prompt, start, stop) in enumerate(zip(prompts, starts, stops, strict=True)):
            out[r, : stop - start] = getattr(prompt, name)[start:stop]
        return jnp.asarray(out)

    first = jnp.asarray(starts, jnp.int32)
    count = jnp.asarray(np.subtract(stops, starts), jnp.int32)
    tokens = column("tokens", 0)
    if scheme.prompt is None:
        return Feed(tokens, first, count, rows, mark=control.marks(rules, tokens))
    gist = column("gist", -1)
    mark = control.marks(rules, tokens, gist >= 0)
    gist = gist if scheme.gist_rule != "causal" else None
    return Feed(tokens, first, count, rows, column("death", 0), column("since", 0), gist, mark)


def _check(scheme: Scheme, model: DecoderConfig, config: DecodeConfig, rules: Rules) -> None:
    if config.max_thought is not None and (rules.close is None or rules.close.every):
        why = "vanilla has no thoughts" if rules.close is None else "scheme.step already bounds a thought"
        raise UserError(f"decode.max_thought is set, but {why}")
    if config.capacity <= rules.longest:
        raise UserError(f"decode.capacity is {config.capacity}; closing a thought alone takes {rules.longest} keys")
    if config.eviction is not None:
        config.eviction.budgets(model.layers)  # one for each layer
        if config.eviction.buffer < rules.longest:
            raise UserError(
                f"eviction.buffer is {config.eviction.buffer}; closing a thought takes {rules.longest} keys at once"
            )
    ids = [rules.eos, *rules.stop] + ([] if rules.close is None else [int(t) for t in rules.close.tokens])
    if max(ids) >= model.vocab_size:
        raise UserError(
            f"token id {max(ids)} of the token table is outside the model's vocabulary of "
            f"{model.vocab_size}; grow the vocabulary first"
        )
