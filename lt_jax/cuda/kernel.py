"""A Triton kernel as a function of JAX arrays: compiled to PTX while the program is traced, called by XLA on the GPU.

All is public API but two things: the name of the call in jaxlib ("triton_kernel_call_ffi") and `jaxlib.gpu_triton`,
which builds the message that tells the call what to launch.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import threading
import zlib

import jax

from lt_jax.errors import UserError

TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32", "int8": "i8", "uint8": "u8",
         "bool": "i1"}  # fmt: skip
# Version of PTX by compute capability, 8.7 (CUDA 12.8) for all others: Triton would write the newest that it knows, and
# the ptxas that comes with JAX may not know that. These cards are not known to 8.7.
PTX = {103: 88, 110: 90, 121: 88}
OLDEST = 80  # compute capability of the first cards with bfloat16
VERSIONS = (3, 6), (4,)  # of Triton, from the one to before the other
SHARED = {80: 163, 86: 99, 87: 163, 89: 99, 120: 99, 121: 99}  # KiB that a program may have, 227 on all others
_ONE = threading.Lock()  # Triton compiles by reading source with `ast`, which two threads at once cannot on Python 3.11
DEFAULT = 90  # compute capability to compile for in a process without a GPU: Hopper


@functools.cache
def installed() -> bool:
    """Whether there is a Triton that we know."""
    if importlib.util.find_spec("triton") is None:
        return False
    version = tuple(map(int, importlib.metadata.version("triton").split(".")[:2]))
    return VERSIONS[0] <= version < VERSIONS[1]


def here() -> bool:
    """Whether this process has Triton and runs on an NVIDIA GPU of capability 8.0 (Ampere) or later: where nothing is
    named, the kernels are then taken."""
    nvidia = jax.default_backend() == "gpu" and "cuda" in jax.devices()[0].client.platform_version
    return nvidia and capability() >= OLDEST and installed()


def interpreting() -> bool:
    """Whether kernels run under Triton's interpreter: TRITON_INTERPRET=1 was set before Triton was imported."""
    if not installed():
        return False
    import triton

    return triton.knobs.runtime.interpret


def refuse(what: str) -> None:
    """Raises a UserError if `what`, a user's name for these kernels, cannot be had in this process.

    A process on a CPU that only lowers programs for a GPU has no need to ask.
    """
    if not installed():
        raise UserError(f"{what} is made of Triton kernels, and triton 3.6 or later is not installed: "
                        'pip install "lt_jax[cuda]"')  # fmt: skip
    if not (here() or interpreting()):
        raise UserError(f"{what} is for NVIDIA GPUs from Ampere on; the platform is {jax.default_backend()} (on a CPU "
                        "the kernels can be interpreted, slowly: set TRITON_INTERPRET=1 before Python "
                        "starts)")  # fmt: skip


def capability() -> int:
    """Compute capability that kernels are compiled for: 90 for 9.0; without a GPU `DEFAULT`."""
    if jax.default_backend() != "gpu":
        return DEFAULT
    return int(jax.devices()[0].compute_capability.replace(".", ""))


def room() -> int:
    """Bytes of shared memory that a program may have on a card of `capability`."""
    return SHARED.get(capability(), 227) << 10


