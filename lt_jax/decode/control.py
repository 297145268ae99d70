"""The state machine of a row: what it feeds next, when its thought is closed, when it is finished. Over all rows.

A token is sampled (or forced) first and fed later. A row whose waiting token closes a thought is `pending`: it is fed
together with what must follow it, in a pass of its own. Every other live row takes the ordinary step. There are no
counters over the batch; what a row does follows from its own state.

Differences from the reference loop (LightThinker 4.1): it is per row; a thought that grows too long is closed by force;
the last token of a row is fed too, so that its reads are counted and its key is in the cache.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.cache import kv_cache
from lt_jax.cache.policies import Eviction
from lt_jax.decode.sample import Settings, likeliest, listed_in, sample
from lt_jax.layout.closing import Closing

FINISHES = (None, "eos", "stop", "length", "capacity", "positions", "nan")
EOS, STOP, LENGTH, CAPACITY, POSITIONS, NAN = range(1, 7)
NOWHERE = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Rows, [B] each, int32 unless said.

    Attributes:
        alive: bool, the row has a token to feed.
        token, logp, forced: that token, its log-prob (float32), and whether it was forced (bool).
        index: its index in the row.
        finish: reason why it is the row's last token, or 0; an index into `FINISHES`. `NAN`: there was no such token.
        left: tokens that may still be sampled after it.
        thought: index of the first token of the open thought. Memento: of the open block, or NOWHERE.
        shut: memento: index after the open block's end marker, or NOWHERE.
        closings: thoughts closed so far.
        waits: steps that the row has been waiting to close a thought.
        seed: uint32, the row's own.
        top_ids, top_logps: [B, K] int32 and float32, see `Completion`.
        how: what the row's request asks for. barred: [B, V] bool, the ids of `how.never`.
    """

    alive: jax.Array
    token: jax.Array
    logp: jax.Array
    forced: jax.Array
    index: jax.Array
    finish: jax.Array
    left: jax.Array
    thought: jax.Array
    shut: jax.Array
    closings: jax.Array
    waits: jax.Array
    seed: jax.Array
    top_ids: jax.Array
    top_logps: jax.Array
    how: Settings
    barred: jax.Array


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is the same for all rows, see `DecodeConfig`. close: None for vanilla. attention: see `cache.attend`.

    Under an `eviction` the capacity ends no row: a full one is cut down to its budget.

    Attributes:
        row_limit: most tokens of a row, with an eviction or without: the model's positions, or a horizon below them.
        never: ids that are never sampled, whatever the model says: gists, output tokens and padding.
        top_logps: see `DecodeConfig`.
        books: how many keep count of a row's keys for themselves: layers times kv heads under an eviction, else 1.
        axis: of the mesh, over which heads and vocabulary are cut, see `cache.across`; None on one device.
    """

    close: Closing | None
    gist_rule: str
    eos: int
    stop: tuple[int, ...]
    max_thought: int | None
    capacity: int
    never: tuple[int, ...] = ()
    top_logps: int = 0
    attention: str | None = None
    eviction: Eviction | None = None
    row_limit: int = 2**31 - 1
    books: int = 1
    axis: str | None = None

    @property
    def apart(self) -> str | None:
        """The axis, where heads keep different keys, so that what is counted of them has to be put together."""
        return None if self.eviction is None else self.axis

    @property
    def longest(self) -> int:
        """Most tokens of one decoding pass."""
        return 1 if self.close is None else len(self.close)

    @property
    def dying(self) -> int:
        """Leading tokens of a closing that die with the thought: trigger and instruction."""
        return int(np.sum(np.cumprod(self.close.death == self.close.thought_dies)))


def idle(how: Settings, barred: jax.Array, top_logps: int = 0) -> State:
    """No row alive, of as many as `how` is of."""
    rows = how.temperature.shape[0]
    zeros = {field.name: jnp.zeros(rows, jnp.int32) for field in dataclasses.fields(State)}
    flags = {name: jnp.zeros(rows, bool) for name in ("alive", "forced")}
    tops = {"top_ids": jnp.zeros((rows, top_logps), jnp.int32), "top_logps": jnp.zeros((rows, top_logps))}
    own = {"logp": jnp.zeros(rows), "seed": jnp.zeros(rows, jnp.uint32), "how": how, "barred": barred}
    return State(**zeros | flags | tops | own)


def choose(condition: jax.Array, new, old):
    """`new` where the row's condition [B] holds, else `old`: trees of arrays [B, ...]."""
    pick = lambda new, old: jnp.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
    return jax.tree.map(pick, new, old)


def begin(rules: Rules, index, left, seed, how: Settings, vocabulary: int) -> State:
    """State of rows [R] whose prompts, of `index` tokens, have just been fed; `advance` gives the first token.

    Args:
        vocabulary: columns of the logits.
    """
    memento = rules.close is not None and rules.close.opens is not None
    thought = jnp.full_like(index, NOWHERE) if memento else index
    barred = listed_in(how.never, vocabulary, rules.axis)
    fresh = dict(index=index, left=left, thought=thought, shut=jnp.full_like(index, NOWHERE), seed=seed)
    return dataclasses.replace(idle(how, barred, rules.top_logps), alive=jnp.ones_like(index, bool), **fresh)


def closes(rules: Rules, state: State) -> jax.Array:
    """[B] bool: the waiting token closes the open thought."""
    close = rules.close
    if close is None:
        return jnp.zeros_like(state.alive)
    if close.every:
        return state.index - state.thought + 1 >= close.every
    ends = state.token == close.tokens[0]
    return ends if close.opens is None else ends & (state.shut >= 0)


