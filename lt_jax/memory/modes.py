"""Throughput and budget, the two modes of LightThinker++, as presets of one model.

    throughput    commit early: after every small step, so that the context stays as small as it can
    budget        commit late: spend a given context on keeping steps in full, so that less must be brought back

How they are realised (the paper does not say): a trajectory that is taught in a mode has the mode's cue before its
question, and to decode in that mode the same cue is put there again. So one model learns both and is asked for one.
What the model does not do by itself is held by `Limits`: in throughput a turn may not grow longer than a step of that
mode, after which the environment says so; in budget the trajectory ends where its context would outgrow the budget.
A trajectory without a mode has no cue.
"""

from __future__ import annotations

import dataclasses

from lt_jax.errors import UserError
from lt_jax.memory.trajectories import Limits

LONGEST_STEP = 384  # tokens; steps of the paper's throughput mode have 128 to 384 (its figure 7)


@dataclasses.dataclass(frozen=True)
class Mode:
    """A mode.

    Attributes:
        name: of it.
        cue: text before the question.
        spends: whether it keeps steps in full up to a context budget.
    """

    name: str
    cue: str
    spends: bool

    def limits(self, semantics: str, budget: int | None = None, **more) -> Limits:
        """What holds trajectories to the mode.

        Args:
            budget: tokens of context; needed by a mode that spends it, and refused by one that does not.
            more: other fields of `Limits`, which go before those of the mode.
        """
        if self.spends != (budget is not None):
            raise UserError(f"mode {self.name!r} {'needs a' if self.spends else 'has no'} context budget")
        own = {"turn": budget, "context": budget} if self.spends else {"turn": LONGEST_STEP}
        return Limits(semantics, **{**own, **more})


MODES = {mode.name: mode for mode in (Mode("throughput", "[early] ", False), Mode("budget", "[late] ", True))}


def mode(name: str) -> Mode:
    """The mode of that name. UserError if there is none."""
    if name not in MODES:
        raise UserError(f"mode is {name!r}; it must be one of {', '.join(MODES)}")
    return MODES[name]


def asked(name: str | None, question: str) -> str:
    """A question as it is put in a mode; None is none."""
    return question if name is None else mode(name).cue + question
