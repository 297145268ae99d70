"""One laid-out sample: tokens, what each is for, and how long its key lives."""

from __future__ import annotations

import dataclasses
import enum

import jax.numpy as jnp
import numpy as np

from lt_jax.lifetimes import NEVER, Lifetimes


class Role(enum.IntEnum):
    """What a token is for. A gist block is GIST tokens, then OUTPUT where the method has one."""

    PROMPT = 0
    THOUGHT = 1
    TRIGGER = 2
    INSTRUCTION = 3
    GIST = 4
    OUTPUT = 5
    TEXT = 6
    EOS = 7
    PAD = 8


LETTERS = "xswicote-"  # one per Role, for drawings


@dataclasses.dataclass(frozen=True)
class Row:
    """A sample as numpy arrays of one length N; int32 unless said.

    Attributes:
        tokens: [N] token ids.
        role: [N] int8, `Role`.
        trained: [N] bool, this token is a training target (LightThinker 3.2: thoughts, triggers, EOS).
        position: [N] RoPE positions, 0..N-1; tokens that die go on counting. (Where a context is rebuilt they count
            anew, see `memory.rows`.)
        death: [N] first index that no longer sees the token, `NEVER` if none.
        since: [N] oldest index that the token may attend to, 0 normally.
        gist: [N] id of the gist block for `gist_rule`, -1 outside; ids are below N.
        thought: [N] number of the thought a token belongs to (its gists and output token too), -1 outside.
    """

    tokens: np.ndarray
    role: np.ndarray
    trained: np.ndarray
    position: np.ndarray
    death: np.ndarray
    since: np.ndarray
    gist: np.ndarray
    thought: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def letters(self) -> str:
        """One letter per token by its role, for `lifetimes.draw`: x prompt, s thought, w trigger, c gist ..."""
        return "".join(LETTERS[role] for role in self.role)

    @property
    def prompt_length(self) -> int:
        """Tokens before the response, gists of a compressed prompt included."""
        written = np.flatnonzero((self.role != Role.PROMPT) & ~((self.role == Role.GIST) & (self.thought < 0)))
        return int(written[0]) if len(written) else len(self)

    def lifetimes(self, gist_rule: str = "causal") -> Lifetimes:
        """The row's lifetimes as a batch of one; pass `scheme.gist_rule`."""
        gist = None if gist_rule == "causal" else jnp.asarray(self.gist)[None]
        return Lifetimes(jnp.asarray(self.death)[None], jnp.asarray(self.since)[None], gist, gist_rule)


class RowWriter:
    """Appends runs of tokens and becomes a Row. Deaths of earlier tokens may still be set while writing."""

    def __init__(self):
        self.columns = {field.name: [] for field in dataclasses.fields(Row)}
        self.blocks = 0

    def __len__(self) -> int:
        return len(self.columns["tokens"])

    def write(self, tokens, role, *, trained=False, thought=-1, death=NEVER, since=0, gist=-1, position=None) -> int:
        """Appends `tokens`, all alike; returns the index of the first. Their positions go on from `position`, or are
        their indices."""
        start = len(self)
        values = dict(role=role, trained=trained, thought=thought, death=death, since=since, gist=gist)
        self.columns["tokens"].extend(int(token) for token in tokens)
        first = start if position is None else position
        self.columns["position"].extend(range(first, first + len(self) - start))
        for name, value in values.items():
            self.columns[name].extend([value] * (len(self) - start))
        return start

    def end(self, start: int, stop: int, death: int) -> None:
        """Sets the death of the tokens start..stop-1."""
        self.columns["death"][start:stop] = [death] * (stop - start)

    def forget(self, start: int, stop: int) -> None:
        """The tokens start..stop-1 die here, at the latest."""
        column, here = self.columns["death"], len(self)
        column[start:stop] = [min(death, here) for death in column[start:stop]]

    def new_block(self) -> int:
        """A fresh gist-block id."""
        self.blocks += 1
        return self.blocks - 1

    def row(self) -> Row:
        types = {"role": np.int8, "trained": np.bool_}
        return Row(**{name: np.asarray(column, types.get(name, np.int32)) for name, column in self.columns.items()})
