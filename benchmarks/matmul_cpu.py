"""Matrix products of decoding on this CPU: the packed native form beside XLA's and torch's, and the machine's limits.

    python benchmarks/matmul_cpu.py [--out=results/matmul_cpu.json] [--repeats=20] [--threads=2]

Real-model shapes (hidden 896) go through enough different weights that no cache holds them, as in decoding; the small
model's shapes (hidden 256) stay in the cache. All forms of a shape take turns within one run, and the fastest turn of
each counts, so that a busy moment of the machine hits all alike. Limits: reading memory (`read_bandwidth.cc`) and a
large float32 product (torch).
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/matmul_cpu.json"))
parser.add_argument("--repeats", type=int, default=20)
parser.add_argument("--threads", type=int, default=2)
OPTIONS = parser.parse_args()
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: OPTIONS.threads])
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import torch  # noqa: E402
from machine import matmul_rate, provenance, read_bandwidth, turns, write  # noqa: E402

from lt_jax import native  # noqa: E402

SHAPES = ((896, 9728, "bfloat16"), (4864, 896, "bfloat16"), (256, 2048, "float32"), (1024, 256, "float32"))
ROWS = (1, 8, 32, 64)
CACHE_BYTES = 32 * 2**20


def chain(product):
    """All weights one after the other in one compiled call; each product depends on the one before."""
    def run(x, weights):
        carry = jnp.float32(0)
        for w in weights:
            carry = product(x + carry * 0, w)[0, 0]
        return carry
    return jax.jit(run)


def measure(k: int, n: int, dtype: str) -> list[dict]:
    size = k * n * jnp.dtype(dtype).itemsize
    large = size > CACHE_BYTES / 8
    different = -(-3 * CACHE_BYTES // size) if large else 1
    drawn = [jax.random.normal(jax.random.key(i), (k, n), dtype) for i in range(different)]
    packed = [native.prepack(w) for w in drawn]
    if dtype == "bfloat16":
        floats = [w.astype(jnp.float32) for w in drawn]
        tensors = [torch.randn(n, k).to(torch.bfloat16) for _ in drawn]
    else:
        floats, tensors = drawn, [torch.randn(n, k) for _ in drawn]
    packed, floats, tensors = (x * (1 if large else 50) for x in (packed, floats, tensors))
    count = len(packed)
    own = chain(lambda x, w: native.matmul(x, w, implementation="native"))
    xla = chain(lambda x, w: x @ w)
    lines = []
    for rows in ROWS:
        x = jnp.ones((rows, k))
        t = torch.ones(rows, k, dtype=tensors[0].dtype)

        def by_torch(t=t):
            with torch.inference_mode():
                for w in tensors:
                    torch.nn.functional.linear(t, w)

        forms = {
            "native": lambda x=x: own(x, packed).block_until_ready(),
            "xla_float32": lambda x=x: xla(x, floats).block_until_ready(),
            f"torch_{dtype}": by_torch,
        }
        seconds = turns(forms, OPTIONS.repeats)
        for form, total in seconds.items():
            each = total / count
            line = dict(rows=rows, k=k, n=n, weights=dtype, form=form, microseconds=round(each * 1e6, 1),
                        gflops=round(2 * rows * k * n / each / 1e9, 1))
            item = 4 if form == "xla_float32" else jnp.dtype(dtype).itemsize
            line["gbytes_per_s"] = round(k * n * item / each / 1e9, 1)
            lines.append(line)
            print(line, flush=True)
    return lines


def main():
    torch.set_num_threads(OPTIONS.threads)
    native.choose("native")
    result = provenance(OPTIONS.threads, ("jax", "jaxlib", "torch"))
    before = read_bandwidth(OPTIONS.threads, OPTIONS.repeats)
    lines = [line for shape in SHAPES for line in measure(*shape)]
    limits = dict(read_bytes_per_s=max(before, read_bandwidth(OPTIONS.threads, OPTIONS.repeats)),
                  matmul_flops_per_s=matmul_rate(OPTIONS.repeats))
    print("reads {:.1f} GB/s, multiplies {:.1f} GFLOP/s".format(*(value / 1e9 for value in limits.values())))
    write(OPTIONS.out, result | dict(limits=limits, lines=lines))


if __name__ == "__main__":
    main()
