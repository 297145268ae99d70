"""reasoning-gym `simple_equations` of the form a x + b = c: take a away until nothing is left, and count."""

from __future__ import annotations

import re

from lt_jax.data.tasks import columns
from lt_jax.data.tasks.worked import Worked, boxed

SOURCE = "simple_equations"


def settings(steps: tuple[int, int]) -> dict:
    largest = max(40, steps[1])  # far more equations than solutions of `steps` steps need, so that none comes often
    return {"min_terms": 2, "max_terms": 2, "min_value": 2, "max_value": largest, "operators_weights": (1.0, 0.0, 0.0)}


def work(item: dict, steps: tuple[int, int], first: int = 1) -> Worked | None:
    """The worked problem, or None where the equation has another form or a solution outside `steps`."""
    form = re.fullmatch(r"(\d+)\*[a-z] \+ (\d+) = (\d+)", item["metadata"]["equation"])
    if form is None or not steps[0] <= int(item["answer"]) <= steps[1]:
        return None
    a, b, c = map(int, form.groups())
    question = f"Solve {columns.fixed(c)}={columns.fixed(b)}+{columns.fixed(a)}*x"
    thoughts, left = [f"0){columns.subtract(c, b)} {columns.fixed(a)}"], c - b
    while left:
        thoughts.append(f"{len(thoughts)}){columns.subtract(left, a)} {columns.fixed(a)}")
        left -= a
    return Worked(SOURCE, question, (*thoughts, boxed(item["answer"])), item["answer"])
