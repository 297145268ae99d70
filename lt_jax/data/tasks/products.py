"""reasoning-gym `products`: multiply a list of digits, one thought a factor."""

from __future__ import annotations

from lt_jax.data.tasks import columns
from lt_jax.data.tasks.worked import Worked, boxed

SOURCE = "products"


def settings(steps: tuple[int, int]) -> dict:
    return {"min_terms": steps[0], "max_terms": steps[1], "min_digits": 1, "max_digits": 1}


def work(item: dict, first: int = 1) -> Worked | None:
    """The worked trace, or None where the product needs more than four digits or is zero."""
    factors = [int(f) for f in item["metadata"]["expression"].split(" * ")]
    if not 0 < int(item["answer"]) < columns.LIMIT:
        return None
    question = "Product " + " ".join(f"{i})*{f}" for i, f in enumerate(factors, first))
    thoughts, total = [], 1
    for i, factor in enumerate(factors, first):
        thoughts.append(f"{i})*{factor} {columns.times_digit(total, factor)}")
        total *= factor
    return Worked(SOURCE, question, (*thoughts, boxed(total)), item["answer"])
