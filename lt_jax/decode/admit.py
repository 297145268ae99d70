"""What a request must fulfil to be answered: asked by an engine that queues it, and by whoever has many to send."""

from __future__ import annotations

import numpy as np

from lt_jax.decode.block import slack
from lt_jax.decode.config import DecodeConfig
from lt_jax.decode.control import Rules
from lt_jax.decode.pieces import keys_kept, living, pieces
from lt_jax.decode.record import as_row
from lt_jax.decode.request import Request
from lt_jax.decode.sample import Sampling
from lt_jax.errors import UserError
from lt_jax.layout.row import Row
from lt_jax.models.config import DecoderConfig


def check_request(
    request: Request, id: object, model: DecoderConfig, config: DecodeConfig, rules: Rules, reads_text: bool = True
) -> None:
    """Raises UserError, beginning with the request's `id`, if it cannot be answered.

    Args:
        reads_text: the engine can turn ids into text.
    """
    name = f"request {id}"
    try:
        prompt = as_row(request.prompt)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name}: {error}") from None
    _check_prompt(name, prompt, model, config, rules)
    for field, least in (("max_new", 1), ("n", 1)):
        value = getattr(request, field)
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise UserError(f"{name}: {field} is {value!r}; it must be a whole number, {least} or more")
    if not isinstance(request.seed, int | np.integer | None):
        raise UserError(f"{name}: seed is {request.seed!r}; it must be a whole number, or None")
    if not isinstance(request.sampling, Sampling | None):
        raise UserError(f"{name}: sampling is {request.sampling!r}; it must be a Sampling, or None")
    for field in ("stop", "never"):
        _check_ids(name, field, getattr(request, field), model, config)
    texts = request.stop_text
    if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
        raise UserError(f"{name}: stop_text is {texts!r}; it must be a tuple of texts, none of them empty")
    if texts and not reads_text:
        raise UserError(f"{name}: stop_text needs an engine that can read ids as text (`detokenize`)")


def _check_ids(name: str, field: str, ids, model: DecoderConfig, config: DecodeConfig) -> None:
    if isinstance(ids, str) or not all(isinstance(i, int | np.integer) and 0 <= i < model.vocab_size for i in ids):
        raise UserError(f"{name}: {field} is {ids!r}; it must be token ids below {model.vocab_size}")
    if len(ids) > config.listed:
        raise UserError(f"{name}: {field} has {len(ids)} ids, and DecodeConfig.listed leaves room for {config.listed}")


def _check_prompt(name: str, prompt: Row, model: DecoderConfig, config: DecodeConfig, rules: Rules) -> None:
    length, room, tokens = len(prompt), rules.capacity, prompt.tokens
    if not length:
        raise UserError(f"{name}: the prompt is empty")
    outside = (tokens < 0) | (tokens >= model.vocab_size)
    if outside.any():
        raise UserError(
            f"{name}: token id {tokens[outside.argmax()]} of the prompt is outside the model's vocabulary of "
            f"{model.vocab_size}"
        )
    if length >= rules.row_limit:
        own = rules.row_limit == model.max_positions
        what = f"{rules.row_limit} positions that the model was made for" if own else f"horizon of {rules.row_limit}"
        raise UserError(f"{name}: a prompt of {length} tokens leaves no room for a response within the {what}")
    if rules.eviction is not None:
        _check_budget(name, prompt, rules)
    elif (most := int(keys_kept(prompt).max())) + 1 > room:
        held = "" if most == length else f", of which {most} are seen at once,"
        raise UserError(
            f"{name}: a prompt of {length} tokens{held} does not fit; the capacity is {room} keys, and the response "
            "needs at least one"
        )
    pieces(prompt, room + slack(rules), config)  # its gist blocks fit


def _check_budget(name: str, prompt: Row, rules: Rules) -> None:
    """Raises UserError if eviction cannot bring a prompt within the budget."""
    how, length = rules.eviction, len(prompt)
    gists = int((prompt.gist >= 0).sum())
    if length > how.least and how.window + how.sinks + gists > how.least:
        raise UserError(
            f"{name}: window ({how.window}), sinks ({how.sinks}) and {gists} gists of the prompt are protected, which "
            f"is more than the budget of {how.least}"
        )
    if rules.close is None and living(prompt):
        raise UserError(f"{name}: tokens of the prompt die by themselves; a vanilla row under a budget keeps no deaths")
