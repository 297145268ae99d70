"""The compiled block: `buffer` steps of all rows, each after the thoughts that are due have been closed.

    while steps are left and a row can go on:
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
from lt_jax.cache import KVCache
from lt_jax.decode import control
from lt_jax.decode.config import DecodeConfig
from lt_jax.decode.control import Rules, State
from lt_jax.decode.passes import Feed, run
from lt_jax.models.config import DecoderConfig

# Columns of the log. place: 0, or 1 + offset in the closing. first, end: births that died by this closing.
COLUMNS = ("token", "place", "forced", "logp", "visible", "held", "since", "first", "end")
MOVES = 32  # keys moved at once when what lies behind the dead ones has no fixed length (Memento's summaries)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """Carry of the block. log [B, N, columns] int32, written [B] lines of it, step []: steps done."""

    state: State
    cache: KVCache
    log: jax.Array
    written: jax.Array
    step: jax.Array


def log_lines(rules: Rules, config: DecodeConfig) -> int:
    """Lines per row and block. A row that might need more waits for the next block, which changes nothing for it."""
    return config.buffer if rules.close is None else 2 * config.buffer + rules.longest


def slack(rules: Rules) -> int:
    """Slots beyond the capacity: rows that must not change still have their padding written behind their keys."""
    return max(rules.longest, MOVES)


def decode_block(
    weights, state: State, cache: KVCache, enough, *, model: DecoderConfig, rules: Rules, config: DecodeConfig
):
    """Runs until `buffer` steps are done, no row can go on, or `enough` [] rows have finished.

    Returns:
        state, cache, log [B, N, len(COLUMNS)] int32, written [B] int32.
    """
    begun = jnp.sum(state.alive)
    lines = log_lines(rules, config)
    room = lambda p: p.written + rules.longest <= lines
    ready = lambda p: control.pending(rules, p.state) & room(p)
    lanes = lambda p: p.state.alive & ~control.pending(rules, p.state) & room(p)

    def due(p):
        n, waits = ready(p), jnp.where(ready(p), p.state.waits, 0)
        alone = ~jnp.any(lanes(p)) | (jnp.max(waits) >= config.patience)
        return (jnp.sum(n) >= config.closers) | (jnp.any(n) & alone)

    def more(p):
        finished = begun - jnp.sum(p.state.alive)
        return (p.step < config.buffer) & jnp.any(p.state.alive & room(p)) & (finished < enough)

    def step(p):
        if rules.close is not None:
            p = lax.while_loop(due, lambda p: close_thoughts(weights, model, rules, config.closers, p, ready(p)), p)
        return ordinary(weights, model, rules, p, lanes(p))

    log = jnp.zeros((state.alive.shape[0], lines, len(COLUMNS)), jnp.int32)
    p = Progress(state, cache, log, jnp.zeros_like(state.index), jnp.int32(0))
    p = lax.while_loop(more, step, p)
    return p.state, p.cache, p.log, p.written


def ordinary(weights, model, rules: Rules, p: Progress, active) -> Progress:
    """One token for every active row; a row whose last token this was is finished."""
    state = p.state
    feed = Feed(state.token[:, None], state.index, active.astype(jnp.int32))
    logits, cache, visible, held = run(weights, model, p.cache, feed, form=rules.attention)
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
    log = p.log.at[jnp.arange(len(at)), at].set(line, mode="drop")
    after = control.advance(rules, control.fed(rules, state), logits, jnp.max(cache.length, 0))
    goes_on = active & (state.finish == 0)
    state = jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), after, state)
    waits = jnp.where(control.pending(rules, p.state), p.state.waits + 1, state.waits)
    state = dataclasses.replace(state, alive=state.alive & ~(active & ~goes_on), waits=waits)
    return Progress(state, cache, log, p.written + active, p.step + 1)


def close_thoughts(weights, model, rules: Rules, n: int, p: Progress, ready) -> Progress:
    """Closes the thoughts of the n rows that have waited longest: feeds the whole closing, frees the dead slots."""
    close, m = rules.close, rules.longest
    _, rows = lax.top_k(jnp.where(ready, 1 + p.state.waits, 0), n)
    valid = ready[rows]
    state = jax.tree.map(lambda x: x[rows], p.state)
    first, end = control.dead_range(rules, state)
    tokens = jnp.concatenate([state.token[:, None], jnp.broadcast_to(close.forced, (n, m - 1))], 1)
    since = jnp.where(close.since, state.thought[:, None], 0)
    gist = jnp.broadcast_to(jnp.where(close.gist, 0, -1), (n, m))
    feed = Feed(tokens, state.index, jnp.where(valid, m, 0), rows, since=since, gist=gist)
    before = p.cache.length[:, rows]
    ending = (first, jnp.where(valid, end, first), state.index + close.thought_dies)
    how = dict(gist_rule=rules.gist_rule, ending=ending, form=rules.attention)
    logits, cache, visible, held = run(weights, model, p.cache, feed, **how)
    # Births count up by one from the first dead key to the row's end, so slots follow from them.
    slot = lambda birth: before + birth - state.index
    tail = MOVES if close.opens is not None else m - rules.dying
    length = jnp.max(before, 0) + m - (end - first)
    after = control.advance(rules, control.closed(rules, state), logits, length)
    # Every token is >= 0; that `close` looks at it makes it wait for the last layer's attention. Without this order
    # XLA would copy the cache, so that the one may still read while the other already writes.
    cache = slots.close(cache, rows, slot(first), slot(end), tail, valid & (after.token >= 0))

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
    put = lambda old, new: old.at[rows].set(jnp.where(valid, new, old[rows]))
    return Progress(jax.tree.map(put, p.state, after), cache, log, p.written.at[rows].add(valid * m), p.step)


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
    *,
    model: DecoderConfig,
    rules: Rules,
    final: bool,
    compress: bool,
):
    """Feeds a piece of the prompts of rows `feed.rows`; the first piece (first index 0) takes the slots over.

    Args:
        left, seed: [R] of the requests.
        final: this was the last piece: drop the prompt's dead keys (`compress`) and choose the first token.
    """
    rows = feed.rows
    begins = feed.first == 0
    length = jnp.where(begins, 0, cache.length[:, rows])
    wipe = lambda x, blank: x.at[:, rows].set(jnp.where(begins[:, None, None], blank, x[:, rows]))
    cache = dataclasses.replace(
        cache,
        birth=wipe(cache.birth, -1),
        death=wipe(cache.death, slots.kv_cache.NEVER),
        length=cache.length.at[:, rows].set(length),
    )
    rule = rules.gist_rule if feed.gist is not None else "causal"
    logits, cache, _, _ = run(weights, model, cache, feed, gist_rule=rule, form=rules.attention)
    if not final:
        return state, cache
    index = feed.first + feed.count
    if compress:
        cache = slots.compact(cache, index, rows)
    new = control.begin(rules, index, left, seed)
    new = control.advance(rules, new, logits, jnp.max(cache.length[:, rows], 0))
    return jax.tree.map(lambda old, new: old.at[rows].set(new), state, new), cache
