"""Attention over a mesh: every device works on its own rows and kv heads, and nothing is exchanged.

Kernels cannot be cut up by XLA, and loops over lists of blocks it cuts up badly. So both the plan and the attention run
in a `shard_map`: rows over some axes of the mesh, kv heads (with their query heads) over another. All tokens of a row
are together on a device; axes that neither names hold copies.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from lt_jax.attention.blocks import BlockPlan
from lt_jax.lifetimes import Lifetimes


@dataclasses.dataclass(frozen=True)
class Split:
    """mesh; rows: its axes that cut the rows; heads: its axis that cuts kv heads, or None."""

    mesh: Mesh
    rows: tuple[str, ...]
    heads: str | None = None

    @property
    def parts(self) -> int:
        """Into how many parts the rows are cut."""
        return math.prod(self.mesh.shape[axis] for axis in self.rows)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """The plans of all devices, one behind the other along axis 0; `plan.rows` counts one device's rows."""

    plan: BlockPlan
    split: Split = dataclasses.field(metadata={"static": True})


def planned(lifetimes: Lifetimes, split: Split, build: Callable[[Lifetimes], BlockPlan]) -> SplitPlan:
    """`build` on every device, for the lifetimes of its own rows (and heads, for per-head deaths)."""
    if lifetimes.death.ndim == 3 and lifetimes.death.shape[1] == 1:  # one for all heads: nothing to cut
        lifetimes = dataclasses.replace(lifetimes, death=lifetimes.death[:, 0])
    per_head = lifetimes.death.ndim == 3
    rows = PartitionSpec(split.rows)
    death = PartitionSpec(split.rows, split.heads) if per_head else rows
    specs = dataclasses.replace(
        lifetimes, death=death, since=lifetimes.since if lifetimes.since is None else rows,
        gist=lifetimes.gist if lifetimes.gist is None else rows,
    )  # fmt: skip
    out = _plan_specs(jax.eval_shape(build, _of_one_device(lifetimes, split)), split, per_head)
    local = jax.shard_map(build, mesh=split.mesh, in_specs=(specs,), out_specs=out, check_vma=False)
    return SplitPlan(local(lifetimes), split)


def _of_one_device(lifetimes: Lifetimes, split: Split) -> Lifetimes:
    """Shapes of the part that one device has."""
    rows = split.parts
    heads = split.mesh.shape[split.heads] if split.heads else 1

    def cut(x):
        shape = (x.shape[0] // rows, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape if x.ndim == 2 else (shape[0], shape[1] // heads, shape[2]), x.dtype)

    return jax.tree.map(cut, lifetimes)


def attention(q, k, v, plan: SplitPlan, local: Callable) -> jax.Array:
    """`local(q, k, v, plan)` on every device, for its own rows and heads; q [B, S, H, D], k, v [B, S, Hkv, D]."""
    split = plan.split
    heads = PartitionSpec(split.rows, None, split.heads)
    per_head = plan.plan.unseen.ndim == 3
    specs = (heads, heads, heads, _plan_specs(plan.plan, split, per_head))
    return jax.shard_map(local, mesh=split.mesh, in_specs=specs, out_specs=heads, check_vma=False)(q, k, v, plan.plan)


def _plan_specs(plan, split: Split, per_head: bool):
    """Lists are per row, or per row and head; so lie those of a device together, and only it reads them."""
    if not per_head:
        return jax.tree.map(lambda _: PartitionSpec(split.rows), plan)
    axes = split.rows if split.heads is None else (*split.rows, split.heads)
    specs = jax.tree.map(lambda _: PartitionSpec(axes), plan)
    return dataclasses.replace(specs, unseen=PartitionSpec(split.rows, split.heads))
