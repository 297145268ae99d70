"""The responses of a group one behind the other in one row, so that the learner reads their prompt once.

As in DualKV (arXiv 2605.15422), but with nothing that is new to attention: keys have lifetimes. Those of the prompt
live to the row's end, those of a response die at its end, and the positions of each response go on from the prompt. A
row of the prompt `a b`, the responses `d e f` and `g h`, and two tokens of padding:

        a b d e f g h - -
    a   1 . . . . . . . .
    b   1 1 . . . . . . .
    d   1 1 1 . . . . . .
    e   1 1 1 1 . . . . .
    f   1 1 1 1 1 . . . .
    g   1 1 . . . 1 . . .
    h   1 1 . . . 1 1 . .
    -   . . . . . . . 1 .
    -   . . . . . . . . 1

    position  0 1 2 3 4 2 3 0 0

What a method ends earlier dies earlier here too. `g` is given by the prompt, and its log-prob comes from the hidden
state of `b`. The log-probs then go back to a row for each response, and all that is made of them is as it was.

Where this is not done is said in `longest` and `fitted`; then there is a row for each response, see `batch.batch_of`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.decode import Completion
from lt_jax.decode.setup import size_for
from lt_jax.layout import packing
from lt_jax.lifetimes import NEVER
from lt_jax.rl.batch import batch_of
from lt_jax.rl.config import RlConfig
from lt_jax.training import step as steps

LONGEST = 2**14  # tokens of a shared row: attention on TPUs keeps the keys of a row in fast memory, which holds 25,600
READ = ("tokens", "positions", "death", "since", "gist")  # what the model is given of a row


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The rows that a rollout is learned from.

    Attributes:
        together: responses that share a row, and the prompt in it; 1 is a row for each.
        length: tokens of a prompt with one response, S.
        shared: tokens of a row, T. With a row for each response it is S.
    """

    together: int
    length: int
    shared: int


def longest(config: RlConfig, length: int, new: int, ways: int) -> Sizes:
    """The longest rows there can be.

    As many responses share a row as may: they are of one group and of one microbatch, every row has the same number of
    them, the mesh divides the rows of a microbatch, and no row is longer than `LONGEST`. None do under `replay`, where
    the keys of a prompt have other deaths for each response, and so not with `dense_kl`; nor with the "dense" form of
    attention, whose scores grow with the square of a row.

    Args:
        length: tokens of a prompt with one response at most.
        new: of them, tokens of a response at most.
        ways: data x fsdp of the mesh.
    """
    group, piece = config.rollout.group, config.rollout.responses // pieces(config)
    prompt = max(1, length - new)  # of the longest row
    tokens = lambda share: prompt + share * (length - prompt)
    whole = lambda share: group % share == 0 and piece % share == 0 and piece // share % ways == 0
    shares = [1]
    if not config.replay and config.train.attention != "dense":
        shares += [share for share in range(2, group + 1) if whole(share) and tokens(share) <= LONGEST]
    row, together = row_length(length, length), max(shares)
    return Sizes(together, row, row if together == 1 else shared_length(tokens(together), tokens(together)))


def fitted(config: RlConfig, most: Sizes, completions: Sequence[Completion]) -> Sizes:
    """The rows of a rollout, `most` cut down to what it needs: never more tokens than with a row for each response.

    It has a row for each response where the method ends a key of a prompt in the midst of a response, as memento may
    where the prompt opens a block: the other responses see that key. Also where positions are not counted by tokens, as
    of a context that was rebuilt (`memory.rows`).
    """
    row = row_length(max(len(each.row) for each in completions), most.length)
    if most.together == 1 or any(each.position is not None or _ends_prompt(each) for each in completions):
        return Sizes(1, row, row)
    shared = [[completions[i] for i in places] for places in sharers(len(completions), most.together, pieces(config))]
    tokens = max(group[0].prompt_length + sum(len(each.tokens) for each in group) for group in shared)
    return dataclasses.replace(most, shared=min(shared_length(tokens, most.shared), most.together * row))


def batch(config: RlConfig, sizes: Sizes, completions: Sequence[Completion], pad: int) -> dict:
    """The rows of a rollout. Without completions they are padding.

    Args:
        completions: in the order of `order`.
        pad: id of the padding.

    Returns:
        One row per response: `batch_of`, dense_death only where it is needed. Else, with Q = B / sizes.together:
        tokens, positions, death, since, gist [Q, T] int32: of the shared rows.
        prompt [Q] int32: tokens of the prompt, 1 or more.
        at [B, S] int32: where in its shared row each token of a response's own row lies, -1 for padding.
        response [B, S] bool and logp_sampler [B, S] float32, as `batch_of` has them.
    """
    rows = config.rollout.responses
    if sizes.together > 1:
        return _shared(completions, sizes, rows, pieces(config), pad)
    found = batch_of(completions, sizes.length, pad, rows, replay=config.replay)
    if not config.dense_kl:
        found.pop("dense_death", None)
    return found


