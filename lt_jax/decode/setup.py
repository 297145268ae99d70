"""What an engine is made of, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax

from lt_jax import cache as slots
from lt_jax import cuda, native
from lt_jax.cache import KVCache
from lt_jax.cache.kv_cache import SLOTS
from lt_jax.decode.block import slack
from lt_jax.decode.config import DecodeConfig
from lt_jax.decode.control import Rules
from lt_jax.decode.request import Request
from lt_jax.decode.sample import Settings, settings
from lt_jax.errors import UserError
from lt_jax.layout.closing import closing
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.models.config import DecoderConfig

# By `DecodeConfig.implementation`.
ATTENTION = {None: None, "native": "native", "plain": "blocks", "pallas": "pallas", "triton": "triton"}


def products(config: DecodeConfig, several: bool = False) -> str:
    """The form of the matrix products, "native" or "plain".

    Args:
        several: devices of a mesh, whose parts of the weights are not packed.

    Raises:
        UserError: no such implementation, or one that this machine does not have.
    """
    if config.implementation not in ATTENTION:
        known = ", ".join(name for name in ATTENTION if name)
        raise UserError(f"DecodeConfig.implementation is {config.implementation!r}; it is one of {known}")
    if several and config.implementation == "native":
        raise UserError("DecodeConfig.implementation is 'native', which is for one device; on a mesh 'plain' would do")
    if config.implementation == "triton":
        cuda.refuse("DecodeConfig.implementation 'triton'")
        return "plain"
    if config.implementation != "pallas":
        return "plain" if several else native.choose(config.implementation)
    platform = jax.default_backend()
    if platform not in ("cpu", "tpu"):  # on a CPU it is interpreted, for tests
        raise UserError(f"DecodeConfig.implementation is 'pallas', which is for TPUs; the platform is {platform}")
    return "plain"


def rules_of(
    model: DecoderConfig,
    scheme: Scheme,
    special: SpecialTokens,
    config: DecodeConfig,
    tokenize: Callable | None = None,
) -> Rules:
    """What the compiled functions need to know of scheme, token table and config."""
    return Rules(
        close=closing(scheme, special, tokenize),
        gist_rule=scheme.gist_rule,
        eos=special.eos,
        stop=config.stop,
        max_thought=config.max_thought,
        capacity=config.most_keys,
        never=never(scheme, special, config),
        top_logps=config.top_logps,
        attention=ATTENTION[config.implementation],
        eviction=config.evicts,
        row_limit=min(model.max_positions, config.recorded or model.max_positions),
        books=1 if config.evicts is None else model.layers * model.kv_heads,
    )


def never(scheme: Scheme, special: SpecialTokens, config: DecodeConfig) -> tuple[int, ...]:
    """Ids that must not be sampled: gists, output token and padding, which only the engine may feed, if at all. What
    ends a row or a thought may be sampled, whatever else it is: anllm's anchor is a gist, and padding is often EOS."""
    ids = {*special.gists, special.output, special.pad} - {None}
    sampled = {special.eos, *config.stop, *(special.gists[:1] if scheme.method == "anllm" else ())}
    return tuple(sorted(ids - sampled))


def empty_cache(model: DecoderConfig, config: DecodeConfig, rules: Rules, need: int | None = None) -> KVCache:
    """The cache of an engine, without keys.

    Args:
        need: slots that rows need for now, see `capacity`; None for all that they may come to need.
    """
    if rules.eviction is None:
        room = capacity(config, rules, need)
        return slots.empty(model.layers, config.rows, model.kv_heads, room, model.head_dim, model.dtype)
    room = config.most_keys + slack(rules)
    return slots.empty_evicting(model, config.rows, room, rules.eviction, config.recorded, rules.close is not None)


def capacity(config: DecodeConfig, rules: Rules, need: int | None = None) -> int:
    """Slots of a row: the first of 256, 384, 512, 768, 1024 ... that has `need`, or all that a row may come to need.

    A row is given what it needs when it needs it, so that one which puts its thoughts away takes less memory, and not
    only fewer keys. There are few sizes, because the decode block is compiled for each. Under an eviction the budget
    says how many there are.
    """
    most = -(-(config.most_keys + slack(rules)) // SLOTS) * SLOTS
    return most if need is None or rules.eviction is not None else min(size_for(need), most)


def size_for(need: int) -> int:
    """The first of 256, 384, 512, 768, 1024 ... that has `need`."""
    size = 256
    while size < need:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def settings_of(requests: Sequence[Request], config: DecodeConfig, rules: Rules) -> Settings:
    """What requests ask for, as arrays. The ids that no row may sample, and those that end every row, are included."""
    of = lambda request: (
        request.sampling or config.sampling, (*rules.never, *request.never), (*rules.stop, *request.stop)
    )  # fmt: skip
    return settings(list(map(of, requests)), len(rules.never) + config.listed, len(rules.stop) + config.listed)


def cache_bytes(model: DecoderConfig, config: DecodeConfig, rules: Rules, keys: float | None = None) -> float:
    """Bytes of one row's cache, from the arrays' shapes, without the record of deaths, which decoding does not read.

    Args:
        keys: count slots for so many keys in each layer, what a row used, in place of all that are allocated.
    """
    cache = jax.eval_shape(lambda: empty_cache(model, dataclasses.replace(config, horizon=0), rules))
    size = lambda x: 0 if x is None else x.size * x.dtype.itemsize
    total = sum(map(size, jax.tree.leaves(cache)))
    if keys is not None:
        slots_of = (cache.k, cache.v, cache.birth, cache.death, cache.mark, cache.received)
        total -= sum(map(size, slots_of)) * (1 - keys / cache.capacity)
    return total / config.rows


def check(scheme: Scheme, model: DecoderConfig, config: DecodeConfig, rules: Rules) -> None:
    """Raises UserError if scheme, token table, model and config do not go together."""
    if config.max_thought is not None and (rules.close is None or rules.close.every):
        why = "vanilla has no thoughts" if rules.close is None else "scheme.step already bounds a thought"
        raise UserError(f"max_thought is set, but {why}")
    if config.most_keys <= rules.longest:
        raise UserError(f"decode.capacity is {config.most_keys}; closing a thought alone takes {rules.longest} keys")
    if rules.eviction is not None:
        rules.eviction.budgets(model.layers)  # one for each layer
        if rules.eviction.buffer < rules.longest:
            raise UserError(
                f"eviction.buffer is {rules.eviction.buffer}; closing a thought takes {rules.longest} keys at once"
            )
    ids = [rules.eos, *rules.stop, *rules.never] + ([] if rules.close is None else [int(t) for t in rules.close.tokens])
    if max(ids) >= model.vocab_size:
        raise UserError(
            f"token id {max(ids)} of the token table is outside the model's vocabulary of "
            f"{model.vocab_size}; grow the vocabulary first"
        )
