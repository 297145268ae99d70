"""What a trajectory costs in either semantics, counted from its row without a model: for those that no engine wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lt_jax.errors import UserError
from lt_jax.memory.log import Log, turns_of
from lt_jax.memory.rows import ROWS
from lt_jax.memory.syntax import Syntax


def counted(log: Log, syntax: Syntax, prompt: Sequence[int], semantics: str) -> Log:
    """The log with the counts of its turns, as an engine would have them that keeps every row while tools answer; peak
    and dependency are in its `extra`, as `log.log_of` puts them there.

    An engine feeds one token more where a turn goes on from nothing new: the last that was written (a `fold` in
    `lifetimes`).

    Args:
        prompt: ids of the question.
        semantics: a key of `rows.ROWS`.

    Raises:
        UserError: a turn without a `why` is not possible.
    """
    row, turns, written = ROWS[semantics](syntax, prompt), [], 0
    for number, ((turn, observation), logged) in enumerate(zip(turns_of(log, syntax), log.turns, strict=True), 1):
        context = row.visible
        read = len(row.writer) - written
        again = read - min(row.fresh, read)
        size = len(turn.text) + len(turn.marked)
        written = len(row.writer) + size
        turns.append(dataclasses.replace(logged, context=context, written=size, read=read, again=again))
        why = row.turn(turn, observation)
        if why and not logged.why:
            raise UserError(f"trajectory {log.id}, turn {number}: {why}")
    cost = {
        "peak": max((turn.context + turn.written for turn in turns), default=0),
        "dependency": sum(turn.written * turn.context + turn.written * (turn.written + 1) // 2 for turn in turns),
    }
    return dataclasses.replace(log, turns=tuple(turns), extra={**log.extra, **cost})


def pass_tokens(log: Log, syntax: Syntax, prompt: Sequence[int]) -> dict[str, int]:
    """Tokens that a training pass needs for a trajectory: with every turn as a row of its own behind its context (the
    paper's), as one row with shared prefixes, and as one under lifetimes. Arguments as of `counted`."""
    rows = {name: kind(syntax, prompt) for name, kind in ROWS.items()}
    separate = 0
    for turn, observation in turns_of(log, syntax):
        separate += len(rows["rebuild"].prompt()) + len(turn.text) + len(turn.marked)
        for row in rows.values():
            row.turn(turn, observation)
    tokens = {name: len(row.row()) for name, row in rows.items()}
    return {"separate rows": separate, "shared prefixes": tokens["rebuild"], "lifetimes": tokens["lifetimes"]}
