"""Supervised training of a model that manages its memory: `training.sft` with trajectories for lessons.

    trained = sft(config, lessons=lessons(MemoryConfig()))

Trajectories come from files (`memory.log` as JSONL, or any format of `data.traces`, see `memory.importers`), or are
made up from their number (`memory.tasks`, solved by `memory.expert`). Each is one row in the semantics of
`scheme.semantics`, which the exported folder keeps: decoding in the other one is refused.

All that the model wrote is trained, thoughts and actions. What the environment replied, contexts that were written
anew, and turns that were not possible are read and not trained.

What differs from the paper: in `rebuild` it trains each step as a row of its own, with its context. Here the steps of a
trajectory share what their contexts have in common (`rows.RebuiltRow`); the numbers are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lt_jax.data.prompts import ALL, Prompter
from lt_jax.data.sources import Mapped
from lt_jax.data.traces import Trace
from lt_jax.errors import UserError
from lt_jax.layout.prompt import build_prompt
from lt_jax.layout.row import Row
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.segment import SEGMENTERS, merge
from lt_jax.layout.special import SpecialTokens
from lt_jax.memory.expert import expert
from lt_jax.memory.importers import as_log, marks_of
from lt_jax.memory.log import Log, row_of
from lt_jax.memory.modes import MODES, asked, mode
from lt_jax.memory.syntax import Syntax, syntax_of
from lt_jax.memory.tasks import Lookbacks
from lt_jax.training.sft import Lessons, open_source, prompter, row_maker, told
from lt_jax.training.sft_config import SftConfig


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """The embedded trajectories of a run; files have no use for it.

    Attributes:
        modes: of the trajectories, which take turns.
        budget: tokens of context that the mode "budget" spends.
        edits: whether the expert expands and folds.
        looks: least and most look-backs of a problem, see `tasks.Lookbacks`.
    """

    modes: tuple[str, ...] = tuple(MODES)
    budget: int = 640
    edits: bool = True
    looks: tuple[int, int] = (1, 4)

    def __post_init__(self):
        if not self.modes:
            raise UserError(f"memory.modes is empty; give one or more of {', '.join(MODES)}")
        for name in self.modes:
            mode(name)
        if self.budget < 1:
            raise UserError(f"memory.budget is {self.budget}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrajectoryRows:
    """Log or Trace -> Row. Deterministic, without state, safe in several threads.

    Attributes:
        scheme, special, syntax: of the model.
        prompt: see `prompts.Prompter`.
        cut: makes segments of the thoughts of a plain trace, see `importers.as_log`.
        anew: whether thoughts that the data have cut are put together again first.
    """

    scheme: Scheme
    special: SpecialTokens
    syntax: Syntax
    prompt: Prompter
    cut: Callable[[Sequence[str]], list[str]]
    anew: bool = False

    def __call__(self, sample: Log | Trace) -> Row:
        """Lays one out. UserError where a trace cannot be a trajectory."""
        log = sample if isinstance(sample, Log) else self.log(sample)
        return row_of(log, self.syntax, self.asked(log), self.scheme.memory_semantics).row()

    def log(self, trace: Trace) -> Log:
        """A trace as a trajectory."""
        trace = dataclasses.replace(trace, segments=()) if self.anew else trace
        return as_log(trace, marks_of(self.syntax), self.cut)

    def asked(self, log: Log) -> list[int]:
        """The prompt of a trajectory, with the cue of its mode."""
        text = self.prompt(asked(log.extra.get("mode"), log.question), log.system)
        return build_prompt(self.scheme, self.special, text, self.syntax.tokenize).tokens.tolist()


def lessons(memory: MemoryConfig = MemoryConfig()) -> Callable[[SftConfig, Any, SpecialTokens], Lessons]:
    """The `lessons` of `training.sft.sft` for method "memory".

    Raises:
        UserError: at once if the run's settings do not fit trajectories.
    """

    def made(config: SftConfig, tokenizer, special: SpecialTokens) -> Lessons:
        check(config)
        to_row = trajectory_rows(config, tokenizer, special)
        if not config.source.embedded:
            samples, named = open_source(config.source, Path(config.folder))
            return Lessons(samples, named, to_row)
        problems = embedded(config, memory)
        numbers = Mapped(range(len(problems)), lambda index: made_up(problems, index, memory))
        return Lessons(numbers, {"trajectories": told(numbers)}, to_row)

    return made


def plain_lessons(memory: MemoryConfig = MemoryConfig()) -> Callable[[SftConfig, Any, SpecialTokens], Lessons]:
    """The same embedded problems as plain traces, for the methods that `lessons` is compared with."""

    def made(config: SftConfig, tokenizer, special: SpecialTokens) -> Lessons:
        problems = embedded(config, memory)
        samples = Mapped(problems, lambda problem: problem.trace)
        return Lessons(samples, {"problems": told(samples)}, row_maker(config, tokenizer, special))

    return made


def embedded(config: SftConfig, memory: MemoryConfig) -> Lookbacks:
    """The embedded problems of a run."""
    return Lookbacks(config.source.embedded, steps=tuple(config.source.steps), looks=tuple(memory.looks))


def made_up(problems: Lookbacks, index: int, memory: MemoryConfig) -> Log:
    """The trajectory of that number: its problem, solved in the mode whose turn it is."""
    name = memory.modes[index % len(memory.modes)]
    return expert(problems[index], str(index), name, memory.budget, memory.edits)


def trajectory_rows(config: SftConfig, tokenizer, special: SpecialTokens) -> TrajectoryRows:
    """How a sample of the run is laid out."""
    source, syntax = config.source, syntax_of(special, tokenizer)
    split = SEGMENTERS[source.segment or "paragraph"]
    measure = lambda text: len(syntax.tokenize(text))

    def cut(pieces: Sequence[str]) -> list[str]:
        pieces = split(pieces[0]) if len(pieces) == 1 else pieces
        return merge(pieces, source.minimum, source.maximum, measure) if source.minimum or source.maximum else pieces

    return TrajectoryRows(
        scheme=config.scheme, special=special, syntax=syntax, prompt=prompter(source, tokenizer), cut=cut,
        anew=source.segment is not None,
    )  # fmt: skip


def check(config: SftConfig) -> None:
    """Raises UserError for settings of a run that trajectories cannot have, or would ignore."""
    source = config.source
    if config.scheme.method != "memory":
        raise UserError(f"scheme.method is {config.scheme.method!r}; trajectories are for method 'memory'")
    if config.batches.over_length != "drop":
        raise UserError(
            f"batches.over_length is {config.batches.over_length!r}; a trajectory cannot be split, as its later part "
            "needs what the earlier one committed; set it to 'drop'"
        )
    if source.turns != ALL:
        raise UserError(f"data.turns is {source.turns!r}; method 'memory' trains all that the model wrote: set it to "
                        f"{ALL!r}")  # fmt: skip
    if source.segment not in (None, *SEGMENTERS):
        raise UserError(f"data.segment is {source.segment!r}; what is committed is the last sentence of a segment: "
                        f"choose {' or '.join(map(repr, SEGMENTERS))}")  # fmt: skip
    if source.embedded and source.families:
        raise UserError(f"data.families is {source.families!r}; method 'memory' has one family of problems of its own")
