"""What the recipes of Sparse-RL take on the chips that their headers name, as the real TPU compiler says.

    python benchmarks/tpu_rl_memory.py [--only=1_5b,1b] [--out=results/tpu_rl_memory.json]

Needs libtpu (`pip install -e ".[tpu]"`), no TPU. The config files as they are, with attention by Pallas: the learner's
two programs, the decode block, and the making of the sampler's weights are compiled for the mesh of a run; GiB per
chip, for the longest rows. The reading of prompts is not compiled here: it needs the arrays of an engine.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import runpy
import sys
import time
from pathlib import Path

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jax.experimental import topologies  # noqa: E402
from machine import provenance, table, write  # noqa: E402

from launch.settings import rl_config  # noqa: E402
from lt_jax.cache.policies import published  # noqa: E402
from lt_jax.decode import DecodeConfig, Sampling  # noqa: E402
from lt_jax.decode.ahead import lower  # noqa: E402
from lt_jax.decode.spread import Spread  # noqa: E402
from lt_jax.layout.scheme import Scheme  # noqa: E402
from lt_jax.layout.special import SpecialTokens  # noqa: E402
from lt_jax.models.presets import PRESETS  # noqa: E402
from lt_jax.rl import memory, sharing  # noqa: E402
from lt_jax.rl.rollout import most_new  # noqa: E402
from lt_jax.training import mesh as meshes  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CASES = {  # the config: model, chips
    "llama3_2_1b": ("llama-3.2-1b", "v5e:2x4", 15.75),
    "qwen2_5_1_5b": ("qwen2.5-1.5b", "v5e:2x4", 15.75),
    "qwen2_5_3b": ("qwen2.5-3b", "v5p:2x2x1", 95e9 / 2**30),
    "qwen2_5_7b": ("qwen2.5-7b", "v5p:2x2x2", 95e9 / 2**30),
}
ABSENT = ("validation", "prefill")  # the recipes hold no problems out; see above


def estimated(config, model, mesh) -> memory.Estimate:
    """`memory.estimate` from shapes alone, but for the reading of prompts."""
    rollout, how = config.rollout, config.rollout.eviction
    new = most_new(config, 0)
    length = min(rollout.max_prompt + new, model.max_positions)
    decoding = DecodeConfig(
        rows=rollout.rows or rollout.responses, capacity=rollout.max_prompt + rollout.max_new + 1,
        block_steps=rollout.block_steps, sampling=Sampling(rollout.temperature),
        eviction=published(how["policy"], how["budget"], how["buffer"]),
    )  # fmt: skip
    split, own = meshes.split(mesh), (model, Scheme(method="vanilla"), SpecialTokens(eos=0, pad=1))
    block, (weights, _, cache) = lower(*own, decoding, split=split)
    _, (_, _, dense) = lower(*own, dataclasses.replace(decoding, eviction=None), split=split)
    rows = sharing.longest(config, length, new, meshes.ways(mesh, "rows"))
    learner = memory.learning(config, model, (1,), rows, None, mesh)
    return memory.Estimate(
        state=learner.state, reference=learner.reference, sampler=memory.sizes(weights), cache=memory.sizes(cache),
        cache_dense=memory.sizes(dense), batch=learner.batch, validation=0, prefill=0,
        rollout=memory.more(block.compile()),
        making=memory.making(config, model, Spread(split, decoding.rows, model), "plain", mesh),
        logps=0 if learner.logps is None else memory.more(learner.logps), update=memory.more(learner.update),
    )  # fmt: skip


def measure(name: str) -> dict:
    """One line of the table."""
    preset, topology, room = CASES[name]
    values = runpy.run_path(str(ROOT / f"configs/sparse_rl_{name}.py"))["get_config"]()
    values.model.path, values.data.path = "DIR", "problems.jsonl"
    config = rl_config(values)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, attention="pallas"))
    mesh = meshes.make(config.train.mesh, topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    began = time.perf_counter()
    found = estimated(config, PRESETS[preset].replace(dtype=config.dtype), mesh)
    print(found.describe(), flush=True)
    parts = {name: size / 2**30 for name, size in dataclasses.asdict(found).items() if name not in ABSENT}
    most = found.most / 2**30
    return dict(config=name, chips=topology, room=room, **parts, most=most, fits="yes" if most < room else "no",
                **{"compile s": time.perf_counter() - began})  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--out", type=Path, default=Path("results/tpu_rl_memory.json"))
    options = parser.parse_args()
    rows = []
    for name in options.only.split(","):
        rows.append(measure(name))
        print(table(rows[-1:]), flush=True)
        write(options.out, provenance(0, ("jax", "jaxlib", "libtpu")) | dict(lines=rows))
    print(table(rows))


if __name__ == "__main__":
    main()
