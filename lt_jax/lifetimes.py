"""The one rule of this library: a key has a lifetime, a query sees the keys that are alive.

Every key `k` has `birth[k]`, its index in the row, and `death[k]`, the first query index that no longer sees it
(`NEVER` if none does). A query may have `since[q]`, the oldest birth that it may attend to.

    visible(q, k)  =  birth[k] <= index(q) < death[k]   and   birth[k] >= since[q]

Three int32 vectors stand for every S x S mask: LightThinker, AnLLM, Memento, packing and recorded evictions. The only
exception is `gist_rule`, how the tokens of one gist block see each other (LightThinker, `bi_directional` and
`diagonal`), and it is kept inside this file.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

NEVER = 2**30
GIST_RULES = ("causal", "bidirectional", "diagonal")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lifetimes:
    """Lifetimes of the keys of a batch of rows, for queries that are the rows' own tokens.

    Attributes:
        death: [B, S]; [B, Hkv, S] where every kv head ends its own keys; [B, L, Hkv, S] where every layer does too, as
            a rollout records it (L or Hkv is 1 where layers or heads agree; for `models.decoder.forward`, which hands
            each layer its own). int32.
        since: [B, S] int32, or None (every query may attend to keys from birth 0 on).
        gist: [B, S] int32, the id of the gist block a token belongs to, -1 outside; None if `gist_rule` is "causal".
        gist_rule: "causal", "bidirectional" (the tokens of a gist block all see each other) or "diagonal" (each
            sees only itself of its block).
    """

    death: jax.Array
    since: jax.Array | None = None
    gist: jax.Array | None = None
    gist_rule: str = dataclasses.field(default="causal", metadata={"static": True})


def causal(batch: int, length: int) -> Lifetimes:
    """Lifetimes under which nothing ever dies: plain causal attention over [batch, length]."""
    return Lifetimes(jnp.full((batch, length), NEVER, jnp.int32))


def visible(
    birth, death, index, since=None, key_gist=None, query_gist=None, gist_rule: str = "causal", keys_first: bool = False
):
    """The rule, for keys [..., S] and queries [..., T]; leading axes broadcast. Works on numpy and JAX arrays.

    Two thoughts `a b` and `d e`, each ended by a gist `g` and an output token `o` (death of a, b = 3; of d, e = 7):

                a b g o d e h o
            a   1 . . . . . . .
            b   1 1 . . . . . .
            g   1 1 1 . . . . .
            o   . . 1 1 . . . .
            d   . . 1 1 1 . . .
            e   . . 1 1 1 1 . .
            h   . . 1 1 1 1 1 .
            o   . . 1 1 . . 1 1

    Args:
        birth, death: [..., S] int32 of the keys; a key with birth < 0 is an empty slot and never visible.
        index: [..., T] int32, the queries' own indices.
        since: [..., T] int32 or None.
        key_gist, query_gist: [..., S] and [..., T] int32 gist-block ids, -1 outside; needed unless "causal".
        gist_rule: see `Lifetimes`.
        keys_first: return [..., S, T] instead.

    Returns:
        bool [..., T, S].
    """
    column = lambda x: x[..., :, None]
    line = lambda x: x[..., None, :]
    keys, queries = (column, line) if keys_first else (line, column)
    birth, death, index = keys(birth), keys(death), queries(index)
    alive = (birth >= 0) & (index < death)
    if since is not None:
        alive = alive & (birth >= queries(since))
    seen = birth <= index
    if gist_rule != "causal":
        same = (keys(key_gist) == queries(query_gist)) & (queries(query_gist) >= 0)
        seen = (seen | same) if gist_rule == "bidirectional" else (seen & (~same | (birth == index)))
    return alive & seen


def dense_mask(lifetimes: Lifetimes) -> jax.Array:
    """The rule written out: bool [B, 1, S, S], or [B, Hkv, S, S] for per-head deaths. For tests and tiny shapes."""
    death = lifetimes.death if lifetimes.death.ndim == 3 else lifetimes.death[:, None]
    index = jnp.arange(death.shape[-1], dtype=jnp.int32)[None, None]
    per_row = lambda x: None if x is None else x[:, None]
    gist = per_row(lifetimes.gist)
    return visible(index, death, index, per_row(lifetimes.since), gist, gist, lifetimes.gist_rule)


def draw(mask, labels=None) -> str:
    """ASCII picture of one [T, S] mask, queries downwards; `labels` are one-character names of the tokens."""
    mask = np.asarray(mask, bool)
    rows = [" ".join("1" if cell else "." for cell in row) for row in mask]
    if labels is None:
        return "\n".join(rows)
    head = "    " + " ".join(labels[: mask.shape[1]])
    return "\n".join([head, *(f"{label}   {row}" for label, row in zip(labels, rows, strict=False))])
