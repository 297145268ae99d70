"""Decoding under a KV budget: memory, the price of evicting, and speed where memory limits the batch.

    python benchmarks/kv_budget.py [--parts=memory,price,speed] [--out=results/kv_budget.json]

memory  bytes of one row's cache over the tokens it may generate, under the budget and with every key kept, and the
        temporaries of the compiled decode block from XLA's `memory_analysis`
price   one eviction of all rows, as a share of the 128 decode steps between two evictions
speed   the memory of ONE row that keeps every key is given to as many rows as it holds under the budget; tokens/s of
        both, each decoding all its tokens. The budget's rows end when full attention's would

The real model in bfloat16 weights (multiplied in float32) and a float32 cache, budget 512, buffer 128, R-KV.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--real", type=Path, default=Path.home() / ".cache/lt_jax/qwen2.5-coder-0.5b-instruct")
parser.add_argument("--parts", default="memory,price,speed")
parser.add_argument("--policies", default="rkv,snapkv,h2o,tova,keydiff,knorm,sepllm,streaming,random")
parser.add_argument("--lengths", default="1024,4096", help="tokens to generate, for the part speed")
parser.add_argument("--rows", type=int, default=8, help="for the part price")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--out", type=Path, default=Path("results/kv_budget.json"))
OPTIONS = parser.parse_args()
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: OPTIONS.threads])
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from machine import provenance, table, turns, write  # noqa: E402

from lt_jax import cache as slots  # noqa: E402
from lt_jax.cache.policies import published  # noqa: E402
from lt_jax.decode import DecodeConfig, Engine, Request  # noqa: E402
from lt_jax.decode.ahead import footprint  # noqa: E402
from lt_jax.decode.setup import cache_bytes, rules_of  # noqa: E402
from lt_jax.layout.scheme import Scheme  # noqa: E402
from lt_jax.layout.special import SpecialTokens  # noqa: E402
from lt_jax.models.huggingface import load  # noqa: E402

BUDGET, BUFFER, PROMPT = 512, 128, 64
SPECIAL, VANILLA = SpecialTokens(eos=-1, pad=0), Scheme(method="vanilla")
SEPARATORS = tuple(range(10, 20))  # any: the prompts are random


def eviction(policy: str):
    return published(policy, BUDGET, BUFFER, **{"separators": SEPARATORS} if policy == "sepllm" else {})


def row_bytes(model, config: DecodeConfig) -> float:
    """Bytes of the cache for one row, all its books included."""
    return cache_bytes(model, config, rules_of(model, VANILLA, SPECIAL, config))


def full(length: int, rows: int = 1) -> DecodeConfig:
    return DecodeConfig(rows=rows, capacity=PROMPT + length)


def budgeted(policy: str = "rkv", rows: int = 1) -> DecodeConfig:
    return DecodeConfig(rows=rows, block_steps=BUFFER, eviction=eviction(policy))


def memory(model) -> list[dict]:
    config = dataclasses.replace(budgeted(), implementation="plain")
    found = footprint(model, config, PROMPT + 1024)
    lines = []
    for length in (512, 1024, 4096, 16384, 32768):
        whole = row_bytes(model, full(length))
        lines.append({"generated": length, "budget MB": row_bytes(model, budgeted()) / 1e6, "full MB": whole / 1e6,
                      "rows for one": whole / row_bytes(model, budgeted()),
                      "(P + N) / (budget + buffer)": (PROMPT + length) / (BUDGET + BUFFER),
                      "block's temporaries MB": found.temporaries / 1e6})  # fmt: skip
    return lines


def prompts(model, rows: int, length: int = PROMPT) -> np.ndarray:
    return np.random.default_rng(0).integers(0, model.vocab_size - 64, (rows, length))


def price(params, model) -> list[dict]:
    """A block of 128 steps in which every row is cut down once, and that cutting down alone."""
    lines = []
    for policy in OPTIONS.policies.split(","):
        engine = Engine(params, model, VANILLA, SPECIAL, budgeted(policy, OPTIONS.rows))
        asked = [Request(p, 4 * BUFFER) for p in prompts(model, OPTIONS.rows, BUDGET)]
        rows, how = np.arange(OPTIONS.rows, dtype=np.int32), engine.config.eviction
        for request in asked:
            engine.submit(request)
        engine._fill()  # prompts into the rows, without decoding

        def block(engine=engine):
            state = engine.weights, engine.state, engine.cache
            engine.state, engine.cache, *log = engine.programs.block(*state, np.full(1, 99, np.int32))
            jax.block_until_ready(log)

        cut = jax.jit(functools.partial(slots.evict, how=how), donate_argnums=(0,))

        def evict(engine=engine, cut=cut, rows=rows):
            due = np.ones(OPTIONS.rows, bool)
            state = engine.state
            engine.cache, stuck = cut(engine.cache, index=state.index, draw=state.seed, due=due, rows=rows)
            jax.block_until_ready(stuck)

        block()  # compiles, and ends with rows that are full
        start = time.perf_counter()
        block()
        whole = time.perf_counter() - start
        alone = turns({"evict": evict}, 3)["evict"]
        lines.append({"policy": policy, "rows": OPTIONS.rows, "ms per step": whole / BUFFER * 1e3,
                      "evicting all rows, ms": alone * 1e3, "share %": 100 * alone / whole})  # fmt: skip
        print(table(lines[-1:]), flush=True)
    return lines


def speed(params, model) -> list[dict]:
    lines = []
    for length in map(int, OPTIONS.lengths.split(",")):
        rows = int(row_bytes(model, full(length)) / row_bytes(model, budgeted()))
        line = {"generated": length, "rows full": 1, "rows budget": rows,
                "batch ratio": row_bytes(model, full(length)) / row_bytes(model, budgeted()),
                "goal": 0.95 * (PROMPT + length) / (BUDGET + BUFFER)}  # fmt: skip
        for name, config in (("full", full(length)), ("budget", budgeted(rows=rows))):
            engine = Engine(params, model, VANILLA, SPECIAL, config)
            ask = lambda n, rows=config.rows: [Request(p, n) for p in prompts(model, rows)]
            engine.reserve(PROMPT + length)
            engine.complete(ask(2))
            engine.forget()
            start = time.perf_counter()
            done = engine.complete(ask(length))
            assert all(len(c.tokens) == length for c in done)
            line[f"tokens/s {name}"] = config.rows * length / (time.perf_counter() - start)
            line[f"cache MB {name}"] = engine.cache.nbytes / 1e6
            del engine
        line["ratio"] = line["tokens/s budget"] / line["tokens/s full"]
        lines.append(line)
        print(table(lines[-1:]), flush=True)
    return lines


def main() -> None:
    params, model = load(OPTIONS.real)
    result = provenance(OPTIONS.threads, ("jax", "jaxlib", "numpy"))
    parts = {"memory": lambda: memory(model), "price": lambda: price(params, model),
             "speed": lambda: speed(params, model)}  # fmt: skip
    for name in OPTIONS.parts.split(","):
        result[name] = parts[name]()
        print(table(result[name]), flush=True)
    options = {name: str(value) for name, value in vars(OPTIONS).items() if name not in ("out", "real")}
    write(OPTIONS.out, result | dict(options=options, model=OPTIONS.real.name))


if __name__ == "__main__":
    main()
