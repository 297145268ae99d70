"""reasoning-gym `count_bits`: halve until nothing is left and count the odd remainders, one thought a halving."""

from __future__ import annotations

from lt_jax.data.tasks.columns import LIMIT, divide, slim, wide
from lt_jax.data.tasks.worked import Worked, boxed

SOURCE = "count_bits"


def settings(steps: tuple[int, int]) -> dict:
    return {"min_n": 2 ** (steps[0] - 1), "max_n": min(2 ** steps[1], LIMIT) - 1}


def work(item: dict, steps: tuple[int, int]) -> Worked | None:
    """The worked problem."""
    n = item["metadata"]["number"]
    question = f"Bits {wide(n)} {slim(2)}"
    thoughts, count = [], 0
    while n:
        before = f"{wide(n)}/{slim(2)} {count:02d} {divide(n, 2)}"
        count, n = count + n % 2, n // 2
        thoughts.append(f"{before} {count:02d} {wide(n)} {slim(2)}")
    return Worked(SOURCE, question, (*thoughts, boxed(count)), item["answer"])
