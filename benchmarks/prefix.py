"""What starting from the longest prefix saves: samples that share a prompt, and the turns of a chat.

    python benchmarks/prefix.py [--threads=2] [--repeats=3] [--out=results/prefix.json]

Each case is run by one engine, in turn with all that its rows hold forgotten first and with it kept; the fastest of
several turns counts. One token is generated for every request, so the time is that of reading prompts and one step.

    samples   a prompt of 512 tokens, 8 samples of it, against 8 requests each of which reads the prompt for itself
    chat      20 turns; each prompt is all that was said before and 40 tokens more, and 24 tokens are answered

The model is the small one of benchmarks/decode.py, in float32.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--out", type=Path, default=Path("results/prefix.json"))
OPTIONS = parser.parse_args()
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: OPTIONS.threads])  # before JAX counts the processors
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from machine import provenance, table, turns, write  # noqa: E402

from lt_jax.decode import DecodeConfig, Engine, Request, Usage  # noqa: E402
from lt_jax.layout.scheme import Scheme  # noqa: E402
from lt_jax.layout.special import SpecialTokens  # noqa: E402
from lt_jax.models import params as parameters  # noqa: E402
from lt_jax.models.config import DecoderConfig  # noqa: E402

SMALL = DecoderConfig(
    vocab_size=2048, hidden=256, intermediate=1024, layers=6, heads=8, kv_heads=2, head_dim=32, model_type="llama"
)
PROMPT, SAMPLES, TURNS, SAID, ANSWER = 512, 8, 20, 40, 24
RNG = np.random.default_rng(0)


def engine(rows: int, capacity: int) -> Engine:
    params = parameters.init(jax.random.key(0), SMALL)
    made = Engine(params, SMALL, Scheme("vanilla"), SpecialTokens(-1, 0), DecodeConfig(rows, capacity, 8))
    made.reserve(capacity)
    return made


def counted(made: Engine, run) -> Usage:
    made.usage = Usage()
    run()
    return made.usage


def samples() -> list[dict]:
    """Rows of one prompt: as samples of one request, and as requests that know nothing of each other."""
    made, prompt = engine(SAMPLES, PROMPT + 64), RNG.integers(1, 2000, PROMPT)

    def shared():
        made.forget()
        made.complete([Request(prompt, 1, n=SAMPLES)])

    def apart():
        for _ in range(SAMPLES):
            made.forget()
            made.complete([Request(prompt, 1)])

    forms = {"shared": shared, "apart": apart}
    seconds = turns(forms, OPTIONS.repeats)
    return [line("samples", name, seconds, counted(made, run), "apart") for name, run in forms.items()]


def chat() -> list[dict]:
    """A conversation, turn by turn."""
    said = RNG.integers(1, 2000, (TURNS, SAID))
    made = engine(1, TURNS * (SAID + ANSWER) + 64)

    def conversation(forgets: bool):
        row = np.zeros(0, np.int32)
        made.forget()
        for turn in said:
            if forgets:
                made.forget()
            (done,) = made.complete([Request(np.concatenate([row, turn]), ANSWER)])
            row = done.row

    forms = {"kept": lambda: conversation(False), "read again": lambda: conversation(True)}
    seconds = turns(forms, OPTIONS.repeats)
    return [line("chat", name, seconds, counted(made, run), "read again") for name, run in forms.items()]


def line(case: str, form: str, seconds: dict, usage: Usage, against: str) -> dict:
    return {"case": case, "form": form, "ms": 1e3 * seconds[form], "times as fast": seconds[against] / seconds[form],
            "tokens read": usage.read, "reused": usage.reused, "read again": usage.read_again}  # fmt: skip


if __name__ == "__main__":
    lines = samples() + chat()
    print(table(lines))
    write(OPTIONS.out, provenance(OPTIONS.threads, ("jax", "numpy")) | {"lines": lines})
