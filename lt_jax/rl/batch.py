"""Completions as a batch to learn from: what was sampled, and what its sampler saw.

Here each has a row of its own, as recorded evictions need; see `sharing` for the responses of a group in one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.decode import Completion
from lt_jax.errors import UserError
from lt_jax.layout import packing
from lt_jax.lifetimes import NEVER


def batch_of(
    completions: Sequence[Completion], length: int, pad: int, rows: int | None = None, *, replay: bool = True
) -> dict:
    """A batch for `training.step` and `training.score`, one completion per row, filled up with padding.

    Args:
        completions: of one engine: they share their gist rule and how deaths were recorded.
        length: tokens of a row, S.
        pad: id of the padding, which sees only itself and is seen by no other token.
        rows: B, the last ones whole rows of padding; None is one per completion.
        replay: with the deaths that evictions gave; False leaves them out, so that the learner sees all that the
            method keeps.

    Returns:
        tokens, targets, positions, since, gist [B, S] int32 and weights [B, S] float32 as `layout.packing` makes them:
        a target has weight 1 where it was sampled. And of each token, not of its target:
        response [B, S] bool: it was sampled; not so the prompt, what was forced, and padding.
        logp_sampler [B, S] float32: `Completion.logp`, 0 outside the response.
        death: [B, S] int32 numpy like all of these; [B, Lr, Kr, S] on the device where evictions were recorded, which
        never leave it. dense_death [B, S] is then what it would be without them.

    Raises:
        UserError: a completion is longer than `length`, or there are more than `rows`; they are not of one engine; keys
            were evicted and no deaths recorded.
    """
    rows = len(completions) if rows is None else rows
    _check(completions, length, rows, replay)
    joined = {name: np.zeros((rows, length), np.int32) for name in packing.FEATURES}
    segment = np.zeros((rows, length), np.int32)
    logp = np.zeros((rows, length), np.float32)
    for row, c in enumerate(completions):
        n, prompt = len(c.row), c.prompt_length
        own = {"tokens": c.row, "position": c.positions, "death": c.death, "since": c.since, "gist": c.block}
        for name, values in own.items():
            joined[name][row, :n] = values
        joined["trained"][row, prompt:n] = ~c.forced
        segment[row, :n] = 1
        logp[row, prompt:n] = np.where(c.forced, 0, c.logp)
    batch = packing.finish(joined, segment, pad)
    batch |= {"response": joined["trained"] > 0, "logp_sampler": logp}
    if replay and completions and completions[0].record is not None:
        batch["dense_death"] = batch["death"]
        batch["death"] = _recorded(tuple(c.record for c in completions), batch["death"])
    return batch


@jax.jit
def _recorded(records: tuple, death) -> jax.Array:
    """[B, Lr, Kr, S]: records [Lr, Kr, T] of the first rows, cut or filled up to S, and the deaths [B, S] of all."""
    rows, length = death.shape
    own = jnp.stack(records)[..., :length]
    fill = [(0, rows - len(records)), (0, 0), (0, 0), (0, length - own.shape[-1])]
    return jnp.minimum(jnp.pad(own, fill, constant_values=NEVER), death[:, None, None])


def _check(completions: Sequence[Completion], length: int, rows: int, replay: bool) -> None:
    if len(completions) > rows:
        raise UserError(f"{len(completions)} completions do not fit into a batch of {rows} rows")
    for c in completions:
        if len(c.row) > length:
            raise UserError(f"request {c.id}: {len(c.row)} tokens do not fit into rows of {length}; raise the length")
        if replay:
            c.check_recorded()
    if len({(c.gist_rule, None if c.record is None else c.record.shape) for c in completions}) > 1:
        raise UserError("the completions of a batch must be of one engine: these differ in their gist rule, or in how "
                        "evictions were recorded")  # fmt: skip
