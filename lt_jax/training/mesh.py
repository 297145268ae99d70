"""Devices in a mesh, and the one table that says which mesh axis a logical axis lies on.

Shapes and logical axes come from `lt_jax.models.params`; shardings of parameters, optimizer state, batches and
activations all come from here. Mesh axes are of type Auto: the compiler places what is not placed by hand.
"""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lt_jax.attention import Split
from lt_jax.errors import UserError
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig
from lt_jax.training.config import MeshConfig, TrainConfig

AXES = ("data", "fsdp", "tensor", "context")

# logical axis -> mesh axis (or axes, or None for "not split")
RULES = {
    "layers": None,
    "embed": "fsdp",
    **dict.fromkeys(parameters.CUT, "tensor"),
    "rows": ("data", "fsdp"),
    "tokens": "context",
    None: None,
}


def make(config: MeshConfig, devices: list | None = None) -> Mesh:
    """A mesh over all devices, or those given.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh: {describe(sizes)}; each is 1 or more, and one at most is -1 (all devices left)")
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if math.prod(sizes) != len(devices):
        raise UserError(f"mesh: {describe(sizes)} does not fill the {len(devices)} devices there are")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def describe(sizes) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """The sharding of an array with these logical axes."""
    return NamedSharding(mesh, PartitionSpec(*(RULES[axis] for axis in logical)))


def split(mesh: Mesh) -> Split | None:
    """How attention lies on the mesh; None on a single device."""
    return Split(mesh, RULES["rows"], RULES["kv_heads"]) if mesh.size > 1 else None


def ways(mesh: Mesh, logical: str | None) -> int:
    """Into how many parts the mesh cuts a logical axis."""
    axes = RULES[logical] or ()
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))


def check_model(mesh: Mesh, model: DecoderConfig) -> None:
    """Raises UserError, naming the parameter and the mesh axis, if the mesh does not divide the model."""
    for name in ("heads", "kv_heads"):
        if getattr(model, name) % ways(mesh, name):
            raise UserError(_does_not_divide(f"model.{name}", getattr(model, name), name, mesh))

    def check(path, spec):
        for size, axis in zip(spec.shape, spec.axes, strict=True):
            if size % ways(mesh, axis):
                name = ".".join(str(part.key) for part in path)
                raise UserError(_does_not_divide(f"parameter {name} {list(spec.shape)}: axis {axis}", size, axis, mesh))

    jax.tree_util.tree_map_with_path(check, parameters.specs(model))


def _does_not_divide(what: str, size: int, logical: str, mesh: Mesh) -> str:
    would = [n for n in range(1, min(size, mesh.size) + 1) if size % n == 0]
    axis = RULES[logical]
    return (
        f"mesh: {axis}={ways(mesh, logical)} does not divide {what} of {size}; "
        f"on {mesh.size} devices {axis} could be {', '.join(map(str, would))}"
    )


def check_batch(mesh: Mesh, rows: int, length: int, config: TrainConfig) -> None:
    """Raises UserError if a batch of [rows, length] cannot be cut into microbatches and over the mesh."""
    if rows % config.accumulate:
        raise UserError(f"train.accumulate is {config.accumulate}, which does not divide the {rows} rows of a batch")
    piece, parts = rows // config.accumulate, ways(mesh, "rows")
    if piece % parts:
        raise UserError(
            f"mesh: data x fsdp = {parts} does not divide the {piece} rows of a microbatch; "
            f"batches of {parts * config.accumulate} rows, or a multiple of that, would do"
        )
    if length % ways(mesh, "tokens"):
        raise UserError(f"mesh: context={ways(mesh, 'tokens')} does not divide rows of {length} tokens")


def param_shardings(mesh: Mesh, model: DecoderConfig) -> dict:
    """The parameter tree as shardings."""
    check_model(mesh, model)
    return jax.tree.map(lambda spec: sharding(mesh, *spec.axes), parameters.specs(model))


def like_params(mesh: Mesh, tree, shardings: dict):
    """Shardings for a tree that holds arrays named and shaped like parameters, as optimizer states do.

    Args:
        tree: arrays or shapes.
        shardings: of the parameters.

    Returns:
        `tree` as shardings: a leaf whose path ends with a parameter's name is laid out like it, others are replicated.
    """
    table = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)}
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(path, leaf):
        names = _names(path)
        for start in range(len(names)):
            found = table.get(names[start:])
            if found is not None and len(found.spec) == np.ndim(leaf):
                return found
        return everywhere

    return jax.tree_util.tree_map_with_path(place, tree)


def _names(path) -> tuple[str, ...]:
    return tuple(part.key for part in path if isinstance(part, jax.tree_util.DictKey))


def share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """Which part of every batch a process feeds, and of how many: (part, parts).

    A process feeds the rows that its devices hold. Where `tensor` or `context` lie over processes, several hold the
    same rows: they have the same part, and must be fed the same, for none sees what another was given.

    Args:
        process: its index, None for this one.

    Raises:
        UserError: two processes hold some rows together and some not, so that there are no such parts.
    """
    held = _held(mesh)
    parts = sorted(set(held.values()))
    if sum(map(len, parts)) != len(set().union(*parts)) or len({len(part) for part in parts}) > 1:
        raise UserError(
            f"mesh: {describe(mesh.devices.shape)} over {len(held)} processes gives two of them a part of their rows "
            "in common; let tensor x context divide the devices of a process, or be a multiple of them"
        )
    return parts.index(held[jax.process_index() if process is None else process]), len(parts)


def _held(mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """Process -> which of the blocks that the mesh cuts the rows of a batch into its devices hold, ascending."""
    held: dict[int, set[int]] = {}
    for block, devices in enumerate(mesh.devices.reshape(ways(mesh, "rows"), -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(block)
    return {process: tuple(sorted(blocks)) for process, blocks in held.items()}


def place_batch(mesh: Mesh, batch: dict) -> dict:
    """This process's part of a batch (see `share`), whole rows -> global arrays, rows and tokens cut over the mesh."""
    where = {name: sharding(mesh, *batch_axes(part)) for name, part in batch.items()}
    if jax.process_count() == 1:
        return jax.device_put(batch, where)
    parts, blocks = share(mesh)[1], _held(mesh)[jax.process_index()]

    def place(where, own):
        size = len(own) // len(blocks)

        def read(index):
            block = (index[0].start or 0) // size
            first = blocks.index(block) * size
            return own[first : first + size][:, *index[1:]]

        return jax.make_array_from_callback((parts * len(own), *own.shape[1:]), where, read)

    return jax.tree.map(place, where, batch)


def batch_axes(part) -> tuple[str | None, ...]:
    """Logical axes of an array of a batch: [B], [B, S], [B, Hkv, S] or [B, L, Hkv, S]; one head for all is not cut."""
    heads = None if part.ndim > 2 and part.shape[-2] == 1 else "kv_heads"
    return {1: ("rows",), 2: ("rows", "tokens"), 3: ("rows", heads, "tokens"), 4: ("rows", "layers", heads, "tokens")}[
        part.ndim
    ]
