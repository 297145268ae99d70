"""The demo: a small model that can reason is taught to compress its thoughts, and compared with itself.

Two students start from the base model in `assets/base` and are trained for the same number of steps on the same
problems: one on plain traces (vanilla), the other on LightThinker rows. Then both solve problems that no training
stream contains, with the same decoding engine, and the same counter measures their peak and dependency.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from lt_jax.data.pipeline import PipelineConfig
from lt_jax.errors import UserError
from lt_jax.evaluation import job, metrics, table
from lt_jax.evaluation.results import Results
from lt_jax.layout.scheme import Scheme
from lt_jax.training import sft
from lt_jax.training.config import TrainConfig

BASE = Path(__file__).parent / "assets" / "base"
EPOCH = 10_000_000  # problems are made up from their number: there is no end to them


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo.

    Attributes:
        out: the folder of the two students and the reports.
        train: the training of each student.
        batches: how the training problems are packed.
        steps: the fewest and the most thoughts of a training problem.
        families: the kinds of training problems, which take turns; one that is named twice comes twice as often.
        n_gist: how many gist tokens a thought is written into.
        trigger: an existing token that ends thoughts; None adds a new one.
        suites: the suites of problems by name; the name is also that of the folder with the report.
        decode: settings of `EvalConfig` for every suite (rows, capacity, block_steps, max_new).
        max_thought: a thought of this many tokens is compressed by force.
    """

    out: str
    train: TrainConfig
    batches: PipelineConfig
    steps: tuple[int, int]
    families: tuple[str, ...]
    n_gist: int
    trigger: str | None
    suites: dict[str, job.SuiteConfig]
    decode: dict[str, int]
    max_thought: int


def demo(config: DemoConfig, say=print) -> None:
    """Trains both students, evaluates them on every suite, prints the tables and writes the reports."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    paths = {}
    schemes = {"vanilla": Scheme("vanilla"), "lightthinker": Scheme("lightthinker", n_gist=config.n_gist)}
    for name, scheme in schemes.items():
        began = time.monotonic()
        say(f"\nteaching {name}: {config.train.steps} steps from the base model")
        paths[name] = teach(config, scheme, out / name, say)
        say(f"taught in {time.monotonic() - began:.0f} s")
    ran = []
    for name, suite in config.suites.items():
        say(f"\nsolving {suite.embedded:,} problems that no training stream contains: {suite.name}")
        contenders = {
            student: job.ContenderConfig(str(paths[student]), max_thought=config.max_thought if scheme.has_gists else 0)
            for student, scheme in schemes.items()
        }
        note = f"Both from the same base model, {config.train.steps} steps each."
        asked = job.EvalConfig(suite, contenders, str(out / name), note=note, **config.decode)
        ran.append((asked, job.run(asked, say)))
    at_equal_memory(*ran[0], say)


def at_equal_memory(asked: job.EvalConfig, found: Results, say=print) -> None:
    """What the second contender makes of the cache memory that the first one's rows took: as many rows as fit into it
    solve the suite again. Nothing is said where no more rows fit."""
    first, second = found.methods
    if not second.cache_bytes or (rows := asked.rows * first.cache_bytes // second.cache_bytes) <= asked.rows:
        return
    share = 100 * second.cache_bytes / first.cache_bytes
    say(f"\na row's cache takes {share:.0f} % of the memory with {second.name}: where {asked.rows} rows of "
        f"{first.name} fit, {rows} rows of {second.name} do, which solve the same problems once more")  # fmt: skip
    own = {second.name: asked.contenders[second.name]}
    out = str(Path(asked.out) / "equal_memory")
    again = dataclasses.replace(asked, contenders=own, rows=rows, out=out, note="")
    (more,) = job.run(again, say=lambda text: None).methods
    rate = lambda each: table.number(metrics.summarise(each.records, each.seconds).tokens_per_second)
    say(f"tokens/s in that memory: {first.name} {rate(first)}, {second.name} {rate(more)} "
        f"({rate(second)} with {asked.rows} rows)")  # fmt: skip


def teach(config: DemoConfig, scheme: Scheme, folder: Path, say) -> Path:
    """Trains the base model to write as `scheme` says; returns the exported folder."""
    trained = sft.sft(
        sft.SftConfig(
            folder=str(folder),
            model=str(BASE),
            scheme=scheme,
            tokens=sft.TokensConfig(trigger=config.trigger if scheme.has_trigger else None),
            source=sft.SourceConfig((), embedded=EPOCH, steps=config.steps, families=config.families),
            batches=config.batches,
            train=config.train,
            tensorboard=False,
        ),
        say,
    )
    if trained is None:
        raise UserError("the demo was stopped while it trained; the same command goes on from there")
    return trained
