"""What each side of `benchmarks/rl_step.py` is given, and how it is told to make one step. Needs no package.

A side is a process, `python -m benchmarks.peers.NAME TASK`, that makes its model and its trainer and then waits. For
each line "go" it makes one step, and says as one line of JSON what came of it; at the end of its input it ends. So the
sides can take turns, and none computes while another is timed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version

RATE = 1e-5  # learning rate of every side


@dataclasses.dataclass(frozen=True)
class Task:
    """A rollout and its update.

    Attributes:
        model: the checkpoint folder. problems: a JSONL file of questions of `prompt` tokens each.
        scratch: a folder for whatever a side writes.
        prompts: problems of a rollout. group: responses to each. new: tokens of a response.
        threads: of every side.
        pieces: microbatches that the side's update is cut into; it divides `prompts`.
    """

    model: str
    problems: str
    scratch: str
    prompts: int
    group: int
    prompt: int
    new: int
    threads: int
    pieces: int = 1

    @property
    def responses(self) -> int:
        return self.prompts * self.group

    def questions(self) -> list[str]:
        """The texts of all problems."""
        with open(self.problems) as lines:
            return [json.loads(line)["question"] for line in lines]


def given() -> Task:
    """The task that this process was started with."""
    return Task(**json.loads(sys.argv[1]))


def score(problem, text: str) -> float:
    """The reward: the share of words with an even number. It costs little, and hardly any two responses get the
    same."""
    words = text.split()
    return sum(word[-1] in "02468" for word in words) / max(len(words), 1)


class Turns:
    """This process's end of the conversation. What its libraries print goes to stderr."""

    def __init__(self, *packages: str):
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._found = {"versions": {name: version(name) for name in packages}}
        self._begin: float | None = None

    def wait(self) -> None:
        """Ends the step that was under way, if there was one, says what came of it, and waits for the next. All work
        of the step must be done by now. Does not return when there is none."""
        if self._begin is not None:
            self._found["seconds"] = time.perf_counter() - self._begin
        print(json.dumps(self._found), file=self._out, flush=True)
        self._found = {}
        if not sys.stdin.readline():
            os._exit(0)  # trainers would save their last state, or catch an exception
        self._begin = time.perf_counter()

    def note(self, **found: float) -> None:
        """Adds to what is said of this step."""
        self._found |= found

    def sampled(self, seconds: float, tokens: int, rewards: Sequence[float]) -> None:
        """Notes what was sampled in this step.

        Args:
            seconds: from prompts to responses.
            tokens: of all responses.
            rewards: of each; if all were equal, there would be nothing to learn from.
        """
        self.note(rollout=seconds, tokens=int(tokens), spread=statistics.pstdev(map(float, rewards)))
