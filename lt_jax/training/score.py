"""Log-probs of the tokens of given rows: what the model says of them when it sees what their sampler saw."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from lt_jax.attention import Split
from lt_jax.errors import UserError
from lt_jax.lifetimes import NEVER, Lifetimes
from lt_jax.models import decoder
from lt_jax.models.config import DecoderConfig
from lt_jax.training import loss as losses
from lt_jax.training import mesh as meshes
from lt_jax.training import state as states


def score(
    params: dict,
    model: DecoderConfig,
    tokens: jax.Array,
    lifetimes: Lifetimes | None = None,
    positions: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 1.0,
    never: tuple[int, ...] = (),
    chunk: int = 0,
    attention: str | None = None,
    remat: str = "none",
    place: NamedSharding | None = None,
    split: Split | None = None,
    unroll: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of every token given those before it that are visible, and the entropy of what it was drawn from.

    A pure function, for use inside `jit` and `grad`: gradients flow to the leaves that are trained (under LoRA adapters
    and new rows; all otherwise). Under `Completion.lifetimes()` and the sampler's settings the log-probs of sampled
    tokens are those of the completion.

    Args:
        tokens: [B, S] int32.
        lifetimes, positions: as `decoder.forward` takes them; recorded deaths are [B, L, Hkv, S].
        temperature: of the sampler, a scalar or [B, S], for each token that of its own draw; 0 stands for 1, as the
            sampler reports the log-probs of greedy tokens.
        never: ids that the sampler could not draw. A token of theirs in a row was fed, and gets log-prob 0 as in
            `Completion.logp`.
        chunk: tokens whose logits exist at one time; 0 chooses by vocabulary size.
        attention, remat, unroll: see `decoder.forward`.
        place: on a mesh, the sharding of the residual stream, see `step.activations`.
        split: on a mesh, how attention lies on it; None is as training has it on the mesh of `place`.

    Returns:
        logp and entropy, [B, S] float32: [b, t] is of token t, given tokens 0 to t - 1. Both are 0 for t = 0. (What
        padding gets, and the first token of a document behind another in its row, means nothing.)
    """
    x = hidden(params, model, tokens, lifetimes, positions, attention, remat, place, split, unroll)
    return logps_of(params, model, x, tokens, temperature=temperature, never=never, chunk=chunk)


def hidden(params, model, tokens, lifetimes=None, positions=None, attention=None, remat="none", place=None, split=None,
           unroll=False) -> jax.Array:  # fmt: skip
    """The first half of `score`: hidden states [B, S, E] after the final norm. Arguments as there."""
    return decoder.forward(
        params,
        model,
        tokens,
        positions,
        lifetimes,
        implementation=attention,
        remat=remat,
        sharding=place,
        split=meshes.split(place.mesh) if split is None and place is not None else split,
        unroll=unroll,
    )


def logps_of(
    params: dict, model: DecoderConfig, x: jax.Array, tokens: jax.Array, *, temperature=1.0, never=(), chunk: int = 0
) -> tuple[jax.Array, jax.Array]:
    """The second half of `score`, from hidden states [B, S, E]."""
    following = lambda a: jnp.roll(a, -1, axis=1).reshape(-1)
    temperature = jnp.asarray(temperature, jnp.float32)
    trained, frozen = states.split(params, states.trainable_mask(model))
    logp, entropy = losses.token_logps(
        model,
        losses.chunk_size(tokens.size, model, chunk),
        losses.head_params(trained, model),
        losses.head_params(frozen, model),
        x.reshape(-1, x.shape[-1]),
        following(tokens),
        following(temperature) if temperature.ndim else temperature,
        never,
    )
    own = lambda a: jnp.pad(a.reshape(tokens.shape)[:, :-1], [(0, 0), (1, 0)])
    fed = jnp.isin(tokens, jnp.asarray(never, jnp.int32))
    return jnp.where(fed, 0.0, own(logp)), own(entropy)


SHORTEST = 32  # rows are filled up to 32, 64, 128 ... tokens, so that few lengths are compiled
TOGETHER = 4096  # most tokens of rows that are scored together


@dataclasses.dataclass(frozen=True)
class Given:
    """A row to score by itself.

    Attributes:
        tokens: [N] ids.
        lifetimes: of a batch of one, N tokens; None where nothing ever dies.
        positions: [N] int32; None is 0, 1, 2 ...
        temperature, never: see `score`.
    """

    tokens: Sequence[int]
    lifetimes: Lifetimes | None = None
    positions: np.ndarray | None = None
    temperature: float = 1.0
    never: tuple[int, ...] = ()


def score_rows(
    params: dict, model: DecoderConfig, rows: Sequence[Given], split: Split | None = None
) -> list[np.ndarray]:
    """`score` of rows of any lengths: [N] float32 log-probs of each. Rows without lifetimes are scored together.

    Args:
        split: see `score`; where parameters lie on a mesh. It does not cut the rows.

    Raises:
        UserError: a row without tokens, or with ids outside of the vocabulary.
    """
    groups = collections.defaultdict(list)
    for number, row in enumerate(rows):
        _check(np.asarray(row.tokens), number, model)
        length = max(SHORTEST, 1 << (len(row.tokens) - 1).bit_length())
        alone = row.lifetimes is not None or row.positions is not None
        groups[length, number if alone else -1, float(row.temperature), row.never].append(number)
    found: list[np.ndarray] = [np.zeros(0)] * len(rows)
    for (length, alone, temperature, never), numbers in groups.items():
        most = 1 if alone >= 0 else max(1, TOGETHER // length)
        for some in [numbers[i : i + most] for i in range(0, len(numbers), most)]:
            tokens = np.zeros((1 << (len(some) - 1).bit_length(), length), np.int32)
            for place, number in enumerate(some):
                tokens[place, : len(rows[number].tokens)] = rows[number].tokens
            own = rows[some[0]]
            lifetimes, positions = _filled(own.lifetimes, length), None
            if own.positions is not None:
                positions = np.pad(own.positions, (0, length - len(own.positions)))[None]
            logp = np.asarray(_logps(params, model, tokens, lifetimes, positions, temperature, never, split))
            for place, number in enumerate(some):
                found[number] = logp[place, : len(rows[number].tokens)].copy()
    return found


@functools.partial(jax.jit, static_argnames=("model", "never", "split"))
def _logps(params, model, tokens, lifetimes, positions, temperature, never, split):
    return score(params, model, tokens, lifetimes, positions, temperature=temperature, never=never, split=split)[0]


def _check(tokens: np.ndarray, number: int, model: DecoderConfig) -> None:
    if not tokens.size or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise UserError(f"row {number}: there is nothing to score; give a text, or one token id or more")
    outside = (tokens < 0) | (tokens >= model.vocab_size)
    if outside.any():
        raise UserError(
            f"row {number}: token id {tokens[outside.argmax()]} is outside the model's vocabulary of {model.vocab_size}"
        )


def _filled(lifetimes: Lifetimes | None, length: int) -> Lifetimes | None:
    """The same with padding behind the row, which no token of it sees."""
    if lifetimes is None:
        return None

    def fill(x, value):
        return None if x is None else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])],
                                              constant_values=value)  # fmt: skip

    return Lifetimes(fill(lifetimes.death, NEVER), fill(lifetimes.since, 0), fill(lifetimes.gist, -1),
                     lifetimes.gist_rule)  # fmt: skip
