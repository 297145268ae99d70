"""Which tokens of a completion are thoughts, gists and other text. The lifetimes of its tokens come from the engine."""

from __future__ import annotations

import numpy as np

from lt_jax.decode import Completion
from lt_jax.layout.closing import Closing
from lt_jax.layout.row import Role


def outline(done: Completion, closing: Closing | None) -> tuple[np.ndarray, np.ndarray]:
    """The role and the thought number of each token of prompt and response, as in `layout.Row`.

    Args:
        closing: how the scheme closes a thought; None for vanilla.

    Returns:
        role [P + N] int8 and thought [P + N] int32 (-1 outside of thoughts). An unfinished last thought is one, too.
    """
    prompt, total = done.prompt_length, len(done.row)
    role = np.full(total, Role.PROMPT, np.int8)
    role[:prompt][done.block[:prompt] >= 0] = Role.GIST
    free_text = closing is None or closing.opens is not None
    role[prompt:] = Role.TEXT if free_text else Role.THOUGHT
    thought = np.full(total, -1, np.int32)
    start = prompt
    for number, at in enumerate(prompt + done.closings):
        end = at + len(closing)
        if free_text:
            dead = start + np.flatnonzero(done.death[start:at] == at + closing.thought_dies)
            role[dead], thought[dead] = Role.THOUGHT, number
            summary = slice(int(dead[-1]) + 1 if len(dead) else at, end)
            role[summary], thought[summary] = Role.GIST, number
        else:
            thought[start:end], role[at:end] = number, closing.role
        start = end
    if not free_text:
        thought[start:] = len(done.closings)
    if done.finish == "eos" and total > start:
        role[-1], thought[-1] = Role.EOS, -1
    return role, thought
