"""The engine over a mesh: rows over some of its axes, kv heads and the vocabulary over another.

The whole decode block, prefill and the copying of rows run in a `shard_map`. Rows do not touch each other, so devices
with different rows exchange nothing, and a device whose rows are done does not wait inside of a block. Devices that
share a row's heads add up what the output projection, the MLP and the embedding make of their parts, and agree on the
next token from a few numbers a row (`cache.across`, `sample.py`): neither keys nor logits are ever gathered.

A row of the engine is row `row % own` of part `row // own`, `own` rows a part. What a device has:

    weights     q|k|v of its heads joined, its columns of gate and up, its rows of o and down, its part of the
                vocabulary in embedding and head (padded, so that it divides); norms whole
    state       its rows; of `barred` its part of the vocabulary
    cache       its rows and heads; births and deaths too, where each head has its own
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lt_jax import cache as slots
from lt_jax.attention import Split
from lt_jax.cache import KVCache
from lt_jax.cuda import graphs
from lt_jax.decode import block, control
from lt_jax.decode.config import DecodeConfig
from lt_jax.decode.control import Rules, State
from lt_jax.decode.sample import LANES, Settings
from lt_jax.decode.weights import layer_form, tables_form
from lt_jax.errors import UserError
from lt_jax.models import lora
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig, round_up
from lt_jax.models.vocabulary import pad

COLUMNS, LINES = ("qkv", "gate_up"), ("o", "down")  # matrices of a layer that are cut by outputs, and by inputs


@dataclasses.dataclass(frozen=True)
class Spread:
    """How an engine of `rows` rows lies on the devices; `split` None is one device.

    Raises:
        UserError: the mesh does not divide the rows or the model.
    """

    split: Split | None
    rows: int
    model: DecoderConfig

    def __post_init__(self):
        if self.rows % self.parts:
            raise UserError(
                f"decode.rows is {self.rows}, which {self.parts} devices cannot share evenly; a multiple of "
                f"{self.parts} would do"
            )
        for name in ("heads", "kv_heads", "intermediate"):
            if getattr(self.model, name) % self.ways:
                raise UserError(
                    f"{self.ways} devices cannot share model.{name} of {getattr(self.model, name)} evenly; "
                    f"use fewer devices for a row (tensor), and more rows"
                )

    @property
    def parts(self) -> int:
        """Into how many parts the rows are cut."""
        return 1 if self.split is None else self.split.parts

    @property
    def ways(self) -> int:
        """Devices that share the heads of a row."""
        return 1 if self.split is None or self.split.heads is None else self.split.mesh.shape[self.split.heads]

    @property
    def axis(self) -> str | None:
        """The axis that cuts heads and vocabulary; None where it has one device."""
        return self.split.heads if self.ways > 1 else None

    @property
    def own(self) -> int:
        """Rows of a part."""
        return self.rows // self.parts

    @property
    def vocabulary(self) -> int:
        """Columns of the logits, on all devices together."""
        return round_up(self.model.vocab_padded, LANES * self.ways)

    def part(self, row: int) -> int:
        """The part that has a row."""
        return row // self.own

    # What one device computes.

    def programs(self, rules: Rules, config: DecodeConfig, cache: KVCache) -> Programs:
        """What the engine calls, compiled; `cache` says what arrays there are."""
        few = lambda n: None if n is None else max(1, n // self.parts)
        own = dataclasses.replace(config, rows=self.own, closers=few(config.closers), evictors=few(config.evictors))
        fixed = dict(model=self._local(self.model), rules=dataclasses.replace(rules, axis=self.axis))
        step = functools.partial(block.decode_block, **fixed, config=own)
        read = functools.partial(block.prefill, **fixed)
        copy = lambda cache, origin, rows, count: slots.copied(cache, origin, rows, count[0])
        weights, state, held, rows = self.arguments(cache)
        take = self._mapped(step, (weights, state, held, rows), (state, held, rows, rows, rows))

        def prefill(weights_, state_, cache_, feed, left, seed, how, there, *, final, compress, evict):
            body = functools.partial(read, final=final, compress=compress, evict=evict)
            body = body if self.parts == 1 else functools.partial(_where_there, body)
            given = (there,) if self.parts > 1 else ()
            specs = (weights, state, held) + (rows,) * (4 + len(given))
            own = (weights_, state_, cache_, feed, left, seed, how, *given)
            return self._mapped(body, specs, (state, held))(*own)

        platform = jax.default_backend() if self.split is None else self.split.mesh.devices.flat[0].platform
        silent = lambda state, rows: dataclasses.replace(state, alive=state.alive.at[rows].set(False))
        return Programs(
            block=jax.jit(take, donate_argnums=(1, 2), compiler_options=graphs.options(config.graphs, platform)),
            prefill=jax.jit(prefill, static_argnames=("final", "compress", "evict"), donate_argnums=(1, 2)),
            copy=jax.jit(self._mapped(copy, (held, rows, rows, rows), held), donate_argnums=0),
            grow=jax.jit(slots.grown, static_argnums=1, out_shardings=self.placed(held)),
            redate=jax.jit(slots.redated, donate_argnums=0, out_shardings=self.placed(held)),
            clear=jax.jit(slots.cleared, donate_argnums=0, out_shardings=self.placed(held)),
            silence=jax.jit(silent, donate_argnums=0, out_shardings=self.placed(state)),
        )

    def _mapped(self, body: Callable, given, made) -> Callable:
        if self.split is None:
            return body
        return jax.shard_map(body, mesh=self.split.mesh, in_specs=given, out_specs=made, check_vma=False)

    # Where things lie.

    def arguments(self, cache: KVCache) -> tuple:
        """Specs of weights, state, a cache with the arrays of this one, and of numbers by row or part."""
        return self._weights(), self._state(), self._cache(cache), self._rows()

    def placed(self, specs):
        """Specs as shardings; None on one device."""
        if self.split is None:
            return None
        of = lambda spec: NamedSharding(self.split.mesh, spec)
        return jax.tree.map(of, specs, is_leaf=lambda x: isinstance(x, PartitionSpec))

    def idle(self, how: Settings, top_logps: int) -> State:
        """`control.idle`, nothing barred."""
        return control.idle(how, jnp.zeros((self.rows, self.vocabulary), bool), top_logps)

    def state(self, how: Settings, top_logps: int) -> State:
        """`idle`, on its devices from the start."""
        return jax.jit(self.idle, static_argnums=1, out_shardings=self.placed(self._state()))(how, top_logps)

    def empty(self, make: Callable[[], KVCache]) -> KVCache:
        """The cache that `make` makes, on its devices from the start."""
        if self.split is None:
            return make()
        return jax.jit(make, out_shardings=self.placed(self._cache(jax.eval_shape(make))))()

    def weights(self, params: dict, form: str) -> dict:
        """`decoding_form`, each device's part on it: gathered and joined once, from wherever training has them.

        One layer after the other: in one program XLA would begin with many at once, and what is in the making of each
        would lie beside the result.
        """
        tables, layer = self.making
        made = tables({name: x for name, x in params.items() if name != "layers"}, form)
        one = lambda number: jax.block_until_ready(layer(params["layers"], np.int32(number), form))
        return made | {"layers": tuple(map(one, range(self.model.layers)))}

    @functools.cached_property
    def making(self) -> tuple[Callable, Callable]:
        """The jitted (params without layers, form) -> all but the layers, and (layers, which, form) -> one of them, of
        `weights`; compiled once, however often the weights change."""
        made = self._weights()
        layer = self.placed(made.pop("layers")[0])
        return (
            jax.jit(self.tables, static_argnums=1, out_shardings=self.placed(made)),
            jax.jit(self.layer, static_argnums=2, out_shardings=layer),
        )

    def form(self, params: dict, form: str) -> dict:
        """`weights` as a pure function."""
        layers = params["layers"]
        rest = {name: x for name, x in params.items() if name != "layers"}
        one = lambda number: self.layer(layers, np.int32(number), form)
        return self.tables(rest, form) | {"layers": tuple(map(one, range(self.model.layers)))}

    def tables(self, params: dict, form: str) -> dict:
        """`tables_form`, of parameters without layers."""
        if self.split is None:
            return tables_form(params, self.model, form)
        params, axes = lora.merge_rows(params, self.model), {"embed": 0, "head": 1}
        params = {name: pad(x, self.vocabulary, axes[name]) if name in axes else x for name, x in params.items()}
        given, made = self._params(self.model, parameters.CUT), self._weights()
        del made["layers"]
        part = functools.partial(tables_form, config=self._local(self.model), form=form)
        return self._mapped(part, ({name: given[name] for name in params},), made)(params)

    def layer(self, layers: dict, number: jax.Array, form: str) -> dict:
        """`layer_form`: adapters are merged by each device into its part."""
        part = functools.partial(layer_form, config=self._local(self.model), form=form)
        given = self._params(self.model, parameters.CUT)["layers"]
        return self._mapped(part, (given, PartitionSpec()), self._weights()["layers"][0])(layers, number)

    def params(self) -> dict | None:
        """Shardings of parameters from which nothing has to be sent about to make `weights`; None on one device. The
        vocabulary is whole where it does not divide as it is."""
        even = self.model.vocab_padded % self.ways == 0
        cut = (axis for axis in parameters.CUT if even or axis != "vocab")
        return self.placed(self._params(self.model, frozenset(cut)))

    def _params(self, model: DecoderConfig, cut: Collection[str]) -> dict:
        spec = lambda spec: PartitionSpec(*(self.axis if axis in cut else None for axis in spec.axes))
        return jax.tree.map(spec, parameters.specs(model))

    def _local(self, model: DecoderConfig) -> DecoderConfig:
        """The model as one device sees it."""
        return model.replace(heads=model.heads // self.ways, kv_heads=model.kv_heads // self.ways)

    def _rows(self) -> PartitionSpec:
        return PartitionSpec(None if self.split is None else self.split.rows)

    def _state(self) -> State:
        rows = self._rows()
        specs = {field.name: rows for field in dataclasses.fields(State)}
        return State(**specs | {"how": Settings(*[rows] * 5), "barred": PartitionSpec(*rows, self.axis)})

    def _cache(self, cache: KVCache) -> KVCache:
        """Specs of a cache with the arrays that `cache` has."""
        rows, none = self._rows()[0], None
        each = self.axis if cache.birth.shape[2] > 1 else none
        apart = lambda x, *axes: None if x is None else PartitionSpec(*axes)
        by_head = lambda x, axis: apart(x, none, rows, axis)
        shared = cache.record is not None and cache.record.shape[2] == 1
        return KVCache(
            k=by_head(cache.k, self.axis), v=by_head(cache.v, self.axis), birth=by_head(cache.birth, each),
            death=by_head(cache.death, each), length=apart(cache.length, none, rows),
            mark=by_head(cache.mark, self.axis), received=by_head(cache.received, self.axis),
            queries=by_head(cache.queries, self.axis), asked=apart(cache.asked, rows),
            record=apart(cache.record, rows, none, none if shared else self.axis),
        )  # fmt: skip

    def _weights(self) -> dict:
        """Specs of what `decoding_form` makes."""
        columns, lines, whole = PartitionSpec(None, self.axis), PartitionSpec(self.axis, None), PartitionSpec()
        layer = {"attn_norm": whole, "mlp_norm": whole}
        layer |= {name: whole for name in ("q_norm", "k_norm") if self.model.qk_norm}
        layer |= {name: {"w": columns} for name in COLUMNS} | {name: {"w": lines} for name in LINES}
        if self.model.qkv_bias:
            layer["qkv"] = {"w": columns, "b": PartitionSpec(self.axis)}
        out = {"embed": lines, "final_norm": whole, "layers": (layer,) * self.model.layers}
        return out if self.model.tie_embeddings else out | {"head": columns}

    # What the host hands to each device.

    def lined(self, rows: Sequence[int]) -> tuple[list[int | None], np.ndarray]:
        """Places in `rows` in the order in which devices take them, None where a part has none of these rows, and
        which parts have any, [parts] bool. All parts that have some have the same number of them."""
        own = [[place for place, row in enumerate(rows) if self.part(row) == part] for part in range(self.parts)]
        most = max(map(len, own))
        return [place for part in own for place in part or [None] * most], np.asarray([bool(part) for part in own])


@dataclasses.dataclass(frozen=True)
class Programs:
    """What the engine calls. Rows are numbered within their part, but for `redate`, `clear` and `silence`.

    Attributes:
        block: (weights, state, cache, enough [parts]) -> what `block.decode_block` returns.
        prefill: (weights, state, cache, feed, left, seed, how, there [parts]) -> state, cache; the arrays of rows are
            those of all parts one behind the other. A part that is not `there` has nothing to read.
        copy: (cache, origin [B], rows [B], count [parts]) -> cache, as `cache.copied` in each part.
        grow, redate, clear: as `cache.grown`, `cache.redated` and `cache.cleared`.
        silence: (state, rows) -> state, those rows not alive.
    """

    block: Callable
    prefill: Callable
    copy: Callable
    grow: Callable
    redate: Callable
    clear: Callable
    silence: Callable


def _where_there(body: Callable, weights, state, cache, *given):
    """`body` where this device has rows to read: a loop of one turn or none, since a loop works in place."""
    *given, there = given
    turn = lambda carry: (jnp.zeros_like(carry[0]), *body(weights, carry[1], carry[2], *given))
    return lax.while_loop(lambda carry: carry[0], turn, (there[0], state, cache))[1:]


def over_devices(devices: Sequence | None = None, tensor: int = 1) -> Split | None:
    """The devices of this process (or those given) as a mesh for an engine; None for a single one. Of several processes
    each has an engine of its own, with requests of its own.

    Args:
        tensor: devices that share the heads of a row.

    Raises:
        UserError: they cannot be had in groups of `tensor`.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    if tensor < 1 or len(devices) % tensor:
        raise UserError(f"tensor is {tensor}, which does not divide the {len(devices)} devices there are")
    if len(devices) == 1:
        return None
    mesh = jax.sharding.Mesh(np.asarray(devices).reshape(-1, tensor), ("rows", "tensor"))
    return Split(mesh, ("rows",), "tensor")
