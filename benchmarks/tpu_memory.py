"""Rollouts under a KV budget on one TPU chip: what the real TPU compiler says the decode block takes.

    python benchmarks/tpu_memory.py [--policy=rkv] [--out=results/tpu_memory.json]

Needs libtpu (`pip install -e ".[tpu]"`), no TPU. Up to 4,608 tokens a row, budget 512, buffer 128, deaths on record.
GiB; `fits` is arguments (weights and cache) + temporaries, without the outputs, which reuse the arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from machine import provenance, table, write  # noqa: E402

from lt_jax.cache.policies import published  # noqa: E402
from lt_jax.decode import DecodeConfig  # noqa: E402
from lt_jax.decode.ahead import footprint  # noqa: E402
from lt_jax.models.presets import PRESETS  # noqa: E402

CASES = (("qwen2.5-7b", 1024, "v5p:2x2x1", 95e9 / 2**30), ("qwen2.5-1.5b", 512, "v5e:2x2", 15.75))
LENGTH, BUDGET, BUFFER = 4608, 512, 128


def measure(name: str, rows: int, topology: str, memory: float, policy: str) -> dict:
    """One line of the table."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    config = DecodeConfig(rows=rows, block_steps=BUFFER, eviction=published(policy, BUDGET, BUFFER), horizon=LENGTH,
                          implementation="plain")  # fmt: skip
    start = time.perf_counter()
    model = PRESETS[name].replace(dtype="bfloat16")
    found = footprint(model, config, LENGTH, jax.sharding.SingleDeviceSharding(device))
    gib = lambda n: n / 2**30
    return dict(
        model=name, rows=rows, chip=topology.split(":")[0], memory=memory, weights=gib(found.weights),
        cache=gib(found.cache), temporaries=gib(found.temporaries), total=gib(found.total),
        fits="yes" if gib(found.total) < memory else "no", **{"dense cache": gib(found.full_cache)},
        **{"compile s": time.perf_counter() - start},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="rkv")
    parser.add_argument("--out", type=Path, default=Path("results/tpu_memory.json"))
    options = parser.parse_args()
    rows = []
    for case in CASES:
        rows.append(measure(*case, options.policy))
        print(table(rows[-1:]), flush=True)
    print(table(rows))
    write(options.out, provenance(0, ("jax", "jaxlib", "libtpu")) | dict(policy=options.policy, lines=rows))


if __name__ == "__main__":
    main()
