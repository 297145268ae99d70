"""A whole evaluation from one config: opens the checkpoints, runs the suite, prints the table, writes the files."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

from lt_jax import notices
from lt_jax.data import suites
from lt_jax.decode import DecodeConfig, Sampling
from lt_jax.errors import UserError
from lt_jax.evaluation import pictures, report, results, table
from lt_jax.evaluation.contenders import ask, contender
from lt_jax.evaluation.progress import ProgressLine
from lt_jax.evaluation.run import Contender, evaluate
from lt_jax.model import Model, load
from lt_jax.models.config import round_up


@dataclasses.dataclass(frozen=True)
class SuiteConfig:
    """Where the problems come from: exactly one of `path`, `tfds` and `embedded`.

    Attributes:
        path: a file or folder, or several, see `suites.from_files`.
        format: of the records, a key of `data.traces.FORMATS`; "" recognises it by their fields.
        tfds: the name of a TensorFlow data set, see `suites.from_tfds`.
        split, data_dir: the split of that data set, and the folder in which it is prepared.
        embedded: how many of the library's own problems to make.
        steps: the fewest and the most steps of such a problem.
        families: the kinds of such problems; empty takes all kinds.
        name: of the suite in tables.
        limit: how many problems are used, drawn at random; 0 uses all.
        seed: of that draw, and of the library's own problems.
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
    """One way to answer the problems.

    Attributes:
        path: of the checkpoint.
        method: how to decode; None is as the model was trained.
        chat, system, prefix, suffix: in place of the checkpoint's own, see `model.load`; None leaves them as they are.
        max_thought: a thought of this many tokens is compressed by force; 0 sets no limit.
        eviction: a KV budget: policy, budget, buffer and other fields of `policies.Eviction`; empty for none.
    """

    path: str
    method: str | None = None
    chat: str | None = None
    system: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    max_thought: int = 0
    eviction: Mapping | None = None


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """An evaluation.

    Attributes:
        suite: where the problems come from.
        contenders: what is compared, by name; the first is the baseline.
        out: the folder of results.json, table.txt, report.html and the pictures.
        dtype: of weights and computation.
        rows, capacity, block_steps: see `DecodeConfig`.
        max_new: the most tokens that are sampled for a problem.
        sampling: how tokens are chosen.
        tensor: how many devices share an answer, see `lt_jax.load`; answers are spread over the others.
        seed: of sampling; problem number i has seed + i.
        samples: how many answers of each contender are kept token by token for the report.
        note: a line for the reader of the results.
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
    tensor: int = 1
    seed: int = 0
    samples: int = 4
    note: str = ""

    def __post_init__(self):
        if self.samples < 0:
            raise UserError(f"samples is {self.samples}; it must be 0 or more")


def run(config: EvalConfig, say=print) -> results.Results:
    """Evaluates, prints the table and writes the files. The suite and all checkpoints are opened before the first run.

    The files are written again after each contender, so that the results of the others are kept if one fails. Until the
    last one they say which contenders are missing.
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
        key = each.path, each.method, each.chat, each.system, each.prefix, each.suffix
        if key not in opened:
            opened[key] = load(each.path, each.method, dtype=config.dtype, chat=each.chat, system=each.system,
                               prefix=each.prefix, suffix=each.suffix, tensor=config.tensor,
                               weights=weights.get(each.path))  # fmt: skip
            weights[each.path] = opened[key].params, opened[key].config
        eviction = opened[key].eviction(**each.eviction) if each.eviction else None
        recorded = eviction is not None and config.samples > 0
        asked = [ask(opened[key], problem) for problem in suite.problems] if recorded else []
        decode = DecodeConfig(
            rows=min(config.rows, round_up(len(suite), opened[key].parts)), capacity=config.capacity,
            block_steps=config.block_steps, sampling=config.sampling,
            max_thought=each.max_thought or None, eviction=eviction,
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
    """The number of tokens of each prompt. A prompt that the engine would refuse hours later is a UserError now."""
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
    """Writes all files of an evaluation into a folder. Each file is written completely or not at all."""
    out = Path(out)
    results.save(found, out / "results.json")
    results.write_whole(out / "table.txt", table.table(found) + "\n")
    report.write(found, out / "report.html")
    for name, picture in pictures.all_pictures(found).items():
        results.write_whole(out / name, picture)
