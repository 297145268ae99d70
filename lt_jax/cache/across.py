"""What devices that share the heads of a row, and the vocabulary, have to agree on.

`axis` is the name of their axis of the mesh inside of a `shard_map`; None is one device, which agrees with itself.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def summed(x: jax.Array, axis: str | None) -> jax.Array:
    """The sum over the devices."""
    return x if axis is None else lax.psum(x, axis)


def largest(x: jax.Array, axis: str | None) -> jax.Array:
    """The maximum over the devices."""
    return x if axis is None else lax.pmax(x, axis)


def gathered(x: jax.Array, axis: str | None) -> jax.Array:
    """What each device has, [devices, ...]. For a few numbers a row: everybody gets all of it."""
    return x[None] if axis is None else lax.all_gather(x, axis)


def number(axis: str | None) -> jax.Array:
    """Which of the devices this is, [] int32."""
    return jnp.int32(0) if axis is None else lax.axis_index(axis)


def count(axis: str | None) -> int:
    """How many there are."""
    return 1 if axis is None else lax.axis_size(axis)
