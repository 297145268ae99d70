"""reasoning-gym `base_conversion`, decimal to binary: halve, then read the remainders of every step back.

The last thoughts need a digit from each earlier thought: what LightThinker must have kept in its gists.
"""

from __future__ import annotations

from lt_jax.data.tasks import columns
from lt_jax.data.tasks.trace import Trace, boxed

SOURCE = "base_conversion"


def settings(steps: tuple[int, int]) -> dict:
    # Bases 2 and 10 alone: reasoning-gym draws two different ones of a range, so the range is cut to these below.
    return {"min_base": 2, "max_base": 10, "min_value": 2 ** (steps[0] - 1), "max_value": min(2 ** steps[1], 9999)}


def trace(item: dict, first: int = 1) -> Trace | None:
    """The worked trace, or None for any other pair of bases than 10 to 2."""
    if (item["metadata"]["source_base"], item["metadata"]["target_base"]) != (10, 2):
        return None
    n = item["metadata"]["decimal_value"]
    question = f"Binary {first}){columns.fixed(n)}"
    thoughts, bits = [], []
    while n:
        thoughts.append(f"{first + len(thoughts)}){columns.halve(n)}")
        bits.append(n % 2)
        n //= 2
    recalled = " ".join(f"{i}){bit}" for i, bit in reversed(list(enumerate(bits, first))))
    return Trace(SOURCE, question, (*thoughts, recalled, boxed(item["answer"])), item["answer"])
