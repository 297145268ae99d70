"""Embedded problems: reasoning-gym questions with every step worked out, as an endless, seeded stream.

Each family module has `SOURCE` (the reasoning-gym dataset), `settings(steps)` and `work(item, steps)`, which works
an item out, or returns None where the item does not suit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from lt_jax.data.tasks import count_bits, gcd, lcm, products, simple_equations
from lt_jax.data.tasks.worked import Worked
from lt_jax.errors import UserError

FAMILIES = {m.SOURCE: m for m in (gcd, lcm, products, simple_equations, count_bits)}
_TRIES = 1 << 15


class Problems(Sequence):
    """Random access to `size` worked problems; item i is a pure function of (seed, i).

    Args:
        size: how many.
        seed: another seed, other problems.
        steps: least and most thoughts of a problem, the answer aside.
        held_out: True for problems that no training stream contains, False for the training stream.
        families: names from FAMILIES, in turn.

    Raises:
        UserError: a family that is not there.
    """

    def __init__(self, size, seed=0, steps=(6, 12), held_out=False, families=tuple(FAMILIES)):
        import reasoning_gym

        unknown = set(families) - set(FAMILIES)
        if unknown:
            raise UserError(f"no family of problems {min(unknown)!r}; there are {', '.join(FAMILIES)}")
        self._size, self._seed, self._steps, self._held_out = size, seed, steps, held_out
        self._families = families
        self._datasets = {
            name: reasoning_gym.create_dataset(name, size=2**62, seed=0, **FAMILIES[name].settings(steps))
            for name in set(families)
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
            worked = FAMILIES[name].work(item, self._steps)
            if worked is not None and worked.held_out == self._held_out:
                return worked
        raise RuntimeError(f"no {name} problem of {self._steps} steps in {_TRIES} tries")
