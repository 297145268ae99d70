"""The demo of Sparse-RL: a small model learns from its own responses, with every key kept and within a KV budget.

    python launch/rl_demo.py --config=configs/rl_demo.py        (or: make rl-demo)

It prints a table of what each arm has learned, and writes a report with the curves of all arms. It may be stopped at
any time; the same command goes on.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_collections import config_flags

from launch.main import STOPPED, compile_cache, resolved, run
from launch.settings import arms_config

CONFIG = config_flags.DEFINE_config_file("config", None, "the config of the demo: configs/rl_demo.py")


def main(argv) -> None:
    config = resolved(CONFIG, example="configs/rl_demo.py")
    compile_cache(config.run.compile_cache)
    from lt_jax import rl_demo

    began = time.monotonic()
    found = rl_demo.compare(arms_config(config))
    if found is None:
        sys.exit(STOPPED)
    print("\n" + rl_demo.table(found))
    print(f"\nthe whole demo took {time.monotonic() - began:.0f} s; open {config.out}/report.html")


if __name__ == "__main__":
    run(main)
