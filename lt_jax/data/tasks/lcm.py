"""reasoning-gym `lcm` of a number and a digit: go through the multiples of the number, with their remainders."""

from __future__ import annotations

import math

from lt_jax.data.tasks import columns
from lt_jax.data.tasks.worked import Worked, boxed

SOURCE = "lcm"


def settings(steps: tuple[int, int]) -> dict:
    return {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 999}


def work(item: dict, steps: tuple[int, int], first: int = 1) -> Worked | None:
    """The worked problem, or None where neither number is a digit or the multiples are too few or too many.

    A digit allows nine multiples at most, so `steps` may not ask for more than six at least.
    """
    low, high = sorted(item["metadata"]["numbers"])
    times = low // math.gcd(low, high)
    if low > 9 or not min(steps[0], 6) <= times <= steps[1]:
        return None
    question = f"Lcm {columns.fixed(high)} {low}"
    step = high % low
    thoughts, total, rest = [f"0){columns.divide(high, low)} 0,{step},{low}"], 0, 0
    for number in range(1, times + 1):
        text = f"{number}){columns.add(total, high)}"
        total, sum_ = total + high, rest + step
        rest = sum_ % low
        thoughts.append(f"{text} {sum_:02d}/{low} {rest},{step},{low}")
    return Worked(SOURCE, question, (*thoughts, boxed(total)), item["answer"])
