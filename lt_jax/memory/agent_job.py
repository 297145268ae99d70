"""A whole run of agents from one config: opens the checkpoint, works on the questions, prints a table, writes files.

    trajectories.jsonl   a line for each trajectory, written as it ends
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
from lt_jax.data.readers import read_records
from lt_jax.decode import DecodeConfig
from lt_jax.errors import UserError
from lt_jax.memory import agent, multihop
from lt_jax.memory.agent_files import read_questions
from lt_jax.memory.corpus import Corpus, read_corpus
from lt_jax.memory.log import Log, from_json
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


def run(config: AgentConfig, write: Callable[[str], None] = print) -> agent.AgentResult:
    """Runs all questions; see the head of the file.

    Raises:
        UserError: the model has no memory actions; a file is broken; the folder holds a run with other settings.
    """
    out = Path(config.out).expanduser()
    model = load(config.model, dtype=config.dtype)
    syntax = syntax_of(model.special, model.tokenizer)
    limits = dataclasses.replace(config.limits, semantics=model.scheme.memory_semantics or config.limits.semantics)
    engine = model.engine(DecodeConfig(rows=config.rows, capacity=config.capacity or model.config.max_positions + 1))
    done = _begun(config, out)
    first = config.seed  # of the questions of a source
    for corpus, problems in _sources(config):
        left = [(each, first + place) for place, each in enumerate(problems) if each.metadata["id"] not in done]
        first += len(problems)
        with tools(config.tools, corpus) as named, open(out / "trajectories.jsonl", "a", encoding="utf-8") as file:
            system = "\n\n".join(filter(None, (agent.instructions(named) if config.told else "", config.system)))
            runner = Trajectories(engine, syntax, limits, named, config.threads)
            for log in agent.play(runner, left, lambda each: _prompt(model, each, system)):  # noqa: B023
                done[log.id] = log
                file.write(json.dumps(log.to_json(), ensure_ascii=False) + "\n")
                file.flush()
    result = agent.summarise(list(done.values()))
    (out / "results.json").write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n", encoding="utf-8")
    write(agent.table(result))
    return result


def _sources(config: AgentConfig) -> Iterator[tuple[Corpus | None, Sequence[Problem]]]:
    """Corpora, each with its questions, every one with an id."""
    if config.embedded:
        for world in multihop.worlds(config.trails, config.embedded, config.seed):
            yield world.corpus, world.problems
        return
    problems = read_questions(config.questions, config.limit, config.seed)
    named = [dataclasses.replace(each, metadata={"id": str(place), **(each.metadata or {})})
             for place, each in enumerate(problems, 1)]  # fmt: skip
    named = [dataclasses.replace(each, metadata={**each.metadata, "id": str(each.metadata["id"])}) for each in named]
    ids = [each.metadata["id"] for each in named]
    if twice := next((id for id in ids if ids.count(id) > 1), None):
        raise UserError(f"{config.questions}: the id {twice!r} comes twice; every question needs one of its own")
    yield read_corpus(config.corpus) if config.corpus else None, named


def _prompt(model: Model, problem: Problem, system: str) -> Sequence[int]:
    both = "\n\n".join(filter(None, (system, problem.system)))
    return model.ask(problem.text, both).tokens.tolist()


def _begun(config: AgentConfig, out: Path) -> dict[str, Log]:
    """The trajectories that are there already, of a run with these settings; a line that was cut off is taken away."""
    settings = json.dumps(dataclasses.asdict(config), indent=1, sort_keys=True) + "\n"
    written, lines = out / "settings.json", out / "trajectories.jsonl"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if written.exists() and written.read_text(encoding="utf-8") != settings:
            raise UserError(f"{out}: holds a run with other settings (settings.json); give another folder in out")
        written.write_text(settings, encoding="utf-8")
        if not lines.exists():
            return {}
        text = lines.read_bytes()
        with open(lines, "r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    logs = (from_json(record, where) for where, record in read_records(lines))
    return {log.id: log for log in logs}
