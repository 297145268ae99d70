"""reasoning-gym `chain_sum`: add and subtract a list of numbers, one thought a number."""

from __future__ import annotations

import re
from itertools import accumulate

from lt_jax.data.tasks import columns
from lt_jax.data.tasks.worked import Worked, boxed

SOURCE = "chain_sum"


def settings(steps: tuple[int, int]) -> dict:
    return {"min_terms": steps[0], "max_terms": steps[1], "min_digits": 1, "max_digits": 3}


def work(item: dict, first: int = 1) -> Worked | None:
    """The worked trace, or None where a partial sum leaves 0..9999."""
    terms = [int(t.replace(" ", "")) for t in re.findall(r"[+-]? ?\d+", item["metadata"]["expression"])]
    if not all(0 <= total < columns.LIMIT for total in accumulate(terms)):
        return None
    question = "Sum " + " ".join(f"{i}){t:+04d}" for i, t in enumerate(terms, first))
    thoughts, total = [], 0
    for i, term in enumerate(terms, first):
        work = columns.add(total, term) if term >= 0 else columns.subtract(total, -term)
        thoughts.append(f"{i}){term:+04d} {work}")
        total += term
    return Worked(SOURCE, question, (*thoughts, boxed(total)), item["answer"])
