"""The scripted expert of the embedded world: solves its questions through the tools, as a trajectory to learn from.

With a memory it commits every few rounds. The summary says which entity is the page of which stop, and where the trail
goes on:

    417:7 561:8 338:10 next 620        names of three digits
    7t 8m 10z next k                   names of a letter

When something early is asked for, it writes down which entity that stop has, as the summary says it, expands it, writes
down what it needs, and folds it. Without a memory (vanilla) it only calls and answers. In both forms it uses nothing
but what it then sees: an archived page is read after an expand only, and its number is the one that a summary has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lt_jax.data.problem import Problem
from lt_jax.memory import machine
from lt_jax.memory.log import Log, LoggedTurn
from lt_jax.memory.machine import STEP, Call, Commit, Entity, Expand, FinalAnswer, Fold, Memory
from lt_jax.memory.multihop import END, FOOD, FRIEND, HOME, NEXT, START
from lt_jax.memory.trajectories import Tool

_LIKE = {kind: re.compile(rf"\b{kind}(\w+)") for kind in (FOOD, HOME, FRIEND)}
_LAST = re.compile(rf"(?:{NEXT}|{END}) ([\w ]+)$")
_RESULT = re.compile(r"^\d+\. (\w+): (.*)$", re.M)


def listed(name: str, number: int) -> str:
    """How a summary says which entity is the page of a name. A letter has the number before it, where a small model
    finds it by the letter itself (`multihop_look_ups`)."""
    return f"{name}:{number}" if name.isdigit() else f"{number}{name}"


def noted(name: str, number: int) -> str:
    """How the expert writes down what it found in a summary, before an expand: the name, and then the number."""
    return f"{name}:{number}" if name.isdigit() else f"{name}{number}"


def solved(problem: Problem, tools: Mapping[str, Tool], memory: bool = True, every: int = 4) -> Log:
    """The trajectory of one question of `multihop.world`.

    Args:
        tools: `search` and `visit` over the world's corpus.
        memory: whether it commits, expands and folds; without, every observation stays.
        every: calls before a commit.
    """
    expert = _Expert(tools, every if memory else 0)
    page = problem.question.removeprefix(f"{START} ")
    for _ in range(problem.metadata["hops"]):
        text = expert.call("visit", page)
        last = _LAST.search(text)[1]
        if f"{END} {last}" in text:
            break
        page = expert.onward(last)
    found = [expert.recall(each[0], each[1:]) for each in last.split()]
    expert.turn(FinalAnswer(" ".join(found)))
    metadata = dict(problem.metadata or {})
    return Log(metadata.pop("id", ""), problem.question, tuple(expert.turns), gold=problem.answer,
               correct=" ".join(found) == problem.answer, extra=metadata)  # fmt: skip


class _Expert:
    def __init__(self, tools: Mapping[str, Tool], every: int):
        self.tools, self.every = tools, every
        self.memory: Memory[str] = Memory()
        self.turns: list[LoggedTurn] = []
        self.calls = 0  # since the last commit
        self.visited: dict[str, int] = {}  # the stops of the open step, with the entities of their pages
        self.note = ""  # the text of the next turn

    def turn(self, action) -> None:
        text, self.note = self.note, ""
        self.memory = machine.apply(machine.write(self.memory, text), action)
        said = {Commit: "summary", Call: "call", FinalAnswer: "answer"}.get(type(action))
        content = getattr(action, said) if said else ""
        self.turns.append(LoggedTurn(text, machine.NAMES[type(action)], content, getattr(action, "number", 0),
                                     getattr(action, "observation", "")))  # fmt: skip

    def call(self, name: str, argument: str) -> str:
        observation = self.tools[name](argument)
        self.turn(Call(f"{name}: {argument}", observation))
        self.calls += 1
        if name == "visit":
            self.visited[argument] = len(self.memory.entities)
        return observation

    def onward(self, last: str) -> str:
        """The next stop, by what a page says of it."""
        if last.startswith(FRIEND):
            last = self.recall(FRIEND, last.removeprefix(FRIEND))
        if self.every and self.calls >= self.every:
            self.turn(Commit(" ".join([*(listed(*each) for each in self.visited.items()), NEXT, last])))
            self.calls, self.visited = 0, {}
        if not last.startswith(FOOD):
            return last
        results = _RESULT.findall(self.call("search", last))
        return next(title for title, text in results if text.startswith(_wanted(title, last)))

    def recall(self, kind: str, name: str) -> str:
        """What the page of an early stop says; it is shown again for as long as it takes to write that down."""
        archived = name not in self.visited
        number = self.told(name) if archived else self.visited[name]
        if archived:
            self.note = f"{self.note} {noted(name, number)}".strip()
            self.turn(Expand(number))
        found = _LIKE[kind].search(self.memory.entity(number).shown)[1]
        self.note = f"{self.note} {name} {kind}{found}".strip()
        if archived:
            self.turn(Fold(number))
        return found

    def told(self, name: str) -> int:
        """The entity that a summary names for a stop."""
        said = re.compile(rf"\b{name}:(\d+)\b" if name.isdigit() else rf"\b(\d+){name}\b")
        steps = (each.shown for each in self.memory.visible() if isinstance(each, Entity) and each.kind == STEP)
        return next(int(found[1]) for found in map(said.search, steps) if found)


def _wanted(title: str, likes: str) -> str:
    """How the page begins that has that food and home."""
    return " ".join(f"{title} {each}" for each in likes.split())
