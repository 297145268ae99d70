"""The longest prefix that is there: how much of a new prompt a row of the cache already holds.

A row, under way or finished and not yet overwritten, holds the keys of the tokens it was fed. A prompt that begins with
the same tokens under the same lifetimes can go on from them: the keys of the common part stay (or are copied), what
lies behind is forgotten (`cache.truncated`), and only the rest is read. Samples of one prompt, the next turn of a chat,
a context rebuilt after an edit and a common system prompt are all this one thing.

It must be exact: every key that a whole reading would have at that point must still be there, and nothing else. So
there is no reuse where keys of the common part were evicted, or died when a thought was closed behind it. That a key
ends later than the common part does makes no difference to it: the new prompt says when its keys die (`redated`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lt_jax.cache.policies import Eviction
from lt_jax.decode.control import Rules
from lt_jax.layout.row import Row

WORTH = 32  # a common part of fewer tokens is read again: that costs less than fetching it


@dataclasses.dataclass(frozen=True)
class Held:
    """What a row of the cache has been fed, numpy [m] each, int32.

    Attributes:
        tokens, death, since, gist: as in `layout.row.Row`.
        most: at most this many tokens can be taken over: the keys behind them may have been written over.
    """

    tokens: np.ndarray
    death: np.ndarray
    since: np.ndarray
    gist: np.ndarray
    most: int

    def __len__(self) -> int:
        return len(self.tokens)

    def until(self, stop: int) -> Held:
        """The same of the first `stop` tokens."""
        cut = {name: getattr(self, name)[:stop] for name in ("tokens", "death", "since", "gist")}
        return Held(**cut, most=min(self.most, stop))

    def within(self, slots: int) -> Held:
        """The same if only what lies in the first so many slots is still there: keys that died have none."""
        seats = np.cumsum(self.death > len(self))
        return dataclasses.replace(self, most=min(self.most, int(np.searchsorted(seats, slots, "right"))))


def head(tokens: np.ndarray) -> bytes:
    """What two prompts have in common if they have enough in common."""
    return tokens[:WORTH].tobytes()


def of_prompt(prompt: Row) -> Held:
    """What a row holds right after a prompt was read."""
    return Held(prompt.tokens, prompt.death, prompt.since, prompt.gist, len(prompt))


def common(held: Held, prompt: Row) -> int:
    """Tokens at the start of both that are the same and live under the same rules, as far as these tokens see: of a
    token that dies at 7 in the one and at 9 in the other, 7 tokens can be the same and no more."""
    n = min(len(held), len(prompt))
    same = held.tokens[:n] == prompt.tokens[:n]
    for name in ("since", "gist"):
        same &= getattr(held, name)[:n] == getattr(prompt, name)[:n]
    n = n if same.all() else int(same.argmin())
    one, other = held.death[:n], prompt.death[:n]
    return min(n, int(np.where(one == other, n, np.minimum(one, other)).min(initial=n)))


def redated(held: Held, prompt: Row, begin: int) -> bool:
    """Whether the first `begin` tokens die at other moments in the prompt than in the row that they are taken from."""
    return bool((held.death[:begin] != prompt.death[:begin]).any())


def reusable(held: Held, prompt: Row, rules: Rules) -> int:
    """Tokens of `prompt` that a new row may take over from `held`, 0 if not worth it. At least one is left to read.

    Tokens 2 and 3 died when the row was at index 5. So a prompt may take over 0, 1 or 2 tokens (before the dead keys)
    or 5 and more (later queries would not see them either), but not 3 or 4:

        index    0 1 2 3 4 5 6
        death    - - 5 5 - - -
    """
    n = min(common(held, prompt), held.most, len(prompt) - 1)
    if rules.eviction is not None:
        n = _under_budget(n, held, prompt, rules.eviction)
    while n > 0:
        # Freed by now, but the next token would still see them.
        missing = (prompt.death[:n] > n) & (held.death[:n] <= len(held))
        if missing.any():
            n = int(missing.argmax())
        elif prompt.gist[n] >= 0 and prompt.gist[n] == prompt.gist[n - 1]:  # a gist block is fed in one pass
            n -= 1
        else:
            break
    return n if n >= WORTH else 0


def _under_budget(n: int, held: Held, prompt: Row, how: Eviction) -> int:
    """`n`, cut down so that the first eviction comes when it would, and finds the books as a whole reading leaves them.

    Args:
        held: of a row that has not evicted yet.
    """
    if redated(held, prompt, n):  # a row under a budget keeps no deaths that could be changed
        n = int((held.death[:n] != prompt.death[:n]).argmax())
    if (held.death[:n] <= len(held)).any():  # those were freed, and count no longer towards a full row
        return 0
    if how.policy == "h2o":  # what keys received cannot be taken apart again by query
        return n if n == len(held) else 0
    return min(n, min(len(prompt), how.least + how.buffer) - how.asks)  # the ring of queries is filled anew
