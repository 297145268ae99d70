"""A whole run of agents from one config: opens the checkpoint, works on the questions, prints a table, writes files.

    journal.jsonl        a line for each trajectory, written as it ends
    trajectories.jsonl   the trajectories in the order of the questions, when all have ended
    results.json         success and context by round
    settings.json        of the run

The same command goes on with a run that was stopped: questions that have a trajectory are not worked on again. The
others keep their seeds, and no trajectory depends on which others are worked on beside it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lt_jax.data.problem import Problem
from lt_jax.decode import DecodeConfig
from lt_jax.errors import UserError
from lt_jax.evaluation import agents
from lt_jax.evaluation.metrics import plain
from lt_jax.evaluation.results import write_whole
from lt_jax.memory import agent, multihop
from lt_jax.memory.agent_files import read_questions
from lt_jax.memory.corpus import Corpus, read_corpus
from lt_jax.memory.journal import Journal, read_logs
from lt_jax.memory.multihop import TrailConfig
from lt_jax.memory.syntax import syntax_of
from lt_jax.memory.tools import ToolsConfig, tools
from lt_jax.memory.trajectories import Limits, Trajectories
from lt_jax.model import Model, load


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """What to run.

    Attributes:
        model: a checkpoint folder.
        out: the folder that is written to.
        questions: a file of questions, see `agent_files`; "" for those of the embedded world.
        corpus: files or folders of pages for search and visit, see `corpus`.
        embedded: how many questions of the embedded world; 0 for those of a file.
        trails: of the embedded world.
        limit: how many questions of a file are used, drawn at random; 0 uses all.
        seed: of that draw, of the embedded world, and of sampling.
        told: whether the system prompt says which actions and tools there are (`agent.instructions`). A model that was
            trained on the embedded world alone was not told.
        system: what else it says.
        tools: see `tools.ToolsConfig`. limits: their `semantics` are the model's.
        dtype: of the model; None chooses by the platform.
        rows, capacity: of the engine; a capacity of 0 is as many keys as the model has positions.
        threads: calls of tools at once.
    """

    model: str
    out: str
    questions: str = ""
    corpus: tuple[str, ...] = ()
    embedded: int = 0
    trails: TrailConfig = TrailConfig()
    limit: int = 0
    seed: int = 0
    told: bool = True
    system: str = ""
    tools: ToolsConfig = ToolsConfig()
    limits: Limits = Limits()
    dtype: str | None = None
    rows: int = 8
    capacity: int = 0
    threads: int = 8

    def __post_init__(self):
        if bool(self.questions) == bool(self.embedded):
            raise UserError("give either questions (a file) or embedded (how many questions of the embedded world)")
        if self.embedded and self.corpus:
            raise UserError("corpus is given, but the embedded world has pages of its own; leave one of them out")
        if not self.embedded and not self.corpus and not self.tools.python and not self.tools.functions:
            raise UserError("there are no tools: give corpus (files of pages), or tools.functions")


def run(config: AgentConfig, write: Callable[[str], None] = print) -> agents.AgentResult:
    """Runs all questions; see the head of the file.

    Raises:
        UserError: the model has no memory actions; a file is broken; the folder holds a run with other settings.
    """
    out = Path(config.out).expanduser()
    model = load(config.model, dtype=config.dtype)
    syntax = syntax_of(model.special, model.tokenizer)
    limits = dataclasses.replace(config.limits, semantics=model.scheme.memory_semantics or config.limits.semantics)
    engine = model.engine(DecodeConfig(rows=config.rows, capacity=config.capacity or model.config.max_positions + 1))
    _begin(config, out)
    with Journal(out / "journal.jsonl") as journal:
        for corpus, problems in _sources(config):
            left = {number: problem for number, problem in problems.items() if number not in journal.done}
            with tools(config.tools, corpus) as named:
                system = "\n\n".join(filter(None, (agent.instructions(named) if config.told else "", config.system)))
                runner = Trajectories(engine, syntax, limits, named, config.threads)
                prompt = lambda problem: _prompt(model, problem, system)  # noqa: B023
                for number, log in agent.play(runner, left, prompt, config.seed):
                    journal.write(number, log)
        journal.write_sorted(out / "trajectories.jsonl")
    result = agents.summarise(list(read_logs(out / "trajectories.jsonl")))
    write_whole(out / "results.json", json.dumps(plain(result), indent=1) + "\n")
    write(agents.table(result))
    return result


def _sources(config: AgentConfig) -> Iterator[tuple[Corpus | None, dict[int, Problem]]]:
    """Corpora, each with its questions by their numbers."""
    if not config.embedded:
        problems = read_questions(config.questions, config.limit, config.seed)
        yield read_corpus(config.corpus) if config.corpus else None, dict(enumerate(problems))
        return
    first = 0
    for world in multihop.worlds(config.trails, config.embedded, config.seed):
        yield world.corpus, dict(enumerate(world.problems, first))
        first += len(world.problems)


def _prompt(model: Model, problem: Problem, system: str) -> Sequence[int]:
    both = "\n\n".join(filter(None, (system, problem.system)))
    return model.ask(problem.text, both).tokens.tolist()


def _begin(config: AgentConfig, out: Path) -> None:
    """Makes the folder, or checks that it holds a run with these settings."""
    settings = json.dumps(dataclasses.asdict(config), indent=1, sort_keys=True) + "\n"
    written = out / "settings.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if written.exists() and written.read_text(encoding="utf-8") != settings:
            raise UserError(f"{out}: holds a run with other settings (settings.json); give another folder in out")
        written.write_text(settings, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
