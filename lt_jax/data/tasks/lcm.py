"""reasoning-gym `lcm` of a number and a digit: how many multiples it takes, then the multiples.

The first thought finds how many, and the last one needs it: a thought that is put away must hand it on. The notes: how
many so far, of how many.
"""

from __future__ import annotations

import math

from lt_jax.data.tasks.columns import add, divide, slim, wide
from lt_jax.data.tasks.worked import Worked, boxed

SOURCE = "lcm"


def settings(steps: tuple[int, int]) -> dict:
    return {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 999}


def work(item: dict, steps: tuple[int, int]) -> Worked | None:
    """The worked problem, or None where neither number is a digit or the multiples are too few or too many."""
    low, high = sorted(item["metadata"]["numbers"])
    times = low // math.gcd(low, high)
    if low > 9 or not steps[0] <= times <= steps[1]:
        return None
    question = f"Lcm {wide(high)} {slim(low)}"
    thoughts = [f"{wide(high)}/{slim(low)} {divide(high, low)} {high % low}/{low} 0{times} 0000 {slim(high)}"]
    total = 0
    for k in range(times):
        before = f"{wide(total)}+{slim(high)} {k}{times} {add(total, high)}"
        total += high
        thoughts.append(f"{before} {k + 1}{times} {wide(total)} {slim(high)}")
    return Worked(SOURCE, question, (*thoughts, boxed(total)), item["answer"])
