"""The demo: teaches a small model to compress its thoughts and compares it with the same model that keeps everything.

    python launch/demo.py --config=configs/demo.py        (or: make demo)

It prints a table for each suite of problems, and writes reports with pictures under runs/demo.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_collections import config_flags

from launch.main import resolved, run

CONFIG = config_flags.DEFINE_config_file("config", None, "the config of the demo: configs/demo.py")


def main(argv) -> None:
    config = resolved(CONFIG, example="configs/demo.py")
    from lt_jax.data.pipeline import PipelineConfig
    from lt_jax.demo import DemoConfig, demo
    from lt_jax.evaluation.job import SuiteConfig
    from lt_jax.training.config import OptimizerConfig, TrainConfig

    began = time.monotonic()
    values = dict(config)
    values["train"] = TrainConfig(**{**config.train, "optim": OptimizerConfig(**config.train.optim)})
    values["batches"] = PipelineConfig(**config.batches)
    values["suites"] = {name: SuiteConfig(name=name, **suite) for name, suite in config.suites.items()}
    values["decode"] = dict(config.decode)
    demo(DemoConfig(**values))
    print(f"\nthe whole demo took {time.monotonic() - began:.0f} s; open {config.out}/main/report.html")


if __name__ == "__main__":
    run(main)
