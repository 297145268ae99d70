"""How a thought is closed: the one definition that training rows and the decode controller both follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from lt_jax.layout.row import Role
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import NEVER

ANY = -1  # in `Closing.tokens`: whatever was sampled


@dataclasses.dataclass(frozen=True)
class Closing:
    """The tokens from the one that closes a thought to the last forced one, numpy [M] each.

    Offsets count from the closing token's own index: it has offset 0 and its successors 1, 2, ...

    LightThinker with two gists (`thought_dies` 3):   anllm (1):    memento (1):

        token    w   c   c   o                          a             summary_end
        offset   0   1   2   3                          0             0
        death    3   -   -   -                          -             -

    Attributes:
        tokens: [M] int32. tokens[0] closes the thought; it is sampled, or fed when a thought must be ended by force;
            `ANY` at token level, where the chunk's last token closes it. tokens[1:] are fed, never sampled.
        role: [M] int8.
        trained: [M] bool.
        death: [M] int32, offset at which the token itself dies, or NEVER.
        since: [M] bool, the token attends to nothing before the start of the thought (`see_current`, anllm).
        is_gist: [M] bool, the token is in the gist block of this thought.
        thought_dies: offset at which the tokens of the thought before tokens[0] die.
        replaces_output: the previous thought's output token dies at this one's output token (`exclude_continue`).
        opens, shuts: memento: the ids that begin and end the tokens that die (both included). None otherwise: the
            thought begins right after the last closing or the prompt and ends before tokens[0].
        every: token level: the number of tokens, the closing one included, that make a thought. 0 otherwise.
    """

    tokens: np.ndarray
    role: np.ndarray
    trained: np.ndarray
    death: np.ndarray
    since: np.ndarray
    is_gist: np.ndarray
    thought_dies: int
    replaces_output: bool = False
    opens: int | None = None
    shuts: int | None = None
    every: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def forced(self) -> np.ndarray:
        """[M - 1] int32: what is fed after the closing token."""
        return self.tokens[1:]


def closing(scheme: Scheme, special: SpecialTokens, tokenize: Callable | None = None) -> Closing | None:
    """How `scheme` closes a thought; None for vanilla, which never does, and for memory, where it
    is done between two requests (`lt_jax.memory`).

    Args:
        tokenize: text -> ids; needed only for `scheme.instruction`.

    Raises:
        UserError: the table lacks a token of the scheme.
    """
    special.check(scheme)
    if scheme.method in ("vanilla", "memory"):
        return None
    if scheme.method == "memento":
        start, end, _, summary_end = special.memento
        return _columns([(summary_end, Role.GIST, True, NEVER, False, False)], 1, opens=start, shuts=end)
    if scheme.method == "anllm":
        return _columns([(special.gists[0], Role.GIST, True, NEVER, True, True)], 1)
    instruction = list(tokenize(scheme.instruction)) if scheme.instruction else []
    dies = 1 + len(instruction) + scheme.gist_tokens
    first = (special.trigger, Role.TRIGGER) if scheme.has_trigger else (ANY, Role.THOUGHT)
    table = [(*first, True, dies, False, False)]
    table += [(token, Role.INSTRUCTION, False, dies, False, False) for token in instruction]
    gists = special.gists[: scheme.gist_tokens]
    table += [(token, Role.GIST, False, NEVER, scheme.current_only, True) for token in gists]
    table += [(special.output, Role.OUTPUT, False, NEVER, False, False)]
    every = scheme.step if scheme.level == "token" else 0
    return _columns(table, dies, replaces_output=scheme.exclude_continue, every=every)


def _columns(table, thought_dies, **more) -> Closing:
    types = (np.int32, np.int8, np.bool_, np.int32, np.bool_, np.bool_)
    columns = [np.asarray(column, kind) for column, kind in zip(zip(*table, strict=True), types, strict=True)]
    return Closing(*columns, thought_dies, **more)
