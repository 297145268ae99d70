"""Agents: questions are worked on with tools, side by side.

    problems ─ prompt ─ Trajectories (many rows, tools in threads) ─ Log with `correct`

A round is one call of a tool with all that was done since the call before it (commits, expands, folds). An agent
without memory actions is the same with a model that never commits; under `Limits.context` it ends as "context".

What differs from the paper: its judge is not public, and is a language model for open answers, perhaps. Here an answer
is compared as in an evaluation (`data.answers.right`: numbers, words, mathematics); one in other words is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from lt_jax.data.problem import Problem
from lt_jax.memory.log import Log, LoggedTurn, log_of
from lt_jax.memory.tools import described
from lt_jax.memory.trajectories import Tool, Trajectories


def instructions(tools: Mapping[str, Tool], memory: bool = True) -> str:
    """What an agent is told in its system prompt, for models that were not trained for one task alone."""
    actions = [
        "<call>tool: argument</call> asks a tool; its answer is shown as an entity with a number.",
        "<final_answer>answer</final_answer> ends the work.",
    ]
    if memory:
        actions[1:1] = [
            "<commit>summary</commit> archives all since the last commit, observations too; the summary stays, so put "
            "into it what will be needed, and the numbers of what may have to be read again.",
            "<expand>3</expand> shows archived entity 3 in full again; <fold>3</fold> archives it again.",
        ]
    return "\n".join(["Answer the question with the tools. Every turn is a thought and then one action:", *actions,
                      "The tools:", described(tools)])  # fmt: skip


def play(
    runner: Trajectories, problems: Mapping[int, Problem], prompt: Callable[[Problem], Sequence[int]], seed: int = 0
) -> Iterator[tuple[int, Log]]:
    """Works on questions side by side; yields the number and the log of each as it ends.

    Args:
        problems: by their numbers.
        prompt: the ids of a question.
        seed: of sampling; question number i has seed + i.
    """
    asked = ((number, prompt(problem), seed + number) for number, problem in problems.items())
    for trajectory in runner.run(asked):
        yield trajectory.id, log_of(trajectory, runner.syntax, problems[trajectory.id])


def rounds(log: Log) -> list[list[LoggedTurn]]:
    """The turns by round; what follows the last call is a round too."""
    found, turns = [], []
    for turn in log.turns:
        turns.append(turn)
        if turn.action == "call" and not turn.why:
            found.append(turns)
            turns = []
    return [*found, turns] if turns else found
