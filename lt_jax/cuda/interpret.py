"""Kernels under Triton's interpreter, on NumPy arrays in this process: for tests on a machine without a GPU.

The interpreter wants tensors of torch; `_Array` gives it what it asks of them. Two of its functions are replaced
where it differs from a GPU: it multiplies the bit patterns of bfloat16 numbers, and cuts float32 down to bfloat16 where
hardware rounds to the nearest. And two where it loses more than half of its time: it prepares Triton's language anew at
every call inside a kernel, and computes integers twice to find an overflow. (Triton 3.6 besides does not take a tensor
of one number for a number under NumPy 2.) It runs the programs of a grid one after another: it does not show races.
"""

from __future__ import annotations

import dataclasses
import functools
import threading

import jax
import ml_dtypes
import numpy as np

from lt_jax.cuda.kernel import TYPES

_ALONE = threading.Lock()  # the interpreter keeps its place in global variables, and a mesh calls from several threads


def call(function, operands: dict, outputs: dict, grid, constants: dict, aliases: dict):
    """As `cuda.call`, by a callback to the host; every number that is no array is in `constants`."""
    _mend()

    def run(*arrays):
        given = dict(zip(operands, arrays, strict=True))
        # Whatever was there before: what a kernel forgets to write must show.
        fresh = lambda x: np.full(x.shape, np.nan if np.issubdtype(x.dtype, np.inexact) else 77).astype(x.dtype)
        bf16 = lambda x: fresh(jax.ShapeDtypeStruct(x.shape, np.float32)).astype(x.dtype)
        blank = lambda x: bf16(x) if x.dtype == ml_dtypes.bfloat16 else fresh(x)
        out = {n: np.array(given[aliases[n]]) if n in aliases else blank(x) for n, x in outputs.items()}
        own = {n: _Array(np.array(x, order="C")) for n, x in given.items()} | {n: _Array(x) for n, x in out.items()}
        with _ALONE:
            function[grid](**own, **constants)
        return tuple(out.values())

    return tuple(jax.pure_callback(run, tuple(outputs.values()), *operands.values(), vmap_method="sequential"))


class _Array:
    """A C-contiguous array, which the kernel writes into, with what the interpreter asks of a tensor."""

    def __init__(self, array: np.ndarray | None):
        self.array = array

    dtype = property(lambda self: _Name(TYPES[self.array.dtype.name]))
    shape = property(lambda self: self.array.shape)
    size = lambda self: self.array.shape
    stride = lambda self: tuple(step // self.array.itemsize for step in self.array.strides)
    data_ptr = lambda self: self.array.ctypes.data
    storage_offset = lambda self: 0
    untyped_storage = lambda self: _Storage(self.array)
    new_empty = lambda self, n, device=None: _Array(None)

    def set_(self, storage, offset, size, stride):
        self.array = storage.array


class _Name(str):
    """A type's name; Triton takes anything whose text ends in it."""


class _Storage:
    def __init__(self, array: np.ndarray):
        self.array = array

    data_ptr = lambda self: self.array.ctypes.data
    cpu = lambda self: self
    copy_ = lambda self, other: None  # it is the same memory


@functools.cache
def _mend() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    def numbers(x):
        if x.dtype.scalar == tl.bfloat16:
            return (x.data.astype(np.uint32) << 16).view(np.float32)
        return x.data.astype(np.float32)

    def dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        return interpreter.TensorHandle(np.matmul(numbers(a), numbers(b)) + d.data, d.dtype.scalar)

    convert = interpreter._convert_float

    def rounded(x, source, target, rounding):
        if source == tl.float32 and target == tl.bfloat16 and rounding is None:
            return np.ascontiguousarray(x).astype(ml_dtypes.bfloat16).view(np.uint16)
        return convert(x, source, target, rounding)

    prepare = functools.cache(interpreter._patch_lang)

    def inner(self, *operands, **named):
        prepare(self.fn)
        return self.rewrite()(*operands, **named)

    interpreter.InterpretedFunction.__call__ = inner
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched
    interpreter.InterpreterBuilder.create_dot = dot
    interpreter._convert_float = rounded
