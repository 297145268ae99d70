"""A benchmark that nobody has run for a while still runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_native import needs_native

FOLDER = Path(__file__).parents[1] / "benchmarks"


@needs_native
def test_matmul_cpu_measures_every_form():
    pytest.importorskip("torch")
    small = "import matmul_cpu as m; m.ROWS = (1,); lines = m.measure(32, 64, 'float32')"
    code = f"{small}; print(sorted(line['form'] for line in lines))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(FOLDER)!r}); {code}", "--repeats=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["['native', 'torch_float32', 'xla_float32']"], done.stderr[-2000:]
