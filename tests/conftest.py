"""Fixtures shared by all tests: the compile cache, and the real checkpoint for tests marked `real_model`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("libtpu"):  # where there is no TPU it says so in five lines, in every process
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

CACHE = Path.home() / ".cache" / "lt_jax"
MAKER = Path(__file__).parents[2] / "shared" / "tools" / "real_model.py"


def pytest_configure(config):
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


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
