"""reasoning-gym `gcd`: Euclid by subtraction, one thought a subtraction, with the difference and the rest in order."""

from __future__ import annotations

from lt_jax.data.tasks.columns import compare, slim, subtract, wide
from lt_jax.data.tasks.worked import Worked, boxed

SOURCE = "gcd"


def settings(steps: tuple[int, int]) -> dict:
    return {"min_numbers": 2, "max_numbers": 2, "min_value": 10, "max_value": 999}


def work(item: dict, steps: tuple[int, int]) -> Worked | None:
    """The worked problem, or None where Euclid needs fewer or more subtractions than `steps` allows."""
    high, low = sorted(item["metadata"]["numbers"], reverse=True)
    if not steps[0] <= subtractions(high, low) <= steps[1]:
        return None
    question = f"Gcd {wide(high)} {slim(low)}"
    thoughts = []
    while high != low:
        difference = high - low
        text = f"{wide(high)}-{slim(low)} {subtract(high, low)} ={wide(difference)} {compare(difference, low)}"
        high, low = max(difference, low), min(difference, low)
        thoughts.append(f"{text} {wide(high)} {slim(low)}")
    return Worked(SOURCE, question, (*thoughts, boxed(high)), item["answer"])


def subtractions(high: int, low: int) -> int:
    """How many subtractions Euclid needs until both numbers are equal: the sum of the quotients, less one."""
    total = -1
    while low:
        total, high, low = total + high // low, low, high % low
    return total
