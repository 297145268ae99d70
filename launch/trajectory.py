"""Draws trajectories of LightThinker++, turn by turn: one HTML file, which needs no other.

    python launch/trajectory.py --logs=runs/lifetimes.jsonl --out=runs/trajectories.html
    python launch/trajectory.py --logs=runs/vanilla.jsonl,runs/rebuild.jsonl,runs/lifetimes.jsonl --out=runs/all.html

A file is the trajectories of one method, one on each line, and its name is that of the method. What has the same id in
several files is the same question, and is drawn side by side. An answer of a method without actions is a line with the
keys that each of its tokens saw: {"id": "q7", "question": "...", "visible": [31, 32, 33]}.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from launch.main import run, several
from lt_jax.errors import UserError

LOGS = flags.DEFINE_string("logs", None, "JSONL files of trajectories, with commas between them")
OUT = flags.DEFINE_string("out", None, "the HTML file that is written")
TITLE = flags.DEFINE_string("title", "", "of the page")
MOST = flags.DEFINE_integer("most", 20, "how many questions are shown; how many are left out is said", lower_bound=1)


def main(argv) -> None:
    if not several(LOGS.value or ""):
        raise UserError("--logs=FILES is needed, for example --logs=runs/lifetimes.jsonl")
    if OUT.value is None:
        raise UserError("--out=FILE is needed, for example --out=runs/trajectories.html")
    if Path(OUT.value).suffix != ".html" or Path(OUT.value).is_dir():
        raise UserError(f"--out={OUT.value}: give the HTML file to write, such as runs/trajectories.html")
    from lt_jax.evaluation import trajectory_page as page

    methods = page.read_all(several(LOGS.value))
    left_out = page.write(methods, OUT.value, TITLE.value, MOST.value)
    shown = sum(map(len, methods.values()))
    omitted = f"; {left_out} questions are left out, see --most" if left_out else ""
    print(f"wrote {OUT.value}: {shown} trajectories of {len(methods)} method{'s' * (len(methods) != 1)}{omitted}")


if __name__ == "__main__":
    run(main)
