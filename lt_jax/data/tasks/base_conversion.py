"""reasoning-gym `base_conversion` to binary: halve, then read the remainders of every step back.

The number is asked for in decimal, whatever base reasoning-gym wrote it in; the answer is reasoning-gym's own.

The last thoughts need a digit from each earlier thought: what LightThinker must have kept in its gists.
"""

from __future__ import annotations

from lt_jax.data.tasks import columns
from lt_jax.data.tasks.worked import Worked, boxed

SOURCE = "base_conversion"


def settings(steps: tuple[int, int]) -> dict:
    return {"min_base": 2, "max_base": 5, "min_value": 2 ** (steps[0] - 1), "max_value": min(2 ** steps[1], 9999)}


def work(item: dict, first: int = 1) -> Worked | None:
    """The worked trace, or None for any other target than base 2."""
    if item["metadata"]["target_base"] != 2:
        return None
    n = item["metadata"]["decimal_value"]
    question = f"Binary {first}){columns.fixed(n)}"
    thoughts, bits = [], []
    while n:
        number = first + len(thoughts)
        thoughts.append(f"{number}){columns.halve(n)} {number}){n % 2}")
        bits.append(n % 2)
        n //= 2
    recalled = " ".join(f"{i}){bit}" for i, bit in reversed(list(enumerate(bits, first))))
    return Worked(SOURCE, question, (*thoughts, recalled, boxed(item["answer"])), item["answer"])
