"""The demo: a small model that reasons is taught to compress its thoughts, and compared with itself.

Two students start from the base model that ships in `assets/base` and train for the same number of steps on the same
problems: one on plain traces (vanilla), one on LightThinker rows. Both then solve problems that no training stream
contains, through the same decode engine; one counter gives accuracy, peak and dependency.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from lt_jax.data.pipeline import PipelineConfig, train_batches
from lt_jax.data.rows import RowMaker, prompter
from lt_jax.data.sources import Mapped, worked
from lt_jax.data.tasks import Problems
from lt_jax.evaluation import job
from lt_jax.layout.card import NAME, Card
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import default_table
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.models import huggingface, vocabulary
from lt_jax.training import metrics, run
from lt_jax.training.config import TrainConfig

BASE = Path(__file__).parent / "assets" / "base"
CHAT = "own"
EPOCH = 10_000_000  # problems are made up from their number: there is no end to them


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo.

    Attributes:
        out: folder for the two students and the reports.
        train: of either student; the same steps for both.
        length, batch: tokens of a packed row, rows of a batch.
        steps: least and most thoughts of the training problems.
        n_gist: gist tokens of a thought.
        trigger: a native token that ends thoughts, or None to add one.
        suites: name -> the suite and its report's folder name; the contenders are filled in here.
        decode: values of `EvalConfig` for every suite (rows, capacity, buffer, max_new).
        max_thought: longest thought before the engine compresses by force.
    """

    out: str
    train: TrainConfig
    length: int
    batch: int
    steps: tuple[int, int]
    n_gist: int
    trigger: str | None
    suites: dict[str, job.SuiteConfig]
    decode: dict[str, int]
    max_thought: int


def demo(config: DemoConfig, say=print) -> None:
    """Trains both students, evaluates them on every suite, prints the tables and writes the reports."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    schemes = {"vanilla": Scheme("vanilla"), "lightthinker": Scheme("lightthinker", n_gist=config.n_gist)}
    for name, scheme in schemes.items():
        began = time.monotonic()
        say(f"\nteaching {name}: {config.train.steps} steps from the base model")
        teach(config, scheme, out / name)
        say(f"taught in {time.monotonic() - began:.0f} s")
    for name, suite in config.suites.items():
        say(f"\nsolving {suite.embedded:,} problems that no training stream contains: {suite.name}")
        contenders = {
            student: job.ContenderConfig(str(out / student), max_thought=config.max_thought if scheme.has_gists else 0)
            for student, scheme in schemes.items()
        }
        note = f"Both from the same base model, {config.train.steps} steps each."
        job.run(job.EvalConfig(suite, contenders, str(out / name), note=note, **config.decode), say)


def teach(config: DemoConfig, scheme: Scheme, folder: Path) -> None:
    """Trains the base model to write as `scheme` says and exports it to `folder`."""
    tokenizer = load_tokenizer(BASE)
    params, model = huggingface.load(BASE, "float32")
    trigger = config.trigger if scheme.has_trigger else None
    table = default_table(tokenizer, scheme, tokenizer.eos_token, tokenizer.pad_token, trigger)
    params, model = vocabulary.grow(params, model, table.new, table.pieces)
    maker = RowMaker(scheme=scheme, special=table.special, tokenizer=tokenizer, prompt=prompter(CHAT, tokenizer))
    source = Mapped(Problems(EPOCH, steps=config.steps), worked)
    packing = PipelineConfig(length=config.length, batch=config.batch, seed=config.train.seed, bins=32)
    data = train_batches(source, maker, packing, table.special.pad)
    writers = [metrics.Terminal(config.train.steps), metrics.Jsonl(folder.parent / f"{folder.name}.jsonl")]
    result = run.train(config.train, model, params, data, writers=writers)
    card = Card(scheme, table.special, CHAT).to_json(tokenizer)
    huggingface.save(folder, result.params, model, tokenizer, overwrite=True, files={NAME: card})
