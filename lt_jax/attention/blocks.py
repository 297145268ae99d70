"""Which (query block, key block) pairs of a batch can hold a visible pair, and in which order to visit them.

Keys are sorted by death, in steps of a few blocks, and by birth within a step; those that never die come first. Keys
that live long then share blocks and keys that die together share blocks, so per-block bounds of birth, death and since
prove most pairs empty. LightThinker with 40-token thoughts at 4,096 tokens keeps 21 % of the 128 x 128 pairs and 14 %
of 64 x 32, a causal mask 52 %.

Steps, and not the exact death, for the sake of recorded evictions: the 128 keys that one compaction evicts are of all
ages, and would make a block that is active from the birth of the oldest one on. Of 16,384 tokens under R-KV (512 + 128)
a query block then visits 11.5 key blocks and not 25. A step of W tokens costs at most W / block_k visits for each block
and divides the spread of births by the same number; about sqrt(nk) blocks were best at 4,096 and at 16,384.

All is computed on the device, in O(S log S + pairs of blocks), once per step.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lt_jax.lifetimes import NEVER, Lifetimes, visible


def _static():
    return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """Death-sorted keys and lists of active key blocks. R is B, or B * Hkv for per-head deaths.

    Queries are padded to nq blocks of `block_q`, keys to nk blocks of `block_k`. Padding keys have birth -1 (no query
    sees them); padding queries repeat the last `since` and have no gist block, their results are cut off.

    Attributes:
        order: [R, nk * block_k] int32, index in the row of the key at each sorted place (padding: the last index).
        inverse: [R, S] int32, the sorted place of each key.
        birth, death, key_gist: [R, nk, block_k] int32 in sorted order; key_gist None if `gist_rule` is "causal".
        since, query_gist: [R, nq, block_q] int32 or None.
        blocks: [R, nq, nk] int32, key blocks to visit for each query block: the full ones, then the partial ones.
        n_full, n_active: [R, nq] int32, how many of `blocks` are full (all pairs visible), full or partial.
        queries, q_full, q_active: [R, nk, nq], [R, nk] and [R, nk] int32, the same lists turned over: query blocks that
            visit each key block; None if no code asked for them.
        unseen: [B, S] bool (or [B, Hkv, S]), keys which are dead at birth; what lies behind them is replaced by 0.
        rows, length: B and S.
        form: "blocked", "native", "pallas" or "triton", which code follows the plan; None: the best there is.
    """

    order: jax.Array
    inverse: jax.Array
    birth: jax.Array
    death: jax.Array
    key_gist: jax.Array | None
    since: jax.Array | None
    query_gist: jax.Array | None
    blocks: jax.Array
    n_full: jax.Array
    n_active: jax.Array
    queries: jax.Array | None
    q_full: jax.Array | None
    q_active: jax.Array | None
    unseen: jax.Array
    gist_rule: str = _static()
    block_q: int = _static()
    block_k: int = _static()
    rows: int = _static()
    length: int = _static()
    form: str | None = _static()


def unseen_keys(lifetimes: Lifetimes) -> jax.Array:
    """Keys that no query can see because they are dead at birth: bool, shaped like `death`."""
    death = lifetimes.death
    unseen = death <= jnp.arange(death.shape[-1], dtype=jnp.int32)
    if lifetimes.gist_rule == "bidirectional":  # earlier tokens of the gist block may see it before it is born
        gist = lifetimes.gist if death.ndim == 2 else lifetimes.gist[:, None]
        unseen = unseen & (gist < 0)
    return unseen


def _pad(x, length, value):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])], constant_values=value)


def _gist_ends(gist):
    """First and last index of the tokens that share each token's gist id, [R, S] each; its own index outside."""
    length = gist.shape[-1]
    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), gist.shape)
    by_id = jnp.argsort(gist, axis=-1, stable=True).astype(jnp.int32)
    ids = jnp.take_along_axis(gist, by_id, -1)
    new = jnp.concatenate([jnp.ones_like(ids[:, :1], bool), ids[:, 1:] != ids[:, :-1]], -1)
    last = jnp.concatenate([new[:, 1:], jnp.ones_like(new[:, :1])], -1)
    first_index = jax.lax.cummax(jnp.where(new, index, 0), axis=1)
    last_index = jax.lax.cummin(jnp.where(last, index, length), axis=1, reverse=True)
    back = jnp.argsort(by_id, axis=-1)
    take = lambda places: jnp.take_along_axis(jnp.take_along_axis(by_id, places, -1), back, -1)
    return jnp.where(gist < 0, index, take(first_index)), jnp.where(gist < 0, index, take(last_index))


