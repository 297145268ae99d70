"""reasoning-gym `gcd`: Euclid by subtraction, one thought a subtraction."""

from __future__ import annotations

from lt_jax.data.tasks import columns
from lt_jax.data.tasks.trace import Trace, boxed

SOURCE = "gcd"


def settings(steps: tuple[int, int]) -> dict:
    return {"min_numbers": 2, "max_numbers": 2, "min_value": 10, "max_value": 999, "_steps": steps}


def trace(item: dict, first: int = 1, steps: tuple[int, int] = (1, 99)) -> Trace | None:
    """The worked trace, or None where Euclid needs fewer or more subtractions than `steps` allows."""
    high, low = sorted(item["metadata"]["numbers"], reverse=True)
    question = f"Gcd {first})" + " ".join(columns.fixed(n) for n in item["metadata"]["numbers"])
    thoughts = []
    while high != low and len(thoughts) <= steps[1]:
        difference = high - low
        text = f"{first + len(thoughts)})" + columns.subtract(high, low)
        high, low = max(difference, low), min(difference, low)
        thoughts.append(f"{text} {columns.fixed(high)},{columns.fixed(low)}")
    if not steps[0] <= len(thoughts) <= steps[1]:
        return None
    return Trace(SOURCE, question, (*thoughts, boxed(high)), item["answer"])
