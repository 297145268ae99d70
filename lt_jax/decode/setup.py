"""What an engine is made of, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from lt_jax import cache as slots
from lt_jax import native
from lt_jax.cache import KVCache
from lt_jax.decode.block import slack
from lt_jax.decode.config import DecodeConfig
from lt_jax.decode.control import Rules
from lt_jax.decode.pieces import pieces
from lt_jax.decode.record import Record
from lt_jax.errors import UserError
from lt_jax.layout.closing import closing
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.models.config import DecoderConfig

ATTENTION = {None: None, "native": "native", "plain": "blocks", "pallas": "pallas"}  # by `DecodeConfig.implementation`


def products(config: DecodeConfig) -> str:
    """The form of the matrix products, "native" or "plain".

    Raises:
        UserError: no such implementation, or one that this machine does not have.
    """
    if config.implementation not in ATTENTION:
        known = ", ".join(name for name in ATTENTION if name)
        raise UserError(f"decode.implementation is {config.implementation!r}; it is one of {known}")
    if config.implementation != "pallas":
        return native.choose(config.implementation)
    platform = jax.default_backend()
    if platform not in ("cpu", "tpu"):  # on a CPU it is interpreted, for tests
        raise UserError(f"decode.implementation is 'pallas', which is for TPUs; the platform is {platform}")
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
        sampling=config.sampling,
        attention=ATTENTION[config.implementation],
        eviction=config.evicts,
        row_limit=min(model.max_positions, config.recorded or model.max_positions),
        books=1 if config.evicts is None else model.layers * model.kv_heads,
    )


def empty_cache(model: DecoderConfig, config: DecodeConfig, rules: Rules) -> KVCache:
    """The cache of an engine, without keys."""
    capacity = config.most_keys + slack(rules)
    if rules.eviction is None:
        return slots.empty(model.layers, config.rows, model.kv_heads, capacity, model.head_dim, model.dtype)
    return slots.empty_evicting(
        model, config.rows, capacity, rules.eviction, config.recorded, rules.close is not None
    )


def cache_bytes(model: DecoderConfig, config: DecodeConfig, rules: Rules, keys: float | None = None) -> float:
    """Bytes of one row's cache, from the arrays' shapes, without the record of deaths (which nobody decodes from).

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
        raise UserError(f"decode.max_thought is set, but {why}")
    if config.most_keys <= rules.longest:
        raise UserError(f"decode.capacity is {config.most_keys}; closing a thought alone takes {rules.longest} keys")
    if rules.eviction is not None:
        rules.eviction.budgets(model.layers)  # one for each layer
        if rules.eviction.buffer < rules.longest:
            raise UserError(
                f"eviction.buffer is {rules.eviction.buffer}; closing a thought takes {rules.longest} keys at once"
            )
    ids = [rules.eos, *rules.stop] + ([] if rules.close is None else [int(t) for t in rules.close.tokens])
    if max(ids) >= model.vocab_size:
        raise UserError(
            f"token id {max(ids)} of the token table is outside the model's vocabulary of "
            f"{model.vocab_size}; grow the vocabulary first"
        )


def check_request(record: Record, model: DecoderConfig, config: DecodeConfig, rules: Rules) -> None:
    """Raises UserError if a request cannot be answered."""
    length, room, name = len(record.prompt), rules.capacity, f"request {record.id}"
    if not length:
        raise UserError(f"{name}: the prompt is empty")
    outside = (record.prompt < 0) | (record.prompt >= model.vocab_size)
    if outside.any():
        raise UserError(
            f"{name}: token id {record.prompt[outside.argmax()]} of the prompt is outside the model's vocabulary of "
            f"{model.vocab_size}"
        )
    if length >= rules.row_limit:
        own = rules.row_limit == model.max_positions
        what = f"{rules.row_limit} positions that the model was made for" if own else f"horizon of {rules.row_limit}"
        raise UserError(f"{name}: a prompt of {length} tokens leaves no room for a response within the {what}")
    if rules.eviction is not None:
        _check_budget(name, record, rules)
    elif length + 1 > room:
        raise UserError(
            f"{name}: a prompt of {length} tokens does not fit; the capacity is {room} keys, and the response needs at "
            "least one"
        )
    if record.request.max_new < 1:
        raise UserError(f"{name}: max_new is {record.request.max_new}; it must be 1 or more")
    pieces(record.prompt_row, room + slack(rules), config)  # its gist blocks fit


def _check_budget(name: str, record: Record, rules: Rules) -> None:
    """Raises UserError if eviction cannot bring a prompt within the budget."""
    how, length = rules.eviction, len(record.prompt)
    gists = int((record.prompt_row.gist >= 0).sum())
    if length > how.least and how.window + how.sinks + gists > how.least:
        raise UserError(
            f"{name}: window ({how.window}), sinks ({how.sinks}) and {gists} gists of the prompt are protected, which "
            f"is more than the budget of {how.least}"
        )
