"""A side of `benchmarks/rl_step.py` as a process of its own, and the virtual environments of the peers."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.task import Task

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / "build" / "peers"
# What is installed beside what these need. On Linux PyPI's torch brings CUDA along, which nothing here uses.
PINS = {
    "trl": ("trl==1.16.0", "torch==2.13.0", "transformers==5.24.0", "accelerate==1.15.0", "datasets==5.2.0"),
    "tunix": ("google-tunix==0.1.7", "jax==0.10.2", "jaxlib==0.10.2", "flax==0.12.8", "transformers==5.12.1"),
}
PATIENCE = 1200  # seconds for a step, with all that is compiled before the first one


class Failed(Exception):
    """A side cannot be measured; the message is one line."""


def environment(name: str) -> Path:
    """The Python of a peer's virtual environment, which is made if it is not there or of other versions.

    Raises:
        Failed: it cannot be made; build/peers/NAME.log tells all of it.
    """
    folder, pins = ENVIRONMENTS / name, "\n".join(PINS[name])
    python, mark, log = folder / "bin" / "python", folder / "installed", ENVIRONMENTS / f"{name}.log"
    if mark.is_file() and mark.read_text() == pins:
        return python
    print(f"installing {', '.join(PINS[name])} into {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    install = [python, "-m", "pip", "install", "--no-compile", *PINS[name]]
    with log.open("w") as out:
        for command in ([sys.executable, "-m", "venv", folder], install):
            if subprocess.run(command, stdout=out, stderr=out).returncode:
                raise Failed(f"cannot be installed: {last_line(log)}")
    mark.write_text(pins)
    return python


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1][:200] if lines else 'no word'} (all of it: {log})"


class Side:
    """A running side.

    Attributes:
        versions: of its packages.
        steps: what it said of each step that counts: the seconds of all of it and of its rollout, and the tokens.
    """

    def __init__(self, name: str, task: Task):
        """Starts it, and waits until it is ready for its first step.

        Raises:
            Failed: it is not.
        """
        self.name, self.task, self.steps = name, task, []
        python = environment(name) if name in PINS else Path(sys.executable)
        ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
        self.log = ENVIRONMENTS / f"{name}_run.log"
        module = f"benchmarks.peers.{name if name in PINS else 'ours'}"
        threads = {"OMP_NUM_THREADS": str(task.threads)}
        offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "JAX_PLATFORMS": "cpu"}
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, "-m", module, json.dumps(dataclasses.asdict(task))], cwd=ROOT, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors, bufsize=0, env=os.environ | threads | offline,
            )  # fmt: skip
        self.versions = self._told()["versions"]

    def step(self, counts: bool = True) -> None:
        """Makes one step.

        Raises:
            Failed: it ended, takes too long, or did not do the work that was asked for.
        """
        try:
            self.process.stdin.write(b"go\n")
        except BrokenPipeError:
            raise Failed(f"it ended: {last_line(self.log)}") from None
        found = self._told()
        wanted = self.task.responses * self.task.new
        if found["tokens"] != wanted:
            raise Failed(f"it sampled {found['tokens']} tokens in a step in place of {wanted}")
        if not found["spread"]:
            raise Failed("all its rewards are equal: there is nothing to learn from")
        if counts:
            self.steps.append(found)

    def close(self) -> None:
        """Ends it."""
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _told(self) -> dict:
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.process.kill()
            raise Failed(f"no step within {PATIENCE} s: {last_line(self.log)}")
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise Failed(f"it ended: {last_line(self.log)}")
        return json.loads(line)
