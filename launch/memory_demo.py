"""The demo of LightThinker++: trajectories with their actions, and what is visible in each turn, as a page to look at.

    python launch/memory_demo.py --config=configs/memory_demo.py        (or: make memory-demo)

It prints what each method costs on the same problems, and writes the trajectories and a page that shows them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_collections import config_flags

from launch.main import resolved, run, several

CONFIG = config_flags.DEFINE_config_file("config", None, "the config of the demo: configs/memory_demo.py")


def main(argv) -> None:
    config = resolved(CONFIG, example="configs/memory_demo.py")
    from lt_jax import memory_demo

    values = {**config, "logs": several(config.logs)}
    found = memory_demo.show(memory_demo.MemoryDemoConfig(**values))
    print("\n" + memory_demo.table(found))
    print(f"\nopen {config.out}/report.html")


if __name__ == "__main__":
    run(main)
