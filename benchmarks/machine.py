"""What the benchmarks share: the machine's limits, where a result came from, and taking turns."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def read_bandwidth(threads: int, repeats: int = 10) -> float:
    """Bytes/s of reading memory, by the C++ loop beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "read_bandwidth.so"
        source = Path(__file__).with_name("read_bandwidth.cc")
        flags = ["-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
        subprocess.run(["g++", *flags, str(source), "-o", str(made)], check=True)
        library = ctypes.CDLL(str(made))
    library.read_bandwidth.restype = ctypes.c_double
    library.read_bandwidth.argtypes = (ctypes.c_size_t, ctypes.c_int, ctypes.c_int)
    return max(library.read_bandwidth(2**30, n, repeats) for n in range(1, threads + 1))


def matmul_rate(repeats: int = 5, size: int = 2048) -> float:
    """FLOP/s of a large float32 product (torch)."""
    import torch

    x = torch.ones(size, size)
    return 2 * size**3 / turns({"product": lambda: torch.matmul(x, x)}, repeats)["product"]


def turns(forms: dict, repeats: int) -> dict[str, float]:
    """Seconds of the fastest call of each form, after one that is not counted. They take turns, so that a busy moment
    of the machine hits all alike, each when the last one's threads have gone to sleep."""
    best = dict.fromkeys(forms, float("inf"))
    for turn in range(repeats + 1):
        for name, run in forms.items():
            time.sleep(0.05)
            start = time.perf_counter()
            run()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def provenance(threads: int, packages: tuple[str, ...]) -> dict:
    """Command, commit (None where git is not there or does not know it), versions and machine, for the JSON of a
    result."""
    git = lambda *a: subprocess.run(["git", *a], capture_output=True, text=True, check=False).stdout.strip()
    commit = git("rev-parse", "HEAD") or None if shutil.which("git") else None
    # But for results, which a benchmark writes itself, some after every part of it.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    names = [row.split(":")[1].strip() for row in open("/proc/cpuinfo") if row.startswith("model name")]
    return dict(
        command=shlex.join(["python", *sys.argv]),
        commit=commit,
        uncommitted=None if commit is None else bool(changed),
        versions={"python": platform.python_version(), **{name: _version(name) for name in packages}},
        machine=dict(processor=(names or [platform.processor()])[0], threads=threads, load=os.getloadavg()[0]),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def write(path: Path, result: dict) -> None:
    """JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(result, indent=1) + "\n")
    scratch.rename(path)
    print(f"written to {path}")


def table(rows: list[dict]) -> str:
    """One table of all rows; a column that a row lacks is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    number = lambda v: f"{v:.2f}" if 0 < v < 100 and v % 1 else f"{v:.0f}"
    show = lambda v: "" if v is None else v if isinstance(v, str) else number(v)
    cells = [names] + [[show(row.get(name)) for name in names] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    pad = lambda cell, i: cell.rjust(widths[i]) if i else cell.ljust(widths[i])
    return "\n".join("  ".join(pad(cell, i) for i, cell in enumerate(row)) for row in cells)
