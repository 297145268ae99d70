"""reasoning-gym `simple_equations` of the form a x + b = c: take a away until nothing is left, and count."""

from __future__ import annotations

import re

from lt_jax.data.tasks.columns import slim, subtract, wide
from lt_jax.data.tasks.worked import Worked, boxed

SOURCE = "simple_equations"


def settings(steps: tuple[int, int]) -> dict:
    largest = max(40, steps[1])  # far more equations than solutions of `steps` steps need, so that none comes often
    return {"min_terms": 2, "max_terms": 2, "min_value": 2, "max_value": largest, "operators_weights": (1.0, 0.0, 0.0)}


def work(item: dict, steps: tuple[int, int]) -> Worked | None:
    """The worked problem, or None where the equation has another form or a solution outside `steps`."""
    form = re.fullmatch(r"(\d+)\*[a-z] \+ (\d+) = (\d+)", item["metadata"]["equation"])
    if form is None or not steps[0] <= int(item["answer"]) <= steps[1]:
        return None
    a, b, c = map(int, form.groups())
    question = f"Solve {wide(c)}-{slim(b)} {slim(a)}"
    left = c - b
    thoughts = [f"{wide(c)}-{slim(b)} {subtract(c, b)} 00 {wide(left)} {slim(a)}"]
    while left:
        before = f"{wide(left)}-{slim(a)} {len(thoughts) - 1:02d} {subtract(left, a)}"
        left -= a
        thoughts.append(f"{before} {len(thoughts):02d} {wide(left)} {slim(a)}")
    return Worked(SOURCE, question, (*thoughts, boxed(item["answer"])), item["answer"])
