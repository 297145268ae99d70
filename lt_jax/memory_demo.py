"""The demo of LightThinker++: what a memory does to the context, on problems whose thoughts are worked out.

    vanilla        the thoughts, every key kept
    lightthinker   the thoughts, each of which is replaced by gist tokens
    rebuild, lifetimes   a script that commits every thought and looks at the first again, in either semantics

No model takes part: what is written is known, and what it costs is counted from the rows that a model would be trained
with. Trajectories of models (`MemoryDemoConfig.logs`) are shown beside them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from lt_jax.data.tasks import FAMILIES, Problems
from lt_jax.data.tasks.worked import Worked
from lt_jax.decode.pieces import keys_kept
from lt_jax.demo import BASE
from lt_jax.evaluation import trajectory_page as page
from lt_jax.evaluation.results import write_whole
from lt_jax.evaluation.visible_chart import Keys, visible
from lt_jax.layout.build import build_row
from lt_jax.layout.row import Row
from lt_jax.layout.scheme import SEMANTICS, Scheme
from lt_jax.layout.special import default_table
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.memory.counted import counted
from lt_jax.memory.log import Log, LoggedTurn
from lt_jax.memory.syntax import syntax_of

SUMMARY = 2  # words at the end of a thought, which say what came out of it


@dataclasses.dataclass(frozen=True)
class MemoryDemoConfig:
    """The demo.

    Attributes:
        out: the folder of the trajectories and of the report.
        questions, steps, families: of the problems, see `data.tasks.Problems`.
        n_gist: of LightThinker.
        logs: JSONL files of trajectories that are shown beside those of the demo.
    """

    out: str
    questions: int = 4
    steps: tuple[int, int] = (8, 12)
    families: tuple[str, ...] = tuple(FAMILIES)
    n_gist: int = 2
    logs: Sequence[str] = ()


def show(config: MemoryDemoConfig, say: Callable[[str], None] = print) -> dict[str, list[page.Shown]]:
    """Makes the trajectories, writes them and the report. Returns them by the name of their method.

    Raises:
        UserError: a file of trajectories is not to be read or written.
    """
    problems = Problems(config.questions, steps=tuple(config.steps), families=tuple(config.families))
    worked = {f"{one.family} {number}": one for number, one in enumerate(problems, 1)}
    found = {"vanilla": _without_actions(worked, Scheme(method="vanilla")),
             "lightthinker": _without_actions(worked, Scheme(n_gist=config.n_gist))}  # fmt: skip
    tokenizer = load_tokenizer(BASE)
    syntax = syntax_of(default_table(tokenizer, Scheme(method="memory"), "<|end|>", "<|pad|>").special, tokenizer)
    for semantics in SEMANTICS:
        found[semantics] = [counted(script(name, one), syntax, syntax.ids(one.question), semantics)
                            for name, one in worked.items()]  # fmt: skip
    out = Path(config.out)
    for name, several in found.items():
        lines = (json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in several)
        write_whole(out / f"{name}.jsonl", "".join(lines))
    found |= page.read_all(config.logs)
    page.write(found, out / "report.html", "What a memory does to the context")
    say(f"wrote {out}/report.html, and the trajectories of {', '.join(found)} beside it")
    return found


def script(name: str, worked: Worked) -> Log:
    """A trajectory: every thought is committed as its last words; before the answer, the first is looked at again."""
    *thoughts, last = worked.thoughts
    turns = [LoggedTurn(thought, "commit", " ".join(thought.split()[-SUMMARY:])) for thought in thoughts]
    turns += [LoggedTurn("Back to the first step", "expand", number=1), LoggedTurn("Seen", "fold", number=1)]
    turns.append(LoggedTurn(last, "final_answer", worked.answer))
    return Log(name, worked.question, tuple(turns), gold=worked.answer, correct=True, extra={"made_by": "script"})


def _without_actions(worked: dict[str, Worked], scheme: Scheme) -> list[Keys]:
    tokenizer = load_tokenizer(BASE)
    special = default_table(tokenizer, scheme, "<|end|>", "<|pad|>").special
    tokenize = lambda text: tokenizer.encode(text, add_special_tokens=False)
    found = []
    for name, one in worked.items():
        row = build_row(scheme, special, one.question, one.thoughts, tokenize)
        found.append(Keys(name, one.question, _visible(row), one.answer, one.answer, True))
    return found


def _visible(row: Row) -> tuple[int, ...]:
    """The keys that each token saw which a model writes."""
    return tuple((keys_kept(row)[:-1] + 1)[row.trained].tolist())


def table(found: dict[str, list[page.Shown]]) -> str:
    """What each method costs, as lines for the terminal: means over the problems, in tokens and in keys."""
    lines = [f"{'':14}{'written':>10}{'read again':>12}{'peak keys':>11}{'mean keys':>11}"]
    mean = lambda values: f"{sum(values) / len(values):,.0f}" if values else "-"
    for name, several in found.items():
        keys = [each for each in map(visible, several) if each]
        again = [sum(turn.again for turn in one.turns) for one in several if isinstance(one, Log)]
        columns = (mean([*map(len, keys)]), mean(again), mean([*map(max, keys)]),
                   mean([sum(each) / len(each) for each in keys]))  # fmt: skip
        lines.append(f"{name:14}{columns[0]:>10}{columns[1]:>12}{columns[2]:>11}{columns[3]:>11}")
    return "\n".join(lines)
