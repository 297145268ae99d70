"""A whole evaluation from one config: open the folders, run the suite, print the table, write the files."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

from lt_jax import notices
from lt_jax.decode import DecodeConfig, Sampling
from lt_jax.errors import UserError
from lt_jax.evaluation import pictures, report, results, suites, table
from lt_jax.evaluation.contenders import ask, contender
from lt_jax.evaluation.progress import ProgressLine
from lt_jax.evaluation.run import Contender, evaluate
from lt_jax.model import Model, load


@dataclasses.dataclass(frozen=True)
class SuiteConfig:
    """Where the problems come from: exactly one of `path`, `tfds` and `embedded`.

    Attributes:
        path: file or folder, or several, see `suites.from_files`; `format` of `data.traces.FORMATS`, "" to see it.
        tfds: data set name, see `suites.from_tfds`; `split` and `data_dir` of it.
        embedded: number of embedded problems, with `steps` (least, most) and `families` (empty: all).
        name: what the tables call it.
        limit: problems to keep, drawn by `seed`; 0 keeps all.
    """

    path: str | tuple[str, ...] = ""
    format: str = ""
    tfds: str = ""
    split: str = "test"
    data_dir: str = ""
    embedded: int = 0
    steps: tuple[int, int] = (6, 12)
    families: tuple[str, ...] = ()
    name: str = ""
    limit: int = 0
    seed: int = 0

    def __post_init__(self):
        given = [name for name in ("path", "tfds", "embedded") if getattr(self, name)]
        if len(given) != 1:
            raise UserError(
                f"suite: give one of path, tfds and embedded; given are {', '.join(given) or 'none'}; for example "
                "--config.suite.path=problems.jsonl or --config.suite.embedded=100"
            )

    def open(self) -> suites.Suite:
        if self.path:
            stems = [Path(path).stem for path in ((self.path,) if isinstance(self.path, str) else self.path)]
            return suites.from_files(self.path, name=self.name or ", ".join(stems), format=self.format or None,
                                     limit=self.limit, seed=self.seed)  # fmt: skip
        if self.tfds:
            return suites.from_tfds(self.tfds, split=self.split, data_dir=self.data_dir or None, name=self.name,
                                    limit=self.limit, seed=self.seed)  # fmt: skip
        extra = {"families": tuple(self.families)} if self.families else {}
        suite = suites.embedded(self.embedded, seed=self.seed, steps=tuple(self.steps), name=self.name, **extra)
        return dataclasses.replace(suite, problems=suites.limited(list(suite.problems), self.limit, self.seed))


@dataclasses.dataclass(frozen=True)
class ContenderConfig:
    """One method: `method` None is what the folder was trained for; None elsewhere is the folder's own.

    eviction: settings of a KV budget: policy, budget, buffer, and other fields of `policies.Eviction`; empty: none.
    """

    path: str
    method: str | None = None
    chat: str | None = None
    system: str | None = None
    prefix: str | None = None
    max_thought: int = 0
    eviction: Mapping | None = None


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """An evaluation.

    Attributes:
        contenders: name -> what it is, the baseline first.
        out: folder for results.json, table.txt, report.html and the pictures.
        dtype: of weights and computation.
        rows, capacity, block_steps: see `DecodeConfig`; max_new: most tokens sampled for a problem.
        samples: completions per method kept token by token for the report.
    """

    suite: SuiteConfig
    contenders: Mapping[str, ContenderConfig]
    out: str
    dtype: str = "float32"
    rows: int = 8
    capacity: int = 4096
    block_steps: int = 32
    max_new: int = 2048
    sampling: Sampling = Sampling()
    seed: int = 0
    samples: int = 4
    note: str = ""

    def __post_init__(self):
        if self.samples < 0:
            raise UserError(f"samples is {self.samples}; it must be 0 or more")


def run(config: EvalConfig, say=print) -> results.Results:
    """Evaluates, prints the table and writes the files; every folder and the suite are opened before the first run.

    The files are written after each contender, so that one that fails does not take the others with it; until the last
    they say which are missing.
    """
    suite = config.suite.open()
    if not config.contenders:
        raise UserError("contenders: there must be at least one")
    opened, weights, ready, late = {}, {}, [], []
    for name, each in config.contenders.items():
        if not each.path:
            raise UserError(
                f"contenders.{name}: which model? give --config.model.path=DIR or --config.contenders.{name}.path=DIR"
            )
        key = each.path, each.method, each.chat, each.system, each.prefix
        if key not in opened:
            opened[key] = load(each.path, each.method, dtype=config.dtype, chat=each.chat, system=each.system,
                               prefix=each.prefix, weights=weights.get(each.path))  # fmt: skip
            weights[each.path] = opened[key].params, opened[key].config
        eviction = opened[key].eviction(**each.eviction) if each.eviction else None
        recorded = eviction is not None and config.samples > 0
        asked = [ask(opened[key], problem) for problem in suite.problems] if recorded else []
        decode = DecodeConfig(
            rows=min(config.rows, len(suite)), capacity=config.capacity, block_steps=config.block_steps,
            sampling=config.sampling, max_thought=each.max_thought or None, eviction=eviction,
            horizon=opened[key].horizon(asked, config.max_new) if recorded else 0,
        )  # fmt: skip
        ready.append(contender(name, opened[key], decode, max_new=config.max_new, seed=config.seed))
        lengths = check_fits(ready[-1], opened[key], suite, decode, config.max_new)
        late.append(notices.beyond(lengths, config.max_new, opened[key].config.max_positions))
    for line in dict.fromkeys(filter(None, late)):
        notices.to_stderr(line)

    def after(found: results.Results) -> None:
        write(found, config.out)
        method = found.methods[-1]
        lines = [notices.broken([record.finish for record in method.records], method.name)]
        if method.scheme["method"] != "vanilla":
            lines.append(notices.uncompressed([record.counts for record in method.records], method.name))
        for line in filter(None, lines):
            notices.to_stderr(line)

    found = evaluate(ready, suite, samples=config.samples, note=config.note, progress=ProgressLine(sys.stderr),
                     after=after)  # fmt: skip
    say("\n" + table.table(found))
    say(f"\nwritten to {config.out}: results.json, table.txt, report.html and the pictures")
    return found


def check_fits(
    each: Contender, model: Model, suite: suites.Suite, decode: DecodeConfig, max_new: int
) -> list[int]:
    """The tokens of each prompt; raises UserError now, not hours later, for one that the engine would refuse."""
    prompts = [each.encode(problem) for problem in suite.problems]
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    if decode.eviction is None and len(prompts[longest]) >= decode.capacity:
        raise UserError(
            f"{each.name}: problem {longest} of {suite.name} is a prompt of {len(prompts[longest]):,} tokens; "
            f"decode.capacity is {decode.capacity:,} keys, which leaves no room for an answer"
        )
    try:
        model.check(decode, prompts, max_new)
    except UserError as error:
        raise UserError(f"{each.name}: {suite.name}: {error}") from None
    return [len(prompt) for prompt in prompts]


def write(found: results.Results, out: str | Path) -> None:
    """Writes everything about an evaluation into a folder, file by file whole or not at all."""
    out = Path(out)
    results.save(found, out / "results.json")
    results.write_whole(out / "table.txt", table.table(found) + "\n")
    report.write(found, out / "report.html")
    for name, picture in pictures.all_pictures(found).items():
        results.write_whole(out / name, picture)
