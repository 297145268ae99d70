"""The compiled block: `block_steps` of all rows, each after the thoughts that are due have been closed.

    while steps are left and a row can go on:
        while rows are full:              a few of them are cut down to their budget (under an eviction)
        while enough rows are pending:    one pass of several tokens for a few of them, which closes their thoughts
        the ordinary step:                one token for every other live row

The cache is a loop carry and is never copied. What happens is written to a log, one line per fed token, which the host
reads after the block.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lt_jax import cache as slots
from lt_jax.cache import KVCache, across
from lt_jax.decode import control
from lt_jax.decode.config import DecodeConfig
from lt_jax.decode.control import Rules, State
from lt_jax.decode.passes import Feed, run
from lt_jax.decode.sample import Settings
from lt_jax.models.config import DecoderConfig

# Columns of the log. place: 0, or 1 + offset in the closing. first, end: births that died by this closing. visible and
# held: sums over `Rules.books`.
COLUMNS = ("token", "place", "forced", "logp", "visible", "held", "since", "first", "end")
MOVES = 32  # keys moved at once when what lies behind the dead ones has no fixed length (Memento's summaries)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carry:
    """Carry of the block. log [B, N, columns] int32; tops [B, N, K] int32 and float32, the most probable tokens and
    their log-probs; written [B] lines of both; step []: steps done."""

    state: State
    cache: KVCache
    log: jax.Array
    tops: tuple[jax.Array, jax.Array]
    written: jax.Array
    step: jax.Array


def log_lines(rules: Rules, config: DecodeConfig) -> int:
    """Lines per row and block. A row that might need more waits for the next block, which changes nothing for it."""
    return config.block_steps if rules.close is None else 2 * config.block_steps + rules.longest


def slack(rules: Rules) -> int:
    """Slots beyond the capacity: waiting rows still have the padding of a pass written behind their keys."""
    if rules.close is None:  # nobody waits
        return 0
    return max(rules.longest, MOVES if rules.close.opens is not None else 0)


def decode_block(
    weights, state: State, cache: KVCache, enough, *, model: DecoderConfig, rules: Rules, config: DecodeConfig
):
    """Runs until `block_steps` are done, no row can go on, `enough` [1] rows have finished, or one needs more slots.

    On a mesh this is what one device does with its own rows and heads, of which `model`, `rules` and `config` are.

    Returns:
        state, cache, log [B, N, len(COLUMNS)] int32, (ids, log-probs) [B, N, K] of the most probable tokens, and
        written [B] int32.
    """
    begun = jnp.sum(state.alive)
    lines = log_lines(rules, config)
    room = lambda p: p.written + rules.longest <= lines
    tight = lambda p: control.tight(rules, p.state, p.cache.length, cache.capacity - slack(rules))
    able = lambda p: room(p) & ~full(p) & ~tight(p)
    ready = lambda p: control.pending(rules, p.state) & able(p)
    lanes = lambda p: p.state.alive & ~control.pending(rules, p.state) & able(p)

    def full(p):
        if rules.eviction is None:
            return jnp.zeros_like(p.state.alive)
        return control.full(rules, p.state, p.cache.length)

    def due(p):
        n, waits = ready(p), jnp.where(ready(p), p.state.waits, 0)
        alone = ~jnp.any(lanes(p)) | (jnp.max(waits) >= config.patience)
        return (jnp.sum(n) >= config.closing_rows) | (jnp.any(n) & alone)

    def more(p):
        finished = begun - jnp.sum(p.state.alive)
        goes_on = jnp.any(p.state.alive & room(p)) & ~jnp.any(tight(p))
        return (p.step < config.block_steps) & goes_on & (finished < enough[0])

    def step(p):
        if rules.eviction is not None:
            some = config.evicting_rows
            p = lax.while_loop(lambda p: jnp.any(full(p)), lambda p: evict_rows(rules, some, p, full(p)), p)
        if rules.close is not None:
            few = config.closing_rows
            p = lax.while_loop(due, lambda p: close_thoughts(weights, model, rules, few, p, ready(p)), p)
        return ordinary(weights, model, rules, p, lanes(p))

    room_for = lambda width, kind: jnp.zeros((state.alive.shape[0], lines, width), kind)
    tops = room_for(rules.top_logps, jnp.int32), room_for(rules.top_logps, jnp.float32)
    p = Carry(state, cache, room_for(len(COLUMNS), jnp.int32), tops, jnp.zeros_like(state.index), jnp.int32(0))
    p = lax.while_loop(more, step, p)
    log = p.log
    if rules.apart is not None:  # of the keys of its own heads each device knows
        counts = np.asarray([COLUMNS.index(name) for name in ("visible", "held")])
        log = log.at[..., counts].set(across.summed(log[..., counts], rules.apart))
    return p.state, p.cache, log, p.tops, p.written


def evict_rows(rules: Rules, n: int, p: Carry, full) -> Carry:
    """Cuts n of the full rows down to their budget. One that has more to protect than that ends."""
    _, rows = lax.top_k(full.astype(jnp.int32), n)
    state = p.state
    own = state.index[rows], state.seed[rows], full[rows], rows
    cache, stuck = slots.evict(p.cache, rules.eviction, *own, rules.axis)
    own = state.finish[rows]
    finish = state.finish.at[rows].set(jnp.where(stuck & (own == 0), control.CAPACITY, own))
    return dataclasses.replace(p, state=dataclasses.replace(state, finish=finish), cache=cache)


def ordinary(weights, model, rules: Rules, p: Carry, active) -> Carry:
    """One token for every active row; a row whose last token this was is finished."""
    state = p.state
    mark = control.marks(rules, state.token[:, None])
    feed = Feed(state.token[:, None], state.index, active.astype(jnp.int32), mark=mark)
    logits, cache, visible, held = run(weights, model, p.cache, feed, form=rules.attention, axis=rules.axis)
    zero = jnp.zeros_like(state.index)
    line = _line(
        token=state.token,
        place=zero,
        forced=state.forced,
        logp=state.logp,
        visible=visible[:, 0],
        held=held,
        since=zero,
        first=zero,
        end=zero,
    )
    at = jnp.where(active, p.written, p.log.shape[1])
    put = lambda log, line: log.at[jnp.arange(len(at)), at].set(line, mode="drop")
    tops = tuple(map(put, p.tops, (state.top_ids, state.top_logps)))
    after = control.advance(rules, control.fed(rules, state), logits, jnp.max(cache.length, 0))
    goes_on = active & (state.finish == 0)
    state = control.choose(goes_on, after, state)
    waits = jnp.where(control.pending(rules, p.state), p.state.waits + 1, state.waits)
    state = dataclasses.replace(state, alive=state.alive & ~(active & ~goes_on), waits=waits)
    return Carry(state, cache, put(p.log, line), tops, p.written + active, p.step + 1)


def close_thoughts(weights, model, rules: Rules, n: int, p: Carry, ready) -> Carry:
    """Closes the thoughts of the n rows that have waited longest: feeds the whole closing, frees the dead slots."""
    close, m = rules.close, rules.longest
    _, rows = lax.top_k(jnp.where(ready, 1 + p.state.waits, 0), n)
    valid = ready[rows]
    state = jax.tree.map(lambda x: x[rows], p.state)
    first, end = control.dead_range(rules, state)
    tokens = jnp.concatenate([state.token[:, None], jnp.broadcast_to(close.forced, (n, m - 1))], 1)
    since = jnp.where(close.since, state.thought[:, None], 0)
    gist = jnp.broadcast_to(jnp.where(close.is_gist, 0, -1), (n, m))
    mark = control.marks(rules, tokens, close.is_gist)
    feed = Feed(tokens, state.index, jnp.where(valid, m, 0), rows, since=since, gist=gist, mark=mark)
    before = p.cache.length[:, rows]
    ending = (first, jnp.where(valid, end, first), state.index + close.thought_dies)
    form = dict(gist_rule=rules.gist_rule, ending=ending, form=rules.attention, axis=rules.axis)
    logits, cache, visible, held = run(weights, model, p.cache, feed, **form)
    length = jnp.max(before, 0) + m - (end - first)
    after = control.advance(rules, control.closed(rules, state), logits, length)
    cache = _freed(cache, rules, rows, before, state.index, (first, end), valid & (after.token >= 0))

    wide = lambda x: jnp.broadcast_to(x[:, None], (n, m))
    only_first = lambda x: jnp.where(np.arange(m) == 0, x[:, None], 0)
    line = _line(
        token=tokens,
        place=wide(jnp.zeros_like(first)) + np.arange(1, m + 1, dtype=np.int32),
        forced=jnp.where(np.arange(m) == 0, state.forced[:, None], True),
        logp=only_first(state.logp),
        visible=visible,
        held=wide(held),
        since=since,
        first=only_first(first),
        end=only_first(end),
    )
    at = jnp.where(valid[:, None], p.written[rows][:, None] + np.arange(m), p.log.shape[1])
    log = p.log.at[rows[:, None], at].set(line, mode="drop")
    first_alone = lambda x, blank: jnp.where(np.arange(m)[:, None] == 0, x[:, None], blank)
    tops = first_alone(state.top_ids, -1), first_alone(state.top_logps, 0.0)
    tops = tuple(log.at[rows[:, None], at].set(new, mode="drop") for log, new in zip(p.tops, tops, strict=True))
    put = lambda old, new: old.at[rows].set(control.choose(valid, new, old[rows]))
    changing = lambda state: dataclasses.replace(state, how=None, barred=None)  # what a request asks for stays as it is
    state = jax.tree.map(put, changing(p.state), changing(after))
    state = dataclasses.replace(state, how=p.state.how, barred=p.state.barred)
    return Carry(state, cache, log, tops, p.written.at[rows].add(valid * m), p.step)


def _freed(cache: KVCache, rules: Rules, rows, before, index, dead, valid) -> KVCache:
    """The slots of the keys with births `dead` (first, end) freed, in the rows that are valid.

    Args:
        before: [Lb, R] keys held when the closing began, at `index` [R].
        valid: [R] bool. Where it depends on the pass's logits, nothing is moved before the last layer's attention has
            read: without that order XLA would copy the cache, so that the one may read while the other writes.
    """
    if rules.eviction is not None:
        return slots.compact(cache, jnp.where(valid, index + rules.longest, index), rows, rules.axis)
    # Births count up by one from the first dead key to the row's end, so slots follow from them.
    slot = lambda birth: before + birth - index
    tail = MOVES if rules.close.opens is not None else rules.longest - rules.dying
    return slots.close(cache, rows, slot(dead[0]), slot(dead[1]), tail, valid)


def _line(**columns) -> jax.Array:
    bits = lambda x: lax.bitcast_convert_type(x, jnp.int32) if x.dtype == jnp.float32 else x.astype(jnp.int32)
    return jnp.stack([bits(columns[name]) for name in COLUMNS], -1)


def prefill(
    weights,
    state: State,
    cache: KVCache,
    feed: Feed,
    left,
    seed,
    how: Settings,
    *,
    model: DecoderConfig,
    rules: Rules,
    final: bool,
    compress: bool,
    evict: bool = False,
):
    """Feeds a piece of the prompts of rows `feed.rows`, which forget what they hold of `feed.first` and later.

    Args:
        left, seed, how: [R] of the requests.
        final: this was the last piece: choose the first token.
        compress: free what has died. Under an eviction that is done after the last piece only.
        evict: cut rows that are over their budget down to it after this piece.
    """
    rows = feed.rows
    cache = slots.truncated(cache, rows, feed.first, rules.apart)
    rule = rules.gist_rule if feed.gist is not None else "causal"
    logits, cache, _, _ = run(weights, model, cache, feed, gist_rule=rule, form=rules.attention, axis=rules.axis)
    index = feed.first + feed.count
    if compress and (final or rules.eviction is None):
        cache = slots.compact(cache, index, rows, rules.apart)
    if evict:
        budgets = jnp.asarray(rules.eviction.budgets(model.layers))[:, None]
        # Whatever the logits are, this waits for them: the last layer has then read the cache.
        one = logits[:, 0]
        over = jnp.any(cache.length[:, rows] > budgets, 0) & ((one > -jnp.inf) | (one < 0) | jnp.isnan(one))
        cache, _ = slots.evict(cache, rules.eviction, index, seed, over, rows, rules.axis)  # stuck: refused by the host
    if not final:
        return state, cache
    new = control.begin(rules, index, left, seed, how, logits.shape[-1])
    new = control.advance(rules, new, logits, jnp.max(cache.length[:, rows], 0))
    return jax.tree.map(lambda old, new: old.at[rows].set(new), state, new), cache
