"""The decode block compiled for a machine that need not be there: does it fit, and what does it take?"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lt_jax.attention import Split
from lt_jax.cuda import graphs
from lt_jax.decode.config import DecodeConfig
from lt_jax.decode.request import Request
from lt_jax.decode.setup import empty_cache, rules_of, settings_of
from lt_jax.decode.spread import Spread
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes that the compiled decode block takes on one device.

    Attributes:
        weights, cache: of the arguments; the cache with its books and records.
        arguments, outputs, aliased, temporaries: of the compiler's own analysis; aliased outputs reuse arguments.
        full_cache: what a cache would take that holds every key of `length` tokens of each row.
    """

    weights: int
    cache: int
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    full_cache: int

    @property
    def total(self) -> int:
        """Arguments, temporaries and those outputs that reuse no argument."""
        return self.arguments + self.temporaries + self.outputs - self.aliased


def lower(
    model: DecoderConfig, scheme: Scheme, special: SpecialTokens, config: DecodeConfig, sharding=None, platforms=None,
    split: Split | None = None,
):  # fmt: skip
    """The decode block lowered from shapes alone; `compile()` it for the device of `sharding`.

    Args:
        model: weights are taken to be stored in its dtype.
        config: `implementation` is "plain", "pallas", "triton", or None: what an engine on such a device does, but for
            an NVIDIA GPU: its kernels must be named, as None takes them in a process on one only. Not "native": what
            those kernels take is decided on this machine's CPU.
        sharding: of all arguments, for example a `SingleDeviceSharding` of a topology's device; None is the default.
        platforms: names, such as ("cuda",), to lower for without a device; None is the sharding's.
        split: a mesh of devices to lay everything out on, see `spread.py`, in place of `sharding`.

    Returns:
        `jax.stages.Lowered`, and (weights, state, cache) as `jax.ShapeDtypeStruct`s.

    Raises:
        UserError: native kernels are asked for.
    """
    if config.implementation == "native":
        raise UserError("DecodeConfig.implementation is 'native', which cannot be lowered ahead of time; 'plain' can")
    rules, spread = rules_of(model, scheme, special, config), Spread(split, config.rows, model)
    how = settings_of([Request(())] * config.rows, config, rules)
    cache = jax.eval_shape(lambda: empty_cache(model, config, rules))
    made = (
        jax.eval_shape(lambda p: spread.form(p, "plain"), parameters.abstract(model, model.dtype)),
        jax.eval_shape(lambda: spread.idle(how, config.top_logps)), cache,
        jax.ShapeDtypeStruct((spread.parts,), jnp.int32),
    )  # fmt: skip
    shaped = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    if split is None:
        made = jax.tree.map(lambda x: shaped(x, sharding), made)
    else:
        made = jax.tree.map(shaped, made, spread.placed(spread.arguments(cache)))
    traced = spread.programs(rules, config, cache).block.trace(*made)
    return traced.lower(lowering_platforms=platforms), made[:3]


def footprint(model: DecoderConfig, config: DecodeConfig, length: int, sharding=None) -> Footprint:
    """Compiles the block of a vanilla model under `config` and reads the compiler's memory analysis.

    Args:
        length: tokens of a row in the full cache that this is compared with.
    """
    special = SpecialTokens(eos=0, pad=1)
    lowered, (weights, _, cache) = lower(model, Scheme(method="vanilla"), special, config, sharding)
    platform = jax.default_backend() if sharding is None else next(iter(sharding.device_set)).platform
    found = lowered.compile(compiler_options=graphs.options(config.graphs, platform)).memory_analysis()
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    full = 2 * model.layers * config.rows * model.kv_heads * length * model.head_dim * jnp.dtype(model.dtype).itemsize
    return Footprint(
        size(weights), size(cache), found.argument_size_in_bytes, found.output_size_in_bytes,
        found.alias_size_in_bytes, found.temp_size_in_bytes, full,
    )  # fmt: skip
