"""The demo: a small model that reasons is taught to compress its thoughts, and compared with itself.

Two students start from the base model that ships in `assets/base` and train for the same number of steps on the same
problems: one on plain traces (vanilla), one on LightThinker rows. Both then solve problems that no training stream
contains, through the same decode engine; one counter gives accuracy, peak and dependency.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from lt_jax.data.pipeline import PipelineConfig
from lt_jax.errors import UserError
from lt_jax.evaluation import job
from lt_jax.layout.scheme import Scheme
from lt_jax.training import sft
from lt_jax.training.config import TrainConfig

BASE = Path(__file__).parent / "assets" / "base"
EPOCH = 10_000_000  # problems are made up from their number: there is no end to them


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo.

    Attributes:
        out: folder for the two students and the reports.
        train: of either student; the same steps for both.
        batches: how the problems are packed.
        steps: least and most thoughts of the training problems.
        families: of the training problems, in turn; a family named twice comes twice as often.
        n_gist: gist tokens of a thought.
        trigger: a native token that ends thoughts, or None to add one.
        suites: name -> the suite and its report's folder name; the contenders are filled in here.
        decode: values of `EvalConfig` for every suite (rows, capacity, block_steps, max_new).
        max_thought: longest thought before the engine compresses by force.
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
    for name, suite in config.suites.items():
        say(f"\nsolving {suite.embedded:,} problems that no training stream contains: {suite.name}")
        contenders = {
            student: job.ContenderConfig(str(paths[student]), max_thought=config.max_thought if scheme.has_gists else 0)
            for student, scheme in schemes.items()
        }
        note = f"Both from the same base model, {config.train.steps} steps each."
        job.run(job.EvalConfig(suite, contenders, str(out / name), note=note, **config.decode), say)


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
