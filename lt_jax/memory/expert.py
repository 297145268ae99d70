"""A scripted expert for the embedded problems: their solutions as trajectories that manage a memory.

    throughput    a commit after every step: the entity of a step has the step's number
    budget        a commit after so many steps that a unit in full, another one shown in full, and all summaries fit
                  into the budget. Where it looks back often it may expand more often than it commits, which the
                  paper's rule against jitter would drop
    no edits      no expand and no fold: the detail that a look-back needs is written down without being seen. A model
                  that is taught so can only guess it, or find it in what the summaries' keys have kept of it

The last unit is not committed: it ends with the answer. Before a look-back the entity that has the detail is shown in
full, the detail is copied, and the entity is put away again at once. A detail that is still in full, because its step
is part of the open unit, is not asked for.
"""

from __future__ import annotations

from lt_jax.memory.log import Log, LoggedTurn
from lt_jax.memory.modes import mode
from lt_jax.memory.tasks import FAMILY, Lookback

# Tokens: of a summary with its marks and number; of the cue, the chat template and an edit's marks together. Steps are
# ASCII, of which no tokenizer makes more tokens than characters.
SUMMARY, AROUND = 10, 40


def expert(problem: Lookback, id: str, mode_name: str = "throughput", budget: int = 0, edits: bool = True) -> Log:
    """The problem's solution as a trajectory.

    Args:
        id: of the trajectory.
        mode_name: a key of `modes.MODES`.
        budget: tokens of context, for a mode that spends it.
        edits: whether entities are expanded and folded.
    """
    unit = steps_of_a_unit(problem, budget) if mode(mode_name).spends else 1
    turns: list[LoggedTurn] = []
    text, committed = "", 0
    for step in problem.steps:
        text += "\n" * bool(text) + step.head
        if step.back:
            entity = (step.back - 1) // unit + 1
            if edits and step.back <= committed:
                turns.append(LoggedTurn(text, "expand", number=entity))
                turns.append(LoggedTurn(step.recall, "fold", number=entity))
                text = "\n"
            else:
                text += f"\n{step.recall}\n"
        text += step.sums
        if step.number % unit == 0 and step is not problem.steps[-1]:
            turns.append(LoggedTurn(text, "commit", step.total))
            text, committed = "", step.number
    turns.append(LoggedTurn(text, "final_answer", problem.answer))
    extra = {"mode": mode_name, "family": FAMILY, "looks": problem.looks, "edits": edits}
    return Log(id, problem.question, tuple(turns), gold=problem.answer, correct=True, extra=extra)


def steps_of_a_unit(problem: Lookback, budget: int) -> int:
    """How many steps a unit may have in a budget of that many tokens: at least one, however small the budget is, and
    at most half of all, so that something is committed."""
    longest = max(len(step.text) for step in problem.steps) + 1
    fixed = AROUND + len(problem.question) + SUMMARY * len(problem.steps)
    return max(1, min((budget - fixed) // (2 * longest), len(problem.steps) // 2))
