"""Attention of one layer on this CPU: `native` and `blocked` beside `dense`, XLA's and torch's plain causal attention.

    python benchmarks/attention_cpu.py [--lengths=1024,2048,4096,8192,16384] [--depths=32,64] [--repeats=5]

One row of LightThinker: a prompt of 64 tokens, thoughts of 40, 9 gists and an output token each; 8 query heads, 2 kv
heads. The causal columns compute something else (every key stays visible): they are what training without compression
costs. All forms of a length take turns within one run and the median counts, so that a busy machine hits all alike;
CPU milliseconds (both cores added) are given too, because they suffer less from it. `of peak` is the rate of the
matmuls in the visited blocks of `native` and `blocked` over that of one large float32 matmul in the same run.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from lt_jax.attention import attention, blocks, planned  # noqa: E402
from tests.attention_rows import lightthinker  # noqa: E402

HERE = pathlib.Path(__file__).parent
HEADS, GROUPS = 8, 2
ROW = 64, 40, 9
OURS = "native", "blocked"
MATMULS = {"forward": 2, "both": 7}  # matmuls of a visited pair of blocks: forward; forward and backward


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384")
    parser.add_argument("--depths", default="32,64", help="head sizes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dense-to", type=int, default=4096, help="longest row for dense (10 GB at 8,192)")
    parser.add_argument("--causal-to", type=int, default=4096, help="longest row for XLA's causal (8 GB at 8,192)")
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "results" / "attention_cpu.json")
    return parser.parse_args()


def jax_form(name, call, arrays, plan):
    """(temporary MiB of both, run forward, run forward and backward) of `call(q, k, v, plan)`, compiled."""
    q, k, v, weight = arrays
    loss = lambda q, k, v, weight, plan: jnp.vdot(call(q, k, v, plan), weight)
    forward = jax.jit(call).lower(q, k, v, plan).compile()
    both = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v, weight, plan).compile()
    memory = both.memory_analysis().temp_size_in_bytes / 2**20
    return dict(name=name, memory=memory, forward=lambda: jax.block_until_ready(forward(q, k, v, plan)),
                both=lambda: jax.block_until_ready(both(q, k, v, weight, plan)))


def torch_form(arrays):
    try:
        import torch
    except ImportError:
        return None
    q, k, v, weight = (torch.tensor(np.asarray(x)).transpose(1, 2).contiguous() for x in arrays)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    repeat = lambda x: x.repeat_interleave(HEADS // GROUPS, 1)
    call = lambda: torch.nn.functional.scaled_dot_product_attention(q, repeat(k), repeat(v), is_causal=True)

    def forward():
        with torch.no_grad():
            call()

    return dict(name="torch_causal", memory=None, forward=forward,
                both=lambda: torch.autograd.grad(call(), leaves, weight))


def take_turns(forms, repeats):
    """Median wall and least CPU milliseconds of each form, forward alone and forward + backward."""
    wall = {(form["name"], part): [] for form in forms for part in MATMULS}
    cpu = {key: [] for key in wall}
    for turn in range(repeats + 1):
        for form in forms:
            for part in MATMULS:
                start, busy = time.perf_counter(), time.process_time()
                form[part]()
                if turn:
                    wall[form["name"], part].append(1e3 * (time.perf_counter() - start))
                    cpu[form["name"], part].append(1e3 * (time.process_time() - busy))
    return {key: statistics.median(x) for key, x in wall.items()}, {key: min(x) for key, x in cpu.items()}


def peak_rate(repeats):
    """GFLOP/s of a 2048 x 2048 x 2048 float32 matmul: on the clock, and per core-second."""
    x, run = jnp.ones((2048, 2048)), jax.jit(lambda x: x @ x)
    form = dict(name="", forward=lambda: run(x).block_until_ready(), both=lambda: None)
    wall, cpu = take_turns([form], repeats)
    return 2 * 2048**3 / 1e6 / wall["", "forward"], 2 * 2048**3 / 1e6 / cpu["", "forward"]


def measure(length, depth, args):
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.standard_normal((1, length, n, depth)), jnp.float32)
              for n in (HEADS, GROUPS, GROUPS, HEADS)]
    life = lightthinker(length, parts=ROW)
    plans = {name: jax.jit(functools.partial(planned, implementation=name))(life) for name in OURS}
    forms = [jax_form(name, attention, arrays, plan) for name, plan in plans.items()]
    if length <= args.dense_to:
        forms.append(jax_form("dense", attention, arrays, planned(life, "dense")))
    if length <= args.causal_to:
        causal = lambda q, k, v, _: jax.nn.dot_product_attention(q, k, v, is_causal=True)
        forms.append(jax_form("jax_causal", causal, arrays, None))
    forms += [form for form in [torch_form(arrays)] if form]
    wall, cpu = take_turns(forms, args.repeats)
    peak, peak_core = peak_rate(args.repeats)
    plan = plans["blocked"]
    share = float(blocks.share(plan))
    lines = []
    for form in forms:
        line = dict(length=length, depth=depth, form=form["name"], temporary_mib=form["memory"])
        for part in MATMULS:
            key = form["name"], part
            line[part] = dict(wall_ms=wall[key], cpu_ms=cpu[key])
            if form["name"] in OURS:
                pairs = HEADS * int(plan.n_active.sum()) * plan.block_q * plan.block_k
                gflop = MATMULS[part] * 2 * depth * pairs / 1e9
                line[part] |= dict(gflops=1e3 * gflop / wall[key], of_peak=1e3 * gflop / wall[key] / peak,
                                   of_peak_per_core_second=1e3 * gflop / cpu[key] / peak_core)
        if form["name"] in OURS:
            line |= dict(visited_share=share, block_q=plan.block_q, block_k=plan.block_k, peak_gflops=peak)
        lines.append(line)
    return lines


def table(lines):
    print(f"{'tokens':>7} {'form':<13} {'forward ms':>11} {'fwd+bwd ms':>11} {'(cpu ms)':>9} "
          f"{'blocked is':>11} {'native is':>10} {'temp MiB':>9}   ours: visited, GFLOP/s, of peak (per core-second)")
    ours = {(line["form"], line["length"]): line["both"]["wall_ms"] for line in lines if line["form"] in OURS}
    for line in lines:
        both, memory = line["both"], line["temporary_mib"]
        times = [f"{both['wall_ms'] / ours[form, line['length']]:.1f} x" for form in reversed(OURS)]
        more = ""
        if line["form"] in OURS:
            more = (f"   {line['visited_share']:.1%}, {both['gflops']:.0f}, {both['of_peak']:.0%} "
                    f"({both['of_peak_per_core_second']:.0%})")
        print(f"{line['length']:>7} {line['form']:<13} {line['forward']['wall_ms']:>11.1f} {both['wall_ms']:>11.1f} "
              f"{both['cpu_ms']:>9.1f} {times[0]:>11} {times[1]:>10} "
              f"{'' if memory is None else format(memory, '.1f'):>9}{more}")


def main():
    args = options()
    lines = []
    for depth in map(int, args.depths.split(",")):
        rows = []
        for length in map(int, args.lengths.split(",")):
            rows += measure(length, depth, args)
        print(f"\nhead size {depth}")
        table(rows)
        lines += rows
    git = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, cwd=HERE).stdout.strip()
    sources = "../lt_jax/attention", "../lt_jax/native", "../lt_jax/lifetimes.py"
    changed = git("status", "--porcelain", "--", *sources, __file__)
    torch = sys.modules.get("torch")
    report = dict(
        command=" ".join(["python benchmarks/attention_cpu.py", *sys.argv[1:]]),
        commit=git("rev-parse", "--short", "HEAD"), changed_since=bool(changed),
        date=datetime.date.today().isoformat(), python=platform.python_version(), jax=jax.__version__,
        torch=torch and torch.__version__, machine=platform.machine(), cores=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0], heads=HEADS, kv_heads=GROUPS,
        row=dict(prompt=ROW[0], thought=ROW[1], gists=ROW[2], output=1), lines=lines,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
