"""The heap of this process, after compiling."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Gives what was freed back to the system. Compiling takes and frees some hundred MB for each large program in
    small pieces, which glibc would keep (malloc_trim(3)); where the C library has no such call, nothing is done.

    To be called after compiling, not between steps: pages that a step needs again would have to be had again.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
