"""A process that runs command lines one after another, as if each were started for itself, without starting JAX anew.

Reads lines of JSON from stdin: argv, a list whose first is a script or the name of a command that an installation
brings; given, what the command reads from its stdin. Answers each with a line: code, out, error.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import runpy
import sys
import tomllib
import traceback
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags  # noqa: F401 - the flags that it has of its own

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def start(program: str) -> None:
    if program in INSTALLED:
        module, _, function = INSTALLED[program].partition(":")
        getattr(importlib.import_module(module), function)()
    else:
        sys.path.insert(0, str(Path(program).parent))  # as Python does
        runpy.run_path(program, run_name="__main__")


def run(argv: list[str], given: str = "") -> dict:
    known, path, arguments = set(flags.FLAGS), list(sys.path), sys.argv
    out, error, sys.stdin, sys.argv, code = io.StringIO(), io.StringIO(), io.StringIO(given), argv, 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            start(argv[0])
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            code = 1
            traceback.print_exc()
    for name in set(flags.FLAGS) - known:  # the next script defines its own
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    sys.path[:], sys.argv = path, arguments
    return {"code": code, "out": out.getvalue(), "error": error.getvalue()}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    app.define_help_flags()
    asked, answers = sys.stdin, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints past Python is no answer
    for line in asked:
        print(json.dumps(run(**json.loads(line))), file=answers, flush=True)
