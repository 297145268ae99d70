"""Embedded problems: reasoning-gym questions with every step worked out, as an endless, seeded stream.

Each family module has `SOURCE` (the reasoning-gym dataset), `settings(steps)` and `work(item, steps, first)`, which
works an item out, or returns None where the item does not suit. Steps with running numbers start at `first`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from lt_jax.data.tasks import base_conversion, count_bits, gcd, lcm, simple_equations
from lt_jax.data.tasks.worked import Worked

FAMILIES = {m.SOURCE: m for m in (gcd, lcm, simple_equations, count_bits, base_conversion)}
_TRIES = 1 << 15


class Problems(Sequence):
    """Random access to `size` worked problems; item i is a pure function of (seed, i).

    Args:
        size: how many.
        seed: another seed, other problems.
        steps: least and most thoughts of a problem, the answer aside.
        held_out: True for problems that no training stream contains, False for the training stream.
        shift: most that running numbers may be moved up (training only: teaches high step numbers).
        families: names from FAMILIES, in turn.
    """

    def __init__(self, size, seed=0, steps=(6, 12), held_out=False, shift=0, families=tuple(FAMILIES)):
        import reasoning_gym

        self._size, self._seed, self._steps, self._held_out, self._shift = size, seed, steps, held_out, shift
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
            first = 1 + (draw.randrange(self._shift + 1) if self._shift and draw.random() < 0.5 else 0)
            item = self._datasets[name][draw.getrandbits(60)]
            worked = FAMILIES[name].work(item, self._steps, first)
            if worked is not None and worked.held_out == self._held_out:
                return worked
        raise RuntimeError(f"no {name} problem of {self._steps} steps in {_TRIES} tries")
