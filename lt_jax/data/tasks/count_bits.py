"""reasoning-gym `count_bits`: halve until nothing is left and count the odd remainders, one thought a halving."""

from __future__ import annotations

from lt_jax.data.tasks import columns
from lt_jax.data.tasks.worked import Worked, boxed

SOURCE = "count_bits"


def settings(steps: tuple[int, int]) -> dict:
    return {"min_n": 2 ** (steps[0] - 1), "max_n": min(2 ** steps[1], columns.LIMIT) - 1}


def work(item: dict, steps: tuple[int, int], first: int = 1) -> Worked | None:
    """The worked problem."""
    n = item["metadata"]["number"]
    question = f"Bits {first}){columns.fixed(n)}"
    thoughts, count = [], 0
    while n:
        text = f"{first + len(thoughts)}){columns.divide(n, 2)},{n % 2}"
        thoughts.append(f"{text} {count:02d}+{n % 2}={count + n % 2:02d}")
        count, n = count + n % 2, n // 2
    return Worked(SOURCE, question, (*thoughts, boxed(count)), item["answer"])
