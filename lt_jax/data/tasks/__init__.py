"""Embedded problems: reasoning-gym questions with every step worked out, as an endless, seeded stream.

Each family module has `SOURCE` (the reasoning-gym dataset), `settings(steps)` and `work(item, steps)`, which works
an item out, or returns None where the item does not suit.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence

from lt_jax.data.tasks import count_bits, gcd, lcm, products, simple_equations
from lt_jax.data.tasks.worked import Worked
from lt_jax.errors import UserError

FAMILIES = {m.SOURCE: m for m in (gcd, lcm, products, simple_equations, count_bits)}
# The least and most steps that four digits (a digit for lcm's multiples) leave room for.
STEPS = {"gcd": (1, 998), "lcm": (2, 9), "products": (1, 18), "simple_equations": (2, 99), "count_bits": (1, 14)}
_TRIES = 1 << 15


class Problems(Sequence):
    """Random access to `size` worked problems; item i is a pure function of (seed, i).

    Args:
        size: how many.
        seed: another seed, other problems.
        steps: least and most steps of a problem (subtractions, multiples, halvings); the answer, and in some families a
            thought to begin with, come on top.
        held_out: True for problems that no training stream contains, False for the training stream.
        families: names from FAMILIES, in turn.

    Raises:
        UserError: a family that is not there, or that has no problems of so many steps; later, one that has hardly any.
    """

    def __init__(self, size, seed=0, steps=(6, 12), held_out=False, families=tuple(FAMILIES)):
        with warnings.catch_warnings():  # compiling one of its packages writes lines to stderr, before any of ours
            warnings.simplefilter("ignore", SyntaxWarning)
            import reasoning_gym

        unknown = set(families) - set(FAMILIES)
        if unknown:
            raise UserError(f"no family of problems {min(unknown)!r}; there are {', '.join(FAMILIES)}")
        self._size, self._seed, self._held_out = size, seed, held_out
        self._families = families
        self._steps = {name: _within(steps, name) for name in families}
        self._datasets = {
            name: reasoning_gym.create_dataset(name, size=2**62, seed=0, **FAMILIES[name].settings(within))
            for name, within in self._steps.items()
        }

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Worked:
        if not 0 <= index < self._size:
            raise IndexError(index)
        name = self._families[index % len(self._families)]
        draw = random.Random(f"{self._seed}/{index}")
        for _ in range(_TRIES):
            item = self._datasets[name][draw.getrandbits(60)]
            worked = FAMILIES[name].work(item, self._steps[name])
            if worked is not None and worked.held_out == self._held_out:
                return worked
        least, most = self._steps[name]
        raise UserError(
            f"problems of {name} with {least} to {most} steps are too rare: none in {_TRIES:,} tries; "
            "allow more numbers of steps, or leave the family out"
        )


def _within(steps: tuple[int, int], name: str) -> tuple[int, int]:
    """The part of `steps` that a family can do. UserError if there is none."""
    least, most = steps
    if not 1 <= least <= most:
        raise UserError(f"steps {least} to {most}: the least must be at least 1 and no more than the most")
    few, many = STEPS[name]
    if least > many or most < few:
        raise UserError(
            f"{name} has no problems of {least} to {most} steps: it can do {few} to {many}; choose other steps, or "
            f"families without {name}"
        )
    return max(least, few), min(most, many)
