"""The memory that a run of reinforcement learning says it will take, beside what it takes, on a real model.

    python benchmarks/rl_memory.py [--model=DIR] [--steps=2] [--results=results/rl_memory.json]

A few rollouts of Qwen2.5-Coder-0.5B-Instruct with adapters, under R-KV. On a CPU the process's highest resident memory
(VmHWM, which counts pages of files too) is compared with the estimate, less what the process holds before the weights
are read (Python, JAX, the tokenizer and its library). What the estimate leaves out is part of what is measured: the
compiled programs, the compilers at work, and what the allocator keeps. How high it was while the weights were read is
told apart.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import provenance, table, write  # noqa: E402

MODEL = Path.home() / ".cache/lt_jax/qwen2.5-coder-0.5b-instruct"
PROBLEMS = [(f"What is {a} * {b}?", a * b) for a in range(12, 20) for b in range(3, 6)]
POINTS = ("before", "reading", "highest")
CHILD = """
import sys
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.models.config import LoraConfig
from lt_jax.rl import loop
from lt_jax.rl.config import ProblemsConfig, RlConfig, RolloutConfig
from lt_jax.rl.losses import LossConfig
from lt_jax.training.config import OptimizerConfig, TrainConfig

folder, model, problems, steps = sys.argv[1:5]
import jax
import jax.numpy as jnp
jnp.ones((512, 512)) @ jnp.ones((512, 512))
load_tokenizer(model)
status = lambda name: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
print("before", status("VmRSS"), flush=True)
config = RlConfig(
    folder, model, ProblemsConfig((problems,), system="You are a helpful assistant."),
    RolloutConfig(prompts=4, group=4, max_prompt=64, max_new=192, block_steps=16,
                  eviction={"policy": "rkv", "budget": 64, "buffer": 32}),
    lora=LoraConfig(rank=8), loss=LossConfig(kl_weight=1e-3), tensorboard=False,
    train=TrainConfig(steps=int(steps), log_every=1, remat="layer", accumulate=4,
                      optim=OptimizerConfig(learning_rate=1e-4, warmup=0.0, end_fraction=1.0)),
)
save, read = loop.save_trained, loop.read_model


def reading(*given, **named):
    found = read(*given, **named)
    print("reading", status("VmHWM"), flush=True)
    return found


def measured(*given, **named):  # the export, on the host, is no part of what a run was said to take
    print("highest", status("VmHWM"), flush=True)
    return save(*given, **named)


loop.save_trained, loop.read_model = measured, reading
assert loop.learn(config, lambda line: print(line, flush=True))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("results/rl_memory.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        problems = Path(folder) / "problems.jsonl"
        lines = (json.dumps({"question": question, "answer": str(answer)}) + "\n" for question, answer in PROBLEMS)
        problems.write_text("".join(lines))
        root = str(Path(__file__).resolve().parents[1])
        command = [sys.executable, "-c", CHILD, f"{folder}/run", options.model, str(problems), str(options.steps)]
        done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
        history = [json.loads(line) for line in (Path(folder) / "run/metrics.jsonl").read_text().splitlines()]
    print(done.stdout)
    said = float(re.search(r"GiB: ([\d.]+) at most", done.stdout)[1])
    found = {name: int(re.search(rf"^{name} (\d+)", done.stdout, re.M)[1]) / 2**20 for name in POINTS}
    highest = found["highest"] - found["before"]
    row = {"estimate GiB": said, "measured GiB": highest, "ratio": said / highest}
    row["reading GiB"] = found["reading"] - found["before"]
    row |= {name: history[-1][name] for name in ("seconds_rollout", "seconds_logps", "seconds_update", "reward")}
    print(table([row]))
    write(options.results, provenance(2, ("jax", "jaxlib")) | dict(rows=[row]))


if __name__ == "__main__":
    main()
