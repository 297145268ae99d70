"""reasoning-gym `leg_counting`: the legs of a list of animals, one thought an animal."""

from __future__ import annotations

from lt_jax.data.tasks import columns
from lt_jax.data.tasks.worked import Worked, boxed

SOURCE = "leg_counting"


def settings(steps: tuple[int, int]) -> dict:
    return {"min_animals": steps[0], "max_animals": steps[1], "min_instances": 1, "max_instances": 9}


def work(item: dict, first: int = 1) -> Worked | None:
    """The worked trace, or None where an animal has more than nine legs."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    animals = item["metadata"]["animals"]
    if any(ANIMALS[name] > 9 for name in animals):
        return None
    question = "Legs " + " ".join(f"{i}){count} {name}" for i, (name, count) in enumerate(animals.items(), first))
    thoughts, total = [], 0
    for i, (name, count) in enumerate(animals.items(), first):
        legs = ANIMALS[name] * count
        thoughts.append(f"{i}){count} {name}*{ANIMALS[name]}={legs:02d} " + columns.add(total, legs))
        total += legs
    return Worked(SOURCE, question, (*thoughts, boxed(total)), item["answer"])