def call(kernel: str, operands: dict, outputs: dict, *, grid, constants: dict, scalars: dict | None = None,
         warps: int = 4, stages: int = 2, aliases: dict[str, str] | None = None):  # fmt: skip
    """Run a Triton kernel on JAX arrays; under jit, vmap (one call after another) and shard_map, without a gradient.

    Args:
        kernel: "module:function". The module imports Triton, and is imported here and not before.
        operands: name of a pointer of the kernel -> array, or None, which the kernel sees as the constant None.
        outputs: name -> `jax.ShapeDtypeStruct`. The kernel's pointers are the operands and then the outputs, in these
            orders. An output holds anything before the kernel writes it.
        grid: up to three numbers of programs.
        constants: the kernel's `tl.constexpr` arguments.
        scalars: other arguments, int or float, numbers known while tracing.
        warps, stages: how Triton compiles it.
        aliases: name of an output -> name of the operand whose memory and content it takes over; XLA copies the operand
            before if anyone still needs it.

    Returns:
        The outputs, a tuple in the order of `outputs`.

    Raises:
        ValueError: the kernel's pointers are not operands and outputs in this order.
        UserError: JAX's CUDA plugin is not installed, or the kernel takes more shared memory than the card has.
    """
    module, name = kernel.split(":")
    function = getattr(importlib.import_module(module), name)
    constants = {**constants, **{n: None for n, x in operands.items() if x is None}}
    operands = {n: x for n, x in operands.items() if x is not None}
    scalars, aliases = scalars or {}, aliases or {}
    pointers = [n for n in function.arg_names if n not in constants and n not in scalars]
    if pointers != [*operands, *outputs]:
        raise ValueError(f"{kernel} takes the pointers {pointers}, and was given {[*operands, *outputs]}")
    grid = (*grid, 1, 1)[:3]
    if interpreting():
        from lt_jax.cuda import interpret

        return interpret.call(function, operands, outputs, grid, {**scalars, **constants}, aliases)
    opaque = _message(function, operands, outputs, grid, constants, scalars, warps, stages)
    at = {n: i for i, n in enumerate(operands)}
    run = jax.ffi.ffi_call(
        "triton_kernel_call_ffi", tuple(outputs.values()), vmap_method="sequential",
        input_output_aliases={at[aliases[n]]: i for i, n in enumerate(outputs) if n in aliases},
    )  # fmt: skip
    return tuple(run(*operands.values(), opaque=opaque))


def _message(function, operands, outputs, grid, constants, scalars, warps, stages) -> bytes:
    from jaxlib import gpu_triton

    if not hasattr(gpu_triton, "TritonKernel"):
        raise UserError("Triton kernels are called through JAX's CUDA plugin, which is not installed: "
                        'pip install "lt_jax[cuda]"')  # fmt: skip
    types = {n: "*" + TYPES[x.dtype.name] for n, x in {**operands, **outputs}.items()}
    types |= {n: "fp32" if isinstance(x, float) else "i32" for n, x in scalars.items()}
    target = capability()
    made = compiled(function, tuple(types.items()), tuple(constants.items()), warps, stages, target)
    shared = made.metadata.shared
    if shared > room():
        raise UserError(f"{function.__name__} takes {shared:,} bytes of shared memory, and cards of capability "
                        f"{target / 10} have {room():,}; name 'blocked' for attention, 'plain' to decode")  # fmt: skip
    kernel = gpu_triton.TritonKernel(made.metadata.name, warps, 1, shared, made.asm["ptx"], "", target)
    arguments = [
        gpu_triton.create_scalar_parameter(scalars[n], types[n]) if n in scalars
        else gpu_triton.create_array_parameter(0, 16)
        for n in function.arg_names if n not in constants
    ]  # fmt: skip
    return zlib.compress(gpu_triton.TritonKernelCall(kernel, *grid, arguments).to_proto(function.__name__, b""))


@functools.lru_cache(None)
def compiled(function, types: tuple, constants: tuple, warps: int, stages: int, target: int):
    """What `triton.compile` makes of a kernel: `.asm["ptx"]`, `.asm["cubin"]` and `.metadata`.

    Args:
        types: (argument, Triton's name of its type) pairs of all arguments that are no constants.
        constants: (argument, value) pairs.
        target: compute capability, as `capability`.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants = dict(types), dict(constants)
    signature = {n: "constexpr" if n in constants else types[n] for n in function.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    options = dict(num_warps=warps, num_stages=stages, ptx_version=PTX.get(target, 87), enable_fp_fusion=True)
    with _ONE:
        source = ASTSource(function, signature, constants, aligned)
        made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    if getattr(made.metadata, "global_scratch_size", 0):
        raise NotImplementedError(f"{function.__name__} wants scratch memory, which XLA's call does not give")
    return made
