"""A kernel for tests of how kernels are called."""

import triton
import triton.language as tl


@triton.jit
def scaled_sum(x, y, out, factor, N: tl.constexpr, BLOCK: tl.constexpr):
    """out = factor * (x + y) of N numbers; y may be None."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(x + at, mask=at < N).to(tl.float32)
    if y is not None:
        total += tl.load(y + at, mask=at < N).to(tl.float32)
    tl.store(out + at, (total * factor).to(out.dtype.element_ty), mask=at < N)
