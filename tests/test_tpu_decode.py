"""The decoding kernel and the block around it by the real TPU compiler, without a TPU (`tpu_backend`: needs libtpu)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from lt_jax.cache.policies import published
from lt_jax.decode import DecodeConfig
from lt_jax.decode.ahead import lower
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.models.presets import PRESETS
from tests.test_tpu import chip

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "tpu_decode.py"
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
BOUND = {"v5e", "v5p", "v6e"}  # for these the kernel waits for nothing but memory in every bfloat16 form


@pytest.fixture(scope="module", params=TOPOLOGIES)
def measured(request, tmp_path_factory):
    """The benchmark's tables for one generation: every variant compiled, in a process that reads the schedules."""
    out = tmp_path_factory.mktemp("schedule") / "out.json"
    command = [sys.executable, str(BENCHMARK), f"--chips={request.param}", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return request.param, json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.tpu_backend
def test_every_variant_compiles_without_spills_and_waits_for_memory(measured):
    name, result = measured
    lines = {line["variant"]: line for line in result["bundles"]}
    assert {"received, masks", "lengths per head", "int8, received", "heads of 64", "heads of 80"} < set(lines)
    # Products exact in float32 are six of bfloat16 each, their sums in vectors: those spill, and nobody decodes so.
    float32 = lines.pop("float32")
    assert float32["spills"] < 1000
    assert {line["spills"] for line in lines.values()} == {0}
    for variant, line in lines.items():
        if name in BOUND and "int8" not in variant:
            assert line["bound"] > 1, variant
    assert name != "v5e" or min(line["bound"] for line in lines.values()) > 1


@pytest.mark.slow
@pytest.mark.tpu_backend
def test_hardly_more_is_copied_than_is_visible(measured):
    moved = {line["variant"]: line for line in measured[1]["moved"]}
    for variant in ("bfloat16", "lengths per head", "4 kv heads of 7", "2 kv heads of 6"):
        assert max(moved[variant]["640"], moved[variant]["512 to 640"]) < 1.05, variant


@pytest.mark.slow
@pytest.mark.tpu_backend
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_block_with_the_kernel_never_copies_the_cache(name):
    """As an engine on such a chip compiles it: sums for H2O from the kernel, one call of it a layer."""
    model = PRESETS["qwen2.5-1.5b"].replace(dtype="bfloat16", layers=6, vocab_size=4096)
    config = DecodeConfig(rows=64, block_steps=128, eviction=published("h2o", 512, 128), horizon=1024)
    special = SpecialTokens(eos=0, pad=1)
    lowered, (_, _, cache) = lower(model, Scheme(method="vanilla"), special, config, chip(TOPOLOGIES[name]))
    compiled = lowered.compile()
    text, found = compiled.as_text(), compiled.memory_analysis()
    assert text.count('custom_call_target="tpu_custom_call"') >= model.layers and "lt_decode" in text
    # Two are of sampling: whether some row draws at a temperature, and whether one of those leaves tokens out.
    assert text.count(" conditional(") <= 2 < model.layers, "a choice of implementation is left in the program"
    size = lambda x: x.size * x.dtype.itemsize
    assert found.alias_size_in_bytes >= sum(map(size, jax.tree.leaves(cache))), "the cache is not donated"
    assert not copies_of(cache.k, text)
    if name != "tpu7x":  # there eviction reads the keys by another name of the same order, and that counts as copies
        assert found.temp_size_in_bytes < size(cache.k), "the cache is copied"


def copies_of(array, text: str) -> list[str]:
    """Instructions of a compiled program that make a copy of an array of this shape, those inside of others apart."""
    inner = set(re.findall(r"calls=%([\w.\-]+)", text))
    shape = ",".join(map(str, array.shape))
    made = re.compile(rf" = bf16\[{shape}\]\S* (copy\(|copy-start\(|.*calls=%copy_fusion)")
    found, where = [], ""
    for line in text.splitlines():
        if begin := re.match(r"(?:ENTRY )?%([\w.\-]+) \(", line):
            where = begin[1]
        elif where not in inner and made.search(line):
            found.append(line.strip()[:200])
    return found