def pending(rules: Rules, state: State) -> jax.Array:
    """[B] bool: rows that wait for a pass of their own. A row's very last token is fed alone."""
    return state.alive & (state.finish == 0) & closes(rules, state)


def dead_range(rules: Rules, state: State) -> tuple[jax.Array, jax.Array]:
    """Births first..end-1 that die when the waiting token closes the thought; contiguous, at the end of the row."""
    if rules.close.opens is not None:
        return state.thought, state.shut
    output = rules.close.replaces_output & (state.closings > 0)  # the last output token stands before the thought
    return state.thought - output, state.index + rules.dying


def full(rules: Rules, state: State, length) -> jax.Array:
    """[B] bool: rows that must be cut down to their budgets before they can go on, as a layer holds budget + buffer.

    A row that closes thoughts may be unable to (its gists are protected): its last token goes into the spare slots.

    Args:
        length: [L, B] keys held.
    """
    need = jnp.where(pending(rules, state), rules.longest, 1)
    limit = jnp.asarray(rules.eviction.budgets(length.shape[0]), jnp.int32)[:, None] + rules.eviction.buffer
    goes_on = state.alive & ((state.finish == 0) | (rules.close is None))
    return goes_on & jnp.any(length + need > limit, 0)


def tight(rules: Rules, state: State, length, room: int) -> jax.Array:
    """[B] bool: rows that can only go on in a cache of more slots, though they may have more keys.

    Args:
        length: [Lb, B] keys held.
        room: slots of a row that keys may take.
    """
    if rules.eviction is not None or room >= rules.capacity:
        return jnp.zeros_like(state.alive)
    need = jnp.where(pending(rules, state), rules.longest, 1)
    return state.alive & (jnp.max(length, 0) + need > room)


def marks(rules: Rules, tokens, gist=False) -> jax.Array | None:
    """The classes of new keys for an eviction, int8, see `KVCache.mark`; None where there is but one class.

    Args:
        gist: bool, broadcasts with the tokens.
    """
    if rules.eviction is None or (rules.close is None and rules.eviction.policy != "sepllm"):
        return None
    ids = jnp.asarray(rules.eviction.separators or (-1,), jnp.int32)
    mark = jnp.where(jnp.isin(tokens, ids), kv_cache.SEPARATOR, 0)
    return jnp.where(gist, kv_cache.GIST, mark).astype(jnp.int8)


def fed(rules: Rules, state: State) -> State:
    """After the waiting token has been fed by the ordinary step: memento's markers are noted, the index moves on."""
    if rules.close is None or rules.close.opens is None:
        return dataclasses.replace(state, index=state.index + 1)
    opens = state.token == rules.close.opens
    shuts = (state.token == rules.close.shuts) & (state.thought >= 0) & (state.shut < 0)
    thought = jnp.where(opens, state.index, state.thought)
    shut = jnp.where(opens, NOWHERE, jnp.where(shuts, state.index + 1, state.shut))
    return dataclasses.replace(state, index=state.index + 1, thought=thought, shut=shut)


def closed(rules: Rules, state: State) -> State:
    """After the thought has been closed and all tokens of the closing have been fed."""
    index = state.index + len(rules.close)
    none = jnp.full_like(index, NOWHERE)
    thought = index if rules.close.opens is None else none
    return dataclasses.replace(
        state, index=index, thought=thought, shut=none, closings=state.closings + 1, waits=jnp.zeros_like(state.waits)
    )


def advance(rules: Rules, state: State, logits: jax.Array, length: jax.Array) -> State:
    """Gives every row its next token and decides whether that is the last one.

    A row whose logits are not numbers has no next token: it ends here, as `NAN`. Their max and their sum, and with them
    the log-prob of whatever was drawn, are NaN then (`decode.sample`), so this costs nothing.

    Args:
        state: `index` is that of the token to come.
        logits: [B, V] float32.
        length: [B] keys held before that token.
    """
    token, logp = sample(logits, state.barred, state.seed, state.index, state.how, rules.axis)
    broken = jnp.isnan(logp)
    eos, stop = token == rules.eos, jnp.any(token[:, None] == state.how.stop, 1)
    forced = jnp.zeros_like(state.forced)
    if rules.max_thought is not None:
        close = rules.close
        forced = (state.index - state.thought >= rules.max_thought) & ~(eos | stop)
        forced &= token != (close.tokens[0] if close.opens is None else close.shuts)
        if close.opens is not None:
            forced &= (state.thought >= 0) & (state.shut < 0)
        token = jnp.where(forced, close.tokens[0] if close.opens is None else close.shuts, token)
        logp = jnp.where(forced, 0, logp)
    left = state.left - 1
    alive = state.alive & ~broken
    tops = (state.top_ids, state.top_logps)
    if rules.top_logps:
        none = jnp.full_like(tops[0], -1), jnp.zeros_like(tops[1])
        tops = choose(forced, none, likeliest(logits, state.barred, state.how, rules.top_logps, rules.axis))
    new = dataclasses.replace(
        state, alive=alive, token=token, logp=logp, forced=forced, left=left, top_ids=tops[0], top_logps=tops[1]
    )
    # A row may end with the token that closes a thought: what must follow is then not fed.
    ends = lambda used, most: (used + 1 >= most) | (closes(rules, new) & (used + rules.longest > most))
    full = False if rules.eviction is not None else ends(length, rules.capacity)
    past = ends(new.index, rules.row_limit)
    reasons = (
        (broken, NAN), (eos, EOS), (stop, STOP), (left <= 0, LENGTH), (full, CAPACITY), (past, POSITIONS),
    )  # fmt: skip
    finish = jnp.zeros_like(token)
    for holds, reason in reversed(reasons):
        finish = jnp.where(holds, reason, finish)
    return dataclasses.replace(new, finish=finish)
