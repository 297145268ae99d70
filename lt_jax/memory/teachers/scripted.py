"""A teacher that knows the solution: an expert, which makes a whole trajectory of a problem, said turn by turn.

What it says goes through the same environment as a model's turns, so what is written is what the environment made of
it: a log that an expert got wrong is found out here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from lt_jax.data.problem import Problem
from lt_jax.memory.environment import GOVERNOR, ROLES, SYNTAX
from lt_jax.memory.log import WITH_NUMBER, Log, LoggedTurn
from lt_jax.memory.teachers import Asked, Reply, Teacher, prompts

Expert = Callable[[Problem], Log]
KEPT = 256  # problems whose trajectories are at hand: more than are under way at once


def scripted(expert: Expert) -> Teacher:
    """The teacher that says an expert's turns.

    Args:
        expert: problem -> trajectory; called again for the same problem it gives the same. Observations are not said:
            the tools give them.
    """
    of = functools.lru_cache(KEPT)(expert)

    async def teacher(asked: Asked) -> Reply:
        turns = of(asked.problem).turns
        if asked.turn >= len(turns):
            return Reply("", "refused", why="the expert has no more turns")
        turn = turns[asked.turn]
        if asked.role == GOVERNOR and not turn.why and turn.action not in ROLES[GOVERNOR]:
            return Reply(prompts.NOTHING)
        return Reply(said(turn))

    return teacher


def said(turn: LoggedTurn) -> str:
    """A turn as it is written, with its marks."""
    if turn.why:  # its text has the marks
        return turn.text
    content = SYNTAX.ids(str(turn.number) if turn.action in WITH_NUMBER else turn.content)
    return SYNTAX.text((*SYNTAX.ids(turn.text), *SYNTAX.marked(turn.action, content)))
