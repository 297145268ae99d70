"""What a completion cost, all from the engine's one counter (LightThinker, section A; spec 5.1).

The engine reports, for every token it fed or sampled, `visible` (keys that token's query saw, itself included) and
`held` (keys in the context during that pass). From these, for every method alike:

    peak        max of held                       the most tokens in context at once
    dependency  sum of visible, sampled tokens    area under the context-length curve; gists' own reads do not count

The paper's closed forms are special cases, with P prompt and O sampled tokens: P*O + O*(O+1)/2 for a model that keeps
everything; a sum of min(P + j, C) for a budget of C keys. Here nothing is computed from them, so a short output under a
large budget cannot come out negative.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lt_jax.decode.completion import Completion


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one completion cost.

    Attributes:
        prompt: prompt tokens.
        generated: sampled tokens (EOS included); the trigger is one of them, gists and `[o]` are not.
        forced: tokens fed, not sampled.
        compressions: thoughts that were compressed.
        peak: most tokens in context at once; where layers and heads keep different keys, of their mean, rounded.
        dependency: sum over sampled tokens of the keys each saw, of that mean likewise.
        seconds: wall time from entering the batch to the last token; rows of one batch share the machine.
    """

    prompt: int
    generated: int
    forced: int
    compressions: int
    peak: int
    dependency: int
    seconds: float


def count(done: Completion) -> Cost:
    """What a completion cost."""
    return Cost(
        prompt=done.prompt_length,
        generated=int((~done.forced).sum()),
        forced=int(done.forced.sum()),
        compressions=done.compressions,
        peak=round(max(float(done.held.max(initial=0)), done.prompt_held)),
        dependency=round(float(done.visible[~done.forced].sum(dtype=np.float64))),
        seconds=float(done.seconds),
    )
