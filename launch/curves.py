"""Draws the curves of several training runs side by side: one HTML file, which needs no other.

    python launch/curves.py --runs=runs/dense,runs/paper,runs/replay --out=runs/curves.html
    python launch/curves.py --runs=runs/paper-0,runs/paper-1,runs/replay-0,runs/replay-1 --seeds --out=runs/curves.html

A run is a folder that launch/train.py trained in, also one that is still being trained. Of each, metrics.jsonl is read,
and config.json to say in which settings the runs differ. With --seeds, runs whose names differ only in a number at the
end (-0, -seed0 or _seed0) are drawn in one colour: their mean, and faintly each of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from launch.main import run, several
from lt_jax.errors import UserError

RUNS = flags.DEFINE_string("runs", None, "the folders of the runs, with commas between them")
OUT = flags.DEFINE_string("out", None, "the HTML file that is written")
SEEDS = flags.DEFINE_bool("seeds", False, "whether runs that differ in their seed alone are one colour")


def main(argv) -> None:
    if OUT.value is None:
        raise UserError("--out=FILE is needed, for example --out=runs/curves.html")
    if Path(OUT.value).suffix != ".html" or Path(OUT.value).is_dir():
        raise UserError(f"--out={OUT.value}: give the HTML file to write, such as runs/curves.html")
    from lt_jax.evaluation import curves

    folders = several(RUNS.value or "")
    curves.write(folders, OUT.value, SEEDS.value)
    print(f"wrote {OUT.value}: {len(folders)} run{'s' * (len(folders) != 1)}")


if __name__ == "__main__":
    run(main)
