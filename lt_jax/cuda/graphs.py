"""Loops as CUDA graphs: a whole decode block is launched once, and the host takes no part in its turns.

Outside of a graph XLA asks the host at every turn of a loop whose length it does not know, and at every condition: a
copy to the host and a wait. By default it makes graphs of straight code alone. What is asked for here goes with one
program (an option of its compilation), so that neither environment nor other programs are touched.
"""

from __future__ import annotations

import os

# XLA's own list and two more: a list that is given replaces the default.
_KINDS = ("FUSION", "CUBLAS", "CUBLASLT", "CUDNN", "CUSTOM_CALL", "DYNAMIC_SLICE_FUSION", "WHILE", "CONDITIONAL")
OPTIONS = {
    "xla_gpu_enable_command_buffer": ",".join(_KINDS),
    # It makes a memcpy of a loop's plain write into a slice, and a loop with one of those is in no graph.
    "xla_disable_hlo_passes": "fusion-dynamic-memcpy-rewriter",
}


def options(wanted: bool, platform: str) -> dict[str, str] | None:
    """For `compiler_options` of `jax.jit` or `Lowered.compile`; None for other platforms than "gpu" ("cuda").

    What a user has set for it in XLA_FLAGS would be overruled by an option, and so goes before:
    `XLA_FLAGS=--xla_gpu_enable_command_buffer=` leaves all graphs out, whatever the program.
    """
    told = "xla_gpu_enable_command_buffer" in os.environ.get("XLA_FLAGS", "")
    return OPTIONS if wanted and platform in ("gpu", "cuda") and not told else None
