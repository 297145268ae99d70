"""Compiles the library at first use, into the user's cache folder, and hands its functions to XLA.

The file's name is a hash of the source, the compiler, its flags, the processor and jaxlib, so that a home shared by
several machines never serves one machine's instructions to another. Where the source lies has no part in it: a clone
and an installation of the same version share the file.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile

import jax
import jaxlib

SOURCES = ("library.cc", "attention.h", "flash.h", "matmul.h", "pool.h", "vector.h")
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-O3", "-std=gnu++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno", "-DNDEBUG", "-w")
TARGETS = {
    "lt_matmul": "LtMatmul",
    "lt_attend": "LtAttend",
    "lt_flash_forward": "LtFlashForward",
    "lt_flash_backward": "LtFlashBackward",
}
SECONDS = 600  # a compiler that takes longer hangs

log = logging.getLogger("lt_jax")


class Unavailable(Exception):
    """Why there is no library on this machine, in one line."""


@functools.cache
def reason() -> str | None:
    """None where the library is loaded and registered, else why it is not. Compiles it at the first call."""
    try:
        library = ctypes.CDLL(str(compiled()))
        for target, symbol in TARGETS.items():
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu")
    except Unavailable as error:
        return str(error)
    except OSError as error:
        return f"the compiled library could not be loaded: {error}"
    return None


def compiled(folder: pathlib.Path | None = None) -> pathlib.Path:
    """The library's file, compiled if it is not there yet.

    Args:
        folder: where it is kept; None is ~/.cache/lt_jax/native.

    Raises:
        Unavailable: no compiler, it fails, or the folder cannot be written.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise Unavailable(f"no C++ compiler was found (looked for {', '.join(COMPILERS)})")
    here = pathlib.Path(__file__).parent
    command = [compiler, *FLAGS, *_tuning()]
    version = _run([compiler, "--version"])
    parts = [*command, version, jaxlib.__version__, _processor(), *((here / name).read_text() for name in SOURCES)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    try:
        folder = folder or pathlib.Path.home() / ".cache" / "lt_jax" / "native"
        path = folder / f"{key}.so"
        if path.exists():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as room:
            made = pathlib.Path(room) / "library.so"
            _run([*command, f"-I{jax.ffi.include_dir()}", str(here / SOURCES[0]), "-o", str(made)])
            os.replace(made, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise Unavailable(f"the library could not be written: {error}") from error
    return path


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the compiler {command[0]} did not run: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise Unavailable(f"the compiler {command[0]} failed: {next((x for x in lines if 'error' in x), lines[-1])}")
    return done.stdout


def _tuning() -> tuple[str, ...]:
    # Compilers name "this very machine" differently by architecture.
    return ("-mcpu=native",) if platform.machine().lower() in ("arm64", "aarch64") else ("-march=native",)


def _processor() -> str:
    """What -march=native looks at."""
    info = pathlib.Path("/proc/cpuinfo")
    wanted = ("model name", "flags", "Features", "CPU part")
    lines = info.read_text().splitlines() if info.exists() else []
    return "\n".join([platform.machine(), platform.processor(), sys.platform,
                      *sorted({line for line in lines if line.startswith(wanted)})])
