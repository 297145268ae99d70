"""Where the numbers of a run go: JSONL, TensorBoard, Weights & Biases, and the terminal.

A writer has `write(step, values)`, values {name: float}, and `close()`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import secrets
import sys
import time
from typing import Protocol, TextIO

from lt_jax.errors import UserError


class MetricWriter(Protocol):
    """Takes the metrics of one step."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class Jsonl:
    """One JSON object per line, `{"step": ..., name: value, ...}`. NaN and infinities are written as null.

    Lines after `resume_step` are dropped first: a run that was killed may have logged steps that will be run again.
    """

    def __init__(self, path: str | os.PathLike, resume_step: int = 0):
        self.path = pathlib.Path(path)
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= resume_step]
            whole = self.path.with_suffix(".tmp")
            whole.write_text("".join(line + "\n" for line in kept))
            os.replace(whole, self.path)
        self.file = self.path.open("a")

    def write(self, step: int, values: dict[str, float]) -> None:
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, **plain}) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _step_of(line: str) -> float:
    """The step of a metrics line; infinity for the half line of a process killed while writing."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


class TensorBoard:
    """Scalars for TensorBoard."""

    def __init__(self, folder: str | os.PathLike, resume_step: int = 0):
        import tensorboardX

        self.writer = tensorboardX.SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """Scalars for Weights & Biases, which must be installed.

    The id of the run there is kept in the file `id_file`: training that goes on from a checkpoint goes on in the same
    run, and training that starts from step 0 is a new one. A killed run may have logged steps that are run again; W&B
    takes none twice, and they would be the same, so they are not sent.
    """

    def __init__(self, project: str, name: str, config: dict, id_file: str | os.PathLike, resume_step: int = 0):
        try:
            import wandb
        except ImportError:
            raise UserError("log.wandb is set, but wandb is not installed: pip install wandb") from None
        path = pathlib.Path(id_file)
        if not resume_step or not path.exists():
            write_whole(path, secrets.token_hex(8) + "\n")
        self.run = wandb.init(project=project, name=name, config=config, id=path.read_text().strip(), resume="allow")
        self.next_step = self.run.starting_step if self.run.resumed else 0

    def write(self, step: int, values: dict[str, float]) -> None:
        if step >= self.next_step:
            self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


@dataclasses.dataclass
class Terminal:
    """A progress bar on a terminal, plain lines anywhere else; `write` takes the same values as any writer."""

    steps: int
    stream: TextIO = dataclasses.field(default_factory=lambda: sys.stderr)
    first_step: int = 0
    started: float = dataclasses.field(default_factory=time.monotonic)

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self.stream.isatty():
            self.stream.write(f"step {step}/{self.steps}  {describe(values)}\n")
        elif any(name.startswith("eval") for name in values):
            self.stream.write(f"\r\033[Kstep {step}/{self.steps}  {describe(values)}\n")
        else:
            done = round(24 * step / self.steps)
            bar = "█" * done + "·" * (24 - done)
            self.stream.write(f"\r\033[K{bar} {step}/{self.steps}  {describe(values)}  left {self.eta(step)}")
        self.stream.flush()

    def eta(self, step: int) -> str:
        """Time left, m:ss or h:mm:ss, at the mean speed of this process."""
        done = step - self.first_step
        if done <= 0:
            return "?"
        seconds = round((time.monotonic() - self.started) / done * (self.steps - step))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

    def close(self) -> None:
        if self.stream.isatty():
            self.stream.write("\n")


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


SHOWN = (
    "reward", "agreement_q05", "rejected", "truncation_rate",  # of reinforcement learning
    "loss", "accuracy", "grad_norm", "learning_rate", "tokens_per_second",
)  # fmt: skip


def describe(values: dict[str, float]) -> str:
    """The values a person wants to follow, on one line."""
    short = {"learning_rate": "lr", "tokens_per_second": "tokens/s", "grad_norm": "norm",
             "agreement_q05": "agreement", "truncation_rate": "cut off"}  # fmt: skip
    number = lambda name, v: f"{v:,.0f}" if name == "tokens_per_second" else f"{v:.4g}"
    wanted = [name for name in values if name in SHOWN or name.startswith("eval")]
    return "  ".join(f"{short.get(name, name)} {number(name, values[name])}" for name in wanted)
