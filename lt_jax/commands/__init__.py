"""The commands that an installation brings. `lt-train` starts launch/train.py, and the others start theirs.

In a clone, the scripts and the configs are in `launch/` and `configs/`, beside the library. An installed package has
both in this folder (see setup.py), so that it adds nothing but `lt_jax` to site-packages.
"""

from __future__ import annotations

import functools
import runpy
import sys
from pathlib import Path


def _run(script: str) -> None:
    here = Path(__file__).resolve().parent
    sys.path.insert(0, str(here if (here / "launch").is_dir() else here.parents[1]))
    runpy.run_module(f"launch.{script}", run_name="__main__", alter_sys=True)


train = functools.partial(_run, "train")
generate = functools.partial(_run, "generate")
evaluate = functools.partial(_run, "evaluate")
convert = functools.partial(_run, "convert")
curves = functools.partial(_run, "curves")
rl_demo = functools.partial(_run, "rl_demo")
synthesize = functools.partial(_run, "synthesize")
agent = functools.partial(_run, "agent")
trajectory = functools.partial(_run, "trajectory")