def build(
    lifetimes: Lifetimes, block_q: int, block_k: int, form: str | None = None, multiple: int = 1, turned: bool = False
) -> BlockPlan:
    """Sort the keys of `lifetimes` by death and list the active blocks; see `BlockPlan`.

    Args:
        multiple: keys are padded so that nk is a multiple of it, for code that takes several key blocks at a time.
        turned: make `queries`, `q_full` and `q_active` too.
    """
    per_head = lifetimes.death.ndim == 3
    rows, length = lifetimes.death.shape[0], lifetimes.death.shape[-1]
    heads = lifetimes.death.shape[1] if per_head else 1
    death = lifetimes.death.reshape(rows * heads, length).astype(jnp.int32)
    per_list = lambda x: None if x is None else jnp.repeat(x.astype(jnp.int32), heads, axis=0)
    since = per_list(lifetimes.since)
    gist = per_list(lifetimes.gist) if lifetimes.gist_rule != "causal" else None

    nq, nk = -(-length // block_q), -(-length // (block_k * multiple)) * multiple
    lists = death.shape[0]
    step = block_k * max(1, round(0.7 * nk**0.5))
    rank = jnp.where(death >= NEVER, -1, jnp.maximum(death, 0) // step)
    order = jnp.argsort(rank, axis=-1, stable=True).astype(jnp.int32)
    inverse = jnp.argsort(order, axis=-1).astype(jnp.int32)
    sort = lambda x, fill: _pad(jnp.take_along_axis(x, order, -1), nk * block_k, fill).reshape(lists, nk, block_k)

    birth, sorted_death = sort(jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), death.shape), -1), sort(death, 0)
    if gist is None:
        first_seen, last_same = birth, None
    else:
        start, end = _gist_ends(gist)
        first_seen = sort(start, -1) if lifetimes.gist_rule == "bidirectional" else birth
        last_same = sort(jnp.where(gist < 0, -1, end), -1) if lifetimes.gist_rule == "diagonal" else None

    if since is not None:
        since = jnp.concatenate([since, jnp.repeat(since[:, -1:], nq * block_q - length, 1)], 1)
        since = since.reshape(lists, nq, block_q)
    kind = _kinds(birth, sorted_death, first_seen, last_same, since, nq, block_q)
    blocks, n_full, n_active = _listed(kind)
    queries, q_full, q_active = _listed(kind.swapaxes(1, 2)) if turned else (None, None, None)
    return BlockPlan(
        order=_pad(order, nk * block_k, length - 1),
        inverse=inverse,
        birth=birth,
        death=sorted_death,
        key_gist=None if gist is None else sort(gist, -1),
        since=since,
        query_gist=None if gist is None else _pad(gist, nq * block_q, -1).reshape(lists, nq, block_q),
        blocks=blocks,
        n_full=n_full,
        n_active=n_active,
        queries=queries,
        q_full=q_full,
        q_active=q_active,
        unseen=unseen_keys(lifetimes),
        gist_rule=lifetimes.gist_rule,
        block_q=block_q,
        block_k=block_k,
        rows=rows,
        length=length,
        form=form,
    )


def _kinds(birth, death, first_seen, last_same, since, nq, block_q):
    """Class of every pair of blocks from the bounds of its two sides, [R, nq, nk]: 0 full, 1 partial, 2 empty."""
    real = birth >= 0
    least = lambda x: jnp.min(jnp.where(real, x, NEVER), -1)[:, None]
    most = lambda x: jnp.max(jnp.where(real, x, -1), -1)[:, None]
    first_query = (jnp.arange(nq, dtype=jnp.int32) * block_q)[None, :, None]
    last_query = first_query + block_q - 1
    active = (most(death) > first_query) & (least(first_seen) <= last_query)
    full = (most(birth) <= first_query) & (least(death) > last_query) & jnp.all(real, -1)[:, None]
    if since is not None:
        active &= most(birth) >= jnp.min(since, -1)[:, :, None]
        full &= least(birth) >= jnp.max(since, -1)[:, :, None]
    if last_same is not None:  # diagonal: a gist block may reach over the border of a query block
        full &= most(last_same) < first_query
    return jnp.where(active & full, 0, jnp.where(active, 1, 2))


def _listed(kind):
    """For every block of axis 1 those of axis 2, the full ones and then the partial ones, and how many these are."""
    blocks = jnp.argsort(kind, axis=-1, stable=True).astype(jnp.int32)
    return blocks, jnp.sum(kind == 0, -1, dtype=jnp.int32), jnp.sum(kind < 2, -1, dtype=jnp.int32)


def block_mask(plan: BlockPlan, row, i, j, width: int) -> jax.Array:
    """The rule inside one pair of blocks, bool [block_k, width]: keys first, and the queries repeated up to `width`.

    Repeating three int32 vectors is nearly free; repeating the mask for every query head of a group is not, on a CPU.
    """
    keys = lambda x: None if x is None else jax.lax.dynamic_slice(x, (row, j, 0), (1, 1, x.shape[-1]))[0, 0]
    repeat = lambda x: jnp.tile(x, width // plan.block_q)
    queries = lambda x: None if x is None else repeat(jax.lax.dynamic_slice(x, (row, i, 0), (1, 1, x.shape[-1]))[0, 0])
    index = repeat(i * plan.block_q + jnp.arange(plan.block_q, dtype=jnp.int32))
    birth, death, key_gist = keys(plan.birth), keys(plan.death), keys(plan.key_gist)
    return visible(
        birth, death, index, queries(plan.since), key_gist, queries(plan.query_gist), plan.gist_rule, keys_first=True
    )


def sort_keys(x: jax.Array, plan: BlockPlan) -> jax.Array:
    """[B, S, Hkv, D] -> [B * Hkv, nk, block_k, D] in sorted order."""
    B, _, groups, D = x.shape
    if plan.order.shape[0] == B:
        x = jnp.take_along_axis(x, plan.order[:, :, None, None], 1).swapaxes(1, 2)
    else:
        x = jnp.take_along_axis(x.swapaxes(1, 2), plan.order.reshape(B, groups, -1, 1), 2)
    return x.reshape(B * groups, -1, plan.block_k, D)


def unsort_keys(x: jax.Array, plan: BlockPlan, like: jax.Array) -> jax.Array:
    """The way back from `sort_keys`, to the shape and dtype of `like`."""
    B, S, groups, D = like.shape
    inverse = plan.inverse.reshape(B, -1, S, 1)
    return jnp.take_along_axis(x.reshape(B, groups, -1, D), inverse, 2).swapaxes(1, 2).astype(like.dtype)


def share(plan: BlockPlan) -> jax.Array:
    """Share of the (query block, key block) pairs that are visited, averaged over rows."""
    return jnp.sum(plan.n_active) / plan.blocks.size
