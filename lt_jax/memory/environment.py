"""The environment in which a teacher works: it sees what the memory shows and nothing else.

    question + visible memory + state ─ teacher ─ a turn as text ─ syntax ─ action ─ machine ─┐
                  ▲                                                        tools, in threads ◄┤
                  └───────────────────────────────────────────────────────────────────────────┘

Every turn is asked for anew, with the context rebuilt: after a commit the step's text is in no message any more. A turn
that is not possible stays in the open step with the complaint, as it does for a model (`trajectories`), and is counted.

Of agents the memory has a keeper of its own: the actor thinks and calls tools, and after each of its turns the governor
commits, expands, folds, or leaves the memory as it is. Both write into one trajectory.

What differs from the paper: its prompts and its action syntax are not public, so ours are used. Blanks at the end of a
reply are no part of the turn. A thought of the governor's is kept as part of the trajectory.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping

from lt_jax.data import answers
from lt_jax.data.problem import Problem
from lt_jax.decode.request import sample_seed
from lt_jax.memory.log import WITH_NUMBER, Log, LoggedTurn
from lt_jax.memory.machine import NAMES, POSSIBLE, Call, Memory, ranges
from lt_jax.memory.rows import taken_in, written_in
from lt_jax.memory.syntax import Ids, Malformed, Turn, spelt
from lt_jax.memory.teachers import Asked, Reply, Teacher, prompts
from lt_jax.memory.trajectories import MALFORMED, Limits, Tool, called

SOLVER, ACTOR, GOVERNOR = "solver", "actor", "governor"
ROLES = {
    SOLVER: ("commit", "expand", "fold", "final_answer"),
    ACTOR: ("call", "final_answer"),
    GOVERNOR: ("commit", "expand", "fold"),
}
SAID = {SOLVER: prompts.SOLVER, ACTOR: prompts.ACTOR, GOVERNOR: prompts.GOVERNOR}
EDITS = 4  # turns of the governor's after one of the actor's
SYNTAX = spelt()


@dataclasses.dataclass(frozen=True)
class Work:
    """How problems are worked on.

    Attributes:
        limits: of a trajectory; `turn` and `tokens` in the teacher's tokens, `context` of a turn's messages.
            `semantics` and `sampling` say nothing here.
        tools: {name: function}, see `trajectories.Trajectories`. With any, the roles are actor and governor; without,
            there is one solver.
    """

    limits: Limits = Limits()
    tools: Mapping[str, Tool] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Desk:
    """A problem being worked on.

    Attributes:
        memory: its contents are the characters of texts, see `syntax.spelt`.
        turns: taken so far.
        wrong: turns that were not possible, since the last that was.
        read, written, cost, attempts: of all replies. left: how often the governor left the memory as it was.
        finish, why: one of `trajectories.FINISHES` when it has ended, and the reason of a refusal.
    """

    problem: Problem
    work: Work
    memory: Memory[Ids] = dataclasses.field(default_factory=Memory)
    turns: list[LoggedTurn] = dataclasses.field(default_factory=list)
    wrong: int = 0
    read: int = 0
    written: int = 0
    cost: float = 0.0
    attempts: int = 0
    left: int = 0
    finish: str = ""
    why: str = ""

    def messages(self, role: str) -> tuple[dict[str, str], ...]:
        """What a teacher sees in a role."""
        plain = lambda text: SYNTAX.text(SYNTAX.ids(text))  # a mark in a question is none
        tools = "\n".join(_described(name, tool) for name, tool in sorted(self.work.tools.items()))
        system = SAID[role].format(tools=tools)
        numbers = {name: ranges(each.number for each in self.memory.entities if each.active == active)
                   for name, active in (("archived", False), ("active", True))}  # fmt: skip
        said = {
            "question": plain(self.problem.text),
            "context": SYNTAX.text(SYNTAX.context(self.memory)) or prompts.EMPTY,
            "state": "; ".join(f"{name}: {those}" for name, those in numbers.items() if those) or "no entities",
            "legal": "; ".join(self.legal(role)),
            "role": prompts.SAID_LAST[role],
        }
        own = [plain(self.problem.system)] if self.problem.system else []
        texts = {"system": "\n\n".join([system, *own]), "user": prompts.QUESTION.format(**said)}
        return tuple({"role": role, "content": text} for role, text in texts.items())

    def legal(self, role: str) -> list[str]:
        """What a role can do now, in words."""
        named = [each for each in self.memory.legal if each.split(" ")[0] in ROLES[role]]
        return [*named, prompts.NOTHING] if role == GOVERNOR else named

    def read_turn(self, role: str, reply: Reply) -> Turn | None:
        """The turn of a reply; None of a governor that leaves the memory as it is."""
        text = reply.text.rstrip()
        if role == GOVERNOR and text.strip().strip(".").lower() == prompts.NOTHING:
            return None
        turn = SYNTAX.read(SYNTAX.tokenize(text), ended=reply.finish != "length")
        name = NAMES.get(type(turn.action))
        if name is not None and name not in ROLES[role]:
            return Turn(turn.text + turn.marked, Malformed(self.complaint(role, f"{name} cannot be done here")))
        return turn

    def complaint(self, role: str, why: str) -> str:
        """What was wrong, with what the role could have done: of the machine's actions not all are everybody's."""
        return f"{why}{POSSIBLE}{'; '.join(self.legal(role))}"

    def take(self, role: str, turn: Turn, observation: str, reply: Reply) -> None:
        """Takes a turn into the memory, and says in `finish` if it was the last."""
        ids = SYNTAX.ids(observation)
        taken = taken_in(SYNTAX, self.memory, turn, ids)
        why = "" if isinstance(taken, Memory) else taken
        if POSSIBLE in why and not isinstance(turn.action, Malformed):
            why = self.complaint(role, why.partition(POSSIBLE)[0])
        self.memory = written_in(self.memory, turn, SYNTAX.complaint(why)) if why else taken
        self.turns.append(_logged(turn, SYNTAX.text(ids), why, reply))
        self.wrong = self.wrong + 1 if why else 0
        if self.memory.answer is not None:
            self.finish = "answered"
        elif self.wrong >= self.work.limits.malformed:
            self.finish = "malformed"
        elif len(self.turns) >= self.work.limits.turns:
            self.finish = "turns"

    def count(self, reply: Reply) -> None:
        """Counts a reply, and says in `finish` if nothing can follow it."""
        self.read += reply.read
        self.written += reply.written
        self.cost += reply.cost
        self.attempts += reply.attempts
        limits = self.work.limits
        if reply.finish in ("context", "refused", "nan"):
            self.finish, self.why = reply.finish, reply.why
        elif limits.context is not None and reply.read > limits.context:
            self.finish = "context"

    def log(self, number: int) -> Log:
        """The trajectory; `extra` has the counts of it."""
        problem = self.problem
        log = Log(str(number), problem.text, tuple(self.turns), self.finish, problem.system, problem.answer)
        metadata = problem.metadata or {}
        extra = {
            "number": number, "family": problem.family,
            **({"difficulty": metadata["difficulty"]} if isinstance(metadata.get("difficulty"), str | int) else {}),
            "tokens": {"read": self.read, "written": self.written}, "cost": round(self.cost, 9),
            "replies": len(self.turns) + self.left, "attempts": self.attempts,
            **({"why": self.why} if self.why else {}),
        }  # fmt: skip
        return dataclasses.replace(log, correct=answers.right(problem, log.answer), extra=extra)


async def worked(problem: Problem, number: int, teacher: Teacher, work: Work, seed: int = 0) -> Log:
    """Lets a teacher work on one problem.

    Args:
        number: of the problem, the id of the trajectory.

    Raises:
        Unanswered: no reply came.
    """
    desk = Desk(problem, work)
    while not desk.finish:
        if not work.tools:
            await _turn(desk, SOLVER, teacher, seed)
        elif await _turn(desk, ACTOR, teacher, seed):
            for _ in range(EDITS):
                if desk.finish or not await _turn(desk, GOVERNOR, teacher, seed):
                    break
    return await asyncio.to_thread(desk.log, number)


async def _turn(desk: Desk, role: str, teacher: Teacher, seed: int) -> bool:
    """Asks for a turn and takes it in. Whether anything was done or tried: of the actor's, whether it was possible."""
    limits = desk.work.limits
    most = min(limits.turn, limits.tokens - desk.written)
    asked = Asked(
        desk.messages(role), desk.problem, len(desk.turns), role, most, sample_seed(seed, len(desk.turns) + desk.left)
    )
    reply = await teacher(asked)
    desk.count(reply)
    if desk.finish:
        return False
    turn = desk.read_turn(role, reply)
    if turn is None:
        desk.left += 1
    else:
        observation = ""
        if isinstance(turn.action, Call):
            ask = called(desk.work.tools, SYNTAX.text(turn.action.call))
            if isinstance(ask, Malformed):
                turn = Turn(turn.text + turn.marked, ask)
            else:
                observation = await asyncio.to_thread(ask)
        desk.take(role, turn, observation, reply)
    if not desk.finish and desk.written >= limits.tokens:
        desk.finish = "length"
    return turn is not None and not (role == ACTOR and desk.wrong)


def _described(name: str, tool: Tool) -> str:
    said = (tool.__doc__ or "").strip().splitlines()
    return f"{name}: {said[0]}" if said else name


def _logged(turn: Turn, observation: str, why: str, reply: Reply) -> LoggedTurn:
    action = turn.action
    name = MALFORMED if isinstance(action, Malformed) else NAMES[type(action)]
    counts = dict(context=reply.read, written=reply.written)
    if why:
        return LoggedTurn(SYNTAX.text(turn.text + turn.marked), name, why=why, **counts)
    numbered = name in WITH_NUMBER
    content = "" if numbered else SYNTAX.text(turn.marked[1:-1])
    return LoggedTurn(SYNTAX.text(turn.text), name, content, action.number if numbered else 0, observation, **counts)
