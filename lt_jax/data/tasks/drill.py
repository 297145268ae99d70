"""An exercise, not a problem: look up the numbered things of a list, in any order.

Finding "what stands behind 7)" is the one skill of the worked problems that a small model learns late, because only a
few tokens of a solution ask for it. In a drill nearly every token does.
"""

from __future__ import annotations

import random

from lt_jax.data.tasks.worked import Worked


def work(draw: random.Random, steps: tuple[int, int], shift: int) -> Worked:
    """A list of things as they stand in the other questions, and all of them again in another order.

    Args:
        draw: the only source of chance.
        steps: least and most things. shift: most that numbers may be moved up.
    """
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    kinds = (
        lambda: f"{draw.randint(-999, 999):+04d}",
        lambda: f"*{draw.randint(1, 9)}",
        lambda: f"{draw.randint(1, 9)} {draw.choice(list(ANIMALS))}",
        lambda: str(draw.randint(0, 1)),
    )
    kind, first = draw.choice(kinds), 1 + draw.randint(0, shift)
    things = [f"{i}){kind()}" for i in range(first, first + draw.randint(*steps))]
    question = "List " + " ".join(things)
    draw.shuffle(things)
    return Worked("drill", question, (" ".join(things),), "")
