"""Shared by all tests: the compile cache, compiled programs freed in time, and the checkpoint of `real_model` tests."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

if importlib.util.find_spec("libtpu"):  # where there is no TPU it says so in five lines, in every process
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

CACHE = Path.home() / ".cache" / "lt_jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "jax"))
# Small programs too: there are thousands of them, and compiling them again took a third of the time.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Each of them runs a few times on small arrays, and so compiling it is what a test costs. Without the optimizations of
# LLVM, without fusions that are built in MLIR, and in one piece, that costs a tenth. `XLA_FLAGS= make test` compiles as
# users do, and so do `make test-newest` and `make test-tpu`.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
                                   "--xla_cpu_parallel_codegen_split_count=1")  # fmt: skip

import jax  # noqa: E402 - after the environment, which the processes that tests start get too

MAKER = Path(__file__).parents[2] / "shared" / "tools" / "real_model.py"


# Every program compiled for a CPU takes tens to hundreds of memory maps, and JAX keeps it for as long as the process
# lives. The whole suite in one process would pass the 65,530 maps that Linux gives a process (vm.max_map_count), and
# then XLA dies of a failing mmap: "Segmentation fault". So programs are let go after every module, and within one as
# soon as they take `MOST` maps; what is needed again comes out of the compile cache.
MAPS = Path("/proc/self/maps")  # where there is none, no such limit is known
MOST = 15_000
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", lambda keep: None)  # of glibc


def free_programs() -> None:
    jax.clear_caches()
    gc.collect()
    TRIM(0)  # under the Makefile's settings of malloc the heap never shrinks by itself: 2 GB on top of the real model's


def pytest_collection_modifyitems(items):
    """The files with most to do come first, so that two processes which take whole files end at about the same time."""
    work = Counter()
    for item in items:
        work[item.path] += 20 if item.get_closest_marker("slow") or item.get_closest_marker("real_model") else 1
    items.sort(key=lambda item: -work[item.path])


def pytest_collection_finish():
    """Tracing makes objects by the million, among which the collector of cycles would look through everything that was
    imported, some hundred times a minute."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def programs_of_a_module():
    yield
    free_programs()


@pytest.fixture(autouse=True)
def programs_of_a_test():
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST:
        free_programs()


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Folder of Qwen2.5-Coder-0.5B-Instruct, made on first use where the tool that makes it is at hand.

    Fails where it is not: a test that guards a promise on the real model must not pass by absence. Without the model,
    deselect such tests with `-m "not real_model"`.
    """
    folder = CACHE / "qwen2.5-coder-0.5b-instruct"
    if not (folder / "model.safetensors").is_file():
        if not MAKER.is_file():
            pytest.fail(f'{folder} has no model.safetensors; put the checkpoint there or use -m "not real_model"')
        made = subprocess.run([sys.executable, str(MAKER), str(folder)], capture_output=True, text=True)
        if made.returncode:
            why = made.stderr.strip().splitlines()[-1:] or ["no reason given"]
            pytest.fail(f'the real model could not be made ({why[0]}); use -m "not real_model" to go on without it')
    return folder
