"""A problem to solve: what is asked and how a given answer is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem of a suite.

    Attributes:
        question: the user's turn, as text.
        answer: the right answer as text: a number, LaTeX, a word, or the letter of a choice.
        family: the kind of task it belongs to; tables are split by it. Of reasoning-gym the name of the data
            set, if nothing else is said.
        choices: the options of a multiple choice, in the order of the letters A, B, ...; None otherwise.
        system: the system turn, "" for none.
        metadata: what else its source tells of it, JSON values; reasoning-gym's scorers read theirs.
    """

    question: str
    answer: str
    family: str = "all"
    choices: tuple[str, ...] | None = None
    system: str = ""
    metadata: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)

    @property
    def text(self) -> str:
        """What the model is asked: the question, followed by lettered options if there are choices."""
        if not self.choices:
            return self.question
        options = (f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(self.choices))
        return self.question + "\n\n" + "\n".join(options)
