"""RoPE in config.json, as transformers 4 and 5 write it, in and out.

Version 4 has `rope_theta` beside `rope_scaling`; version 5 puts both into `rope_parameters`, which may hold one such
object for each type of layers. Exports have all three, saying the same, so that each version finds its own.
"""

from __future__ import annotations

import functools
import logging

from lt_jax.errors import UserError
from lt_jax.models.config import DecoderConfig, Llama3Scaling, YarnScaling
from lt_jax.models.hf_json import number, size

log = logging.getLogger("lt_jax")

Scaling = Llama3Scaling | YarnScaling | None
ORIGINAL = "original_max_position_embeddings"
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL)
YARN = ("factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
KEYS = {"default": (), "llama3": LLAMA3, "yarn": YARN}
ALWAYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def read(raw: dict, max_positions: int, where: str) -> tuple[float, Scaling]:
    """The rotary base (10,000 where none is named) and the scaling that a config.json describes.

    Keys that `transformers` does not use either, such as the `attn_factor` of DeepSeek-R1-0528-Qwen3-8B, are named in
    a warning and kept for exports.

    Args:
        max_positions: max_position_embeddings, which is the original length where YaRN names none.
        where: the file, for error messages.

    Raises:
        UserError: a scaling that is not computed here, a value of a wrong kind, or places that disagree. (Of those
            transformers 4 and 5 take different ones.)
    """
    bases, scalings = {}, {}
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(raw.get(key) or {}, dict):
            raise UserError(f"{where}: {key} is {raw[key]!r}; it must be an object")
        if raw.get(key):
            bases[f"{key}.rope_theta"], scalings[key] = _of_all_layers(raw[key], key, max_positions, where)
    bases["rope_theta"] = None if raw.get("rope_theta") is None else number(raw, "rope_theta", where)
    bases = {key: base for key, base in bases.items() if base is not None}
    _agree(bases, where)
    _agree(scalings, where)
    scaling = next(iter(scalings.values()), None)
    if scaling is not None and raw.get(ORIGINAL) not in (None, scaling.original_max_positions):
        raise UserError(
            f"{where}: {ORIGINAL} is {raw[ORIGINAL]!r}, and {scaling.original_max_positions} for RoPE's scaling; "
            "they must be the same"
        )
    return next(iter(bases.values()), 10000.0), scaling


def write(config: DecoderConfig, raw: dict) -> dict:
    """`rope_theta`, `rope_scaling` and `rope_parameters` of an export; `raw` is the config.json it came with."""
    kind, values = _described(config.rope_scaling)
    came = next((_layers(raw[key])[0] for key in ("rope_parameters", "rope_scaling") if raw.get(key)), {})
    if _kind(came) == kind:
        values |= {key: value for key, value in came.items() if key not in (*ALWAYS, *KEYS[kind])}
    values = {"rope_type": kind, **values}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if kind == "default" else values,
        "rope_parameters": values | {"rope_theta": config.rope_theta},
    }


def _of_all_layers(values: dict, key: str, max_positions: int, where: str) -> tuple[float | None, Scaling]:
    """Base and scaling of one object, which may be nested: one for each type of layers, and all the same."""
    found = [_of_layer(each, key, max_positions, where) for each in _layers(values)]
    if any(each != found[0] for each in found):
        names = [name for name, value in values.items() if isinstance(value, dict)]
        raise UserError(f"{where}: {key} differs between {' and '.join(names)}; supported is one RoPE for all layers")
    return found[0]


def _layers(values: dict) -> list[dict]:
    """The objects for each type of layers, with what stands beside them; of an object that is not nested, itself."""
    nested = [value for value in values.values() if isinstance(value, dict)]
    beside = {key: value for key, value in values.items() if not isinstance(value, dict)}
    return [beside | each for each in nested] or [values]


def _kind(values: dict) -> str:
    return values.get("rope_type") or values.get("type") or "default"


def _of_layer(values: dict, key: str, max_positions: int, where: str) -> tuple[float | None, Scaling]:
    kind = _kind(values)
    if not isinstance(kind, str) or kind not in KEYS:
        raise UserError(f"{where}: rope scaling {kind!r} is not supported; supported are {', '.join(KEYS)}")
    if values.get("partial_rotary_factor") not in (None, 1):
        part = values["partial_rotary_factor"]
        raise UserError(f"{where}: {key}.partial_rotary_factor = {part!r} is not supported")
    for unused in sorted(name for name, value in values.items() if name not in (*ALWAYS, *KEYS[kind]) and value):
        warn_once(f"{where}: {unused} = {values[unused]!r} of {kind} rope is not used, as in transformers")
    theta = None if values.get("rope_theta") is None else number(values, "rope_theta", where)
    return theta, {"default": lambda *_: None, "llama3": _llama3, "yarn": _yarn}[kind](values, max_positions, where)


def _llama3(values: dict, _: int, where: str) -> Llama3Scaling:
    if missing := [key for key in LLAMA3 if key not in values]:
        raise UserError(f"{where}: llama3 rope scaling has no {missing[0]}")
    return Llama3Scaling(*(number(values, key, where) for key in LLAMA3[:3]), size(values, ORIGINAL, None, where))


def _yarn(values: dict, max_positions: int, where: str) -> YarnScaling:
    if "factor" not in values:
        raise UserError(f"{where}: yarn rope scaling has no factor")
    absent = lambda key: values.get(key) is None if key == "attention_factor" else not values.get(key)
    given = {key: number(values, key, where) for key in YARN[2:-1] if not absent(key)}
    if not isinstance(values.get("truncate", True), bool):
        raise UserError(f"{where}: truncate is {values['truncate']!r}; it must be true or false")
    return YarnScaling(
        number(values, "factor", where), size(values, ORIGINAL, max_positions, where), **given,
        truncate=values.get("truncate", True),
    )  # fmt: skip


def _described(scaling: Scaling) -> tuple[str, dict]:
    """The kind and the values of a scaling under the names of config.json; what is left to defaults is left out."""
    if scaling is None:
        return "default", {}
    named = {ORIGINAL if name == "original_max_positions" else name: value for name, value in vars(scaling).items()}
    if isinstance(scaling, Llama3Scaling):
        return "llama3", named
    usual = {name: getattr(YarnScaling, name, None) for name in YARN}
    return "yarn", {name: value for name, value in named.items() if value != usual[name]}


def _agree(found: dict, where: str) -> None:
    """Raises UserError if two places name different values."""
    first = next(iter(found), None)
    for key, value in found.items():
        if value != found[first]:
            raise UserError(f"{where}: {first} and {key} name different RoPE; transformers 4 and 5 would differ too")


@functools.cache
def warn_once(text: str) -> None:
    log.warning("%s", text)  # once: a config is read several times on the way to a model
