"""Deaths recorded under R-KV for the attention section, [Hkv, S], written to a file: on the CPU, beside what the card
is busy with. Of a row of the greatest length; a shorter row's are its beginning."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from benchmarks.gpu_sides.side import given  # noqa: E402
from benchmarks.tpu_layouts import recorded  # noqa: E402

TASK = given()
found = np.asarray(recorded(TASK.sizes.record, TASK.sizes.kv_heads).death)[0]
made = Path(TASK.scratch) / "recorded.tmp.npy"
np.save(made, found)
made.rename(made.with_name("recorded.npy"))
