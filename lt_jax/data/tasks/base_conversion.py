"""reasoning-gym `base_conversion` to binary: halve, and carry the digits found so far along to the end.

The remainder of the very first step is the last digit of the answer: a thought that is put away must hand it on.
The number is asked for in decimal, whatever base reasoning-gym wrote it in; the answer is reasoning-gym's own.
"""

from __future__ import annotations

from lt_jax.data.tasks import columns
from lt_jax.data.tasks.worked import Worked, boxed

SOURCE = "base_conversion"
PLACES = 14  # binary digits of the largest four-digit number


def settings(steps: tuple[int, int]) -> dict:
    return {"min_base": 2, "max_base": 5, "min_value": 2 ** (steps[0] - 1), "max_value": min(2 ** steps[1], 9999)}


def work(item: dict, steps: tuple[int, int], first: int = 1) -> Worked | None:
    """The worked problem, or None for any other target than base 2."""
    if item["metadata"]["target_base"] != 2:
        return None
    n = item["metadata"]["decimal_value"]
    question = f"Binary {first}){columns.fixed(n)}"
    thoughts, found = [], "." * PLACES
    while n:
        found = str(n % 2) + found[:-1]
        thoughts.append(f"{first + len(thoughts)}){columns.divide(n, 2)} {found}")
        n //= 2
    return Worked(SOURCE, question, (*thoughts, boxed(item["answer"])), item["answer"])