def pieces(config: RlConfig) -> int:
    """Microbatches of a rollout."""
    return config.updates * config.train.accumulate


def order(config: RlConfig) -> np.ndarray:
    """[B] places of the responses, group after group, in the order of a batch: `training.step.cut` then gives each
    update, and each microbatch of it, responses that follow each other, so that these have whole groups if they can."""
    places = np.arange(config.rollout.responses)
    return places.reshape(config.updates, config.train.accumulate, -1).transpose(2, 1, 0).reshape(-1)


def followed(x: jax.Array, batch: dict) -> jax.Array:
    """Hidden states [Q, T, E] of shared rows, such that each token is given by the one before it in the row: at the end
    of a response that of the prompt's last token, which gives the first token of the next."""
    first = batch["positions"] == batch["prompt"][:, None]
    last = jnp.take_along_axis(x, batch["prompt"][:, None, None] - 1, axis=1)
    return jnp.where(jnp.roll(first, -1, axis=1)[..., None], last, x)


def apart(values: jax.Array, batch: dict) -> jax.Array:
    """[Q, T], values of the tokens of shared rows -> [B, S], of the tokens of each response's own row; 0 in padding."""
    at = batch["at"]
    found = jnp.take_along_axis(values, jnp.maximum(at, 0).reshape(len(values), -1), axis=1)
    return jnp.where(at >= 0, found.reshape(at.shape), 0)


def real(batch: dict) -> jax.Array:
    """[B, S] bool: which tokens of the responses' own rows are no padding."""
    return batch["at"] >= 0 if "at" in batch else ~steps.padding(batch)


def row_length(tokens: int, most: int) -> int:
    """The first of 256, 384, 512, 768 ... that has `tokens`, but none beyond what a row may come to."""
    return min(size_for(tokens), _up(most, 64))


def shared_length(tokens: int, most: int) -> int:
    """The same for shared rows, whose lengths are sums and vary less: in steps of an eighth, and of 64 at least."""
    return min(_up(tokens, max(64, 1 << max(tokens.bit_length() - 4, 0))), _up(max(tokens, most), 64))


def _up(tokens: int, step: int) -> int:
    return -(-tokens // step) * step


def _ends_prompt(completion: Completion) -> bool:
    """Whether a key of the prompt dies between the first token of the response and its end."""
    death, prompt = completion.death[: completion.prompt_length], completion.prompt_length
    return bool(((death > prompt) & (death < len(completion.row))).any())


def sharers(responses: int, together: int, pieces: int) -> np.ndarray:
    """[Q, together]: which responses of a batch share each row. Those of a microbatch are `pieces` apart, see `order`.
    """
    return np.arange(responses).reshape(-1, together, pieces).swapaxes(1, 2).reshape(-1, together)


def _shared(completions: Sequence[Completion], sizes: Sizes, responses: int, pieces: int, pad: int) -> dict:
    rows = responses // sizes.together
    joined = {name: np.zeros((rows, sizes.shared), np.int32) for name in packing.FEATURES}
    segment = np.zeros((rows, sizes.shared), np.int32)
    prompt = np.ones(rows, np.int32)
    at = np.full((responses, sizes.length), -1, np.int32)
    response, logp = np.zeros(at.shape, bool), np.zeros(at.shape, np.float32)
    for row, places in enumerate(sharers(responses, sizes.together, pieces) if completions else ()):
        first = completions[places[0]]
        end = prompt[row] = first.prompt_length
        for place in places:
            c = completions[place]
            if not np.array_equal(c.prompt, first.prompt):
                raise ValueError("responses that share a row must share their prompt")
            n, p, behind = len(c.row), c.prompt_length, end - first.prompt_length
            for name, values in _moved(c, behind).items():
                joined[name][row, end : end + n - p] = values[p:]
                joined[name][row, :p] = values[:p]
            segment[row, : (end := end + n - p)] = 1
            at[place, :n] = np.arange(n) + np.where(np.arange(n) < p, 0, behind)
            response[place, p:n] = ~c.forced
            logp[place, p:n] = np.where(c.forced, 0, c.logp)
    made = packing.finish(joined, segment, pad)
    return {name: made[name] for name in READ} | {
        "prompt": prompt, "at": at, "response": response, "logp_sampler": logp,
    }  # fmt: skip


def _moved(c: Completion, behind: int) -> dict[str, np.ndarray]:
    """The arrays of a completion's row, `behind` tokens further back: all that is counted in tokens from the prompt's
    end on moves with it, and ids of gist blocks, so that they differ."""
    n, p = len(c.row), c.prompt_length
    end = lambda death: np.where(death < n, death, n) + behind
    return {
        "tokens": c.row,
        "position": np.arange(n),
        "death": np.where(np.arange(n) >= p, end(c.death), np.where(c.death > p, NEVER, c.death)),
        "since": np.where(c.since >= p, c.since + behind, c.since),
        "gist": np.where((np.arange(n) >= p) & (c.block >= 0), c.block + behind, c.block),
    }
