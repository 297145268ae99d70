"""For NVIDIA GPUs: Triton kernels inside JAX programs, CUDA graphs, and the compiler for a card that is not there.

    out, lse = call("lt_jax.attention.triton_train_kernels:forward", dict(q=q, ...), dict(out=..., lse=...), ...)

Triton compiles a kernel to PTX while the program is traced, and XLA calls it (`jax.ffi`). Pallas is not used: its
Triton side is deprecated since JAX 0.11, and its Mosaic side runs on Hopper and later cards alone and is interpreted on
a CPU only in part. Nor is jax-triton: it is 40 lines of public API, and would tie us to its versions. Nor are kernels
shipped as PTX: head counts, sizes and rules of a model are constants of its kernels, so that there are too many.

Without a GPU the same kernels run under Triton's interpreter (`interpret.py`) where TRITON_INTERPRET=1 was set before
Python started, and compile for a card (`topology.py`, `resources.py`).
"""

from __future__ import annotations

from lt_jax.cuda.kernel import call, capability, here, installed, interpreting, refuse, room

__all__ = ["call", "capability", "here", "installed", "interpreting", "refuse", "room"]
