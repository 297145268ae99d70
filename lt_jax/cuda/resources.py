"""What a compiled kernel takes of a multiprocessor, by the assembler that comes with Triton."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import tempfile
from pathlib import Path

from lt_jax.cuda.topology import ptxas


@dataclasses.dataclass(frozen=True)
class Usage:
    """Registers of a thread, and bytes that are spilled from them to memory and back."""

    registers: int
    spilled: int


def usage(ptx: str, name: str = "sm_90a") -> Usage:
    """Of the kernel in `ptx`, assembled for the architecture `name`."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [ptxas(), "-v", f"--gpu-name={name}", source, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill", said)]
    return Usage(int(re.search(r"Used (\d+) registers", said)[1]), sum(spilled))
