"""reasoning-gym `products` of two numbers of two digits: add up the tens of the second number, then its units."""

from __future__ import annotations

from lt_jax.data.tasks.columns import add, slim, wide
from lt_jax.data.tasks.worked import Worked, boxed

SOURCE = "products"


def settings(steps: tuple[int, int]) -> dict:
    return {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}


def work(item: dict, steps: tuple[int, int]) -> Worked | None:
    """The worked problem, or None where the digits of the second factor add up to more or fewer than `steps` allows.

    The notes count down: how many tens and how many units are still to be added.
    """
    number, times = map(int, item["metadata"]["expression"].split("*"))
    if not steps[0] <= sum(divmod(times, 10)) <= steps[1]:
        return None
    question = f"Mul {wide(times)} {slim(number)}"
    thoughts, total, left = [], 0, times
    summand = lambda: number * 10 if left >= 10 else number
    while left:
        before = f"{wide(total)}+{slim(summand())} {left:02d} {add(total, summand())}"
        total, left = total + summand(), left - (10 if left >= 10 else 1)
        thoughts.append(f"{before} {left:02d} {wide(total)} {slim(summand())}")
    return Worked(SOURCE, question, (*thoughts, boxed(total)), item["answer"])
