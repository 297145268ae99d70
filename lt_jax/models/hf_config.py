"""config.json of the supported families, in and out: Qwen2/2.5, Qwen3, Llama 3.x, and so the DeepSeek-R1 distillations.

What would change the numbers and is not computed here is refused by its name; what changes them for others only is
named in a warning.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from lt_jax.errors import UserError
from lt_jax.models import hf_rope
from lt_jax.models.config import DecoderConfig, YarnScaling
from lt_jax.models.hf_ends import read_ends
from lt_jax.models.hf_json import number, read_object, size

# What a family adds to the plain Llama decoder.
FAMILIES = {
    "llama": ("LlamaForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {"qkv_bias": True}),
    "qwen3": ("Qwen3ForCausalLM", {"qk_norm": True}),
}

# Changes the numbers of some layer, or of all, wherever it is neither absent, false nor empty.
REFUSED = (
    "attention_bias", "mlp_bias", "use_sliding_window", "use_mrope", "per_layer_config", "quantization_config",
    "compression_config",
)  # fmt: skip
# Read by others (vLLM; training with dropout) and not by this library.
UNUSED = ("attention_dropout", "dual_chunk_attention_config")


def read_config(folder: str | os.PathLike, dtype: str = "float32") -> DecoderConfig:
    """The config of a checkpoint folder; `dtype` is the compute dtype it shall have.

    Raises:
        UserError: no such folder, no readable config.json, or a model that this decoder is not.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; a checkpoint folder has a config.json")
    read_ends(folder)  # an end token that is none is better known before a training run than after it
    return from_hf(read_object(path), dtype, str(path))


def from_hf(raw: dict, dtype: str = "float32", where: str = "config.json") -> DecoderConfig:
    """The values of a config.json, of transformers 4 or 5, as a `DecoderConfig`; `where` goes into error messages."""
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(f"{where}: model_type {family!r} is not supported; supported are {', '.join(FAMILIES)}")
    _refuse(raw, where)
    rope_theta, rope_scaling = hf_rope.read(raw, _positions(raw, family, where), where)
    heads, hidden = size(raw, "num_attention_heads", None, where), size(raw, "hidden_size", None, where)
    whole = lambda key, default=None: size(raw, key, default, where)
    return DecoderConfig(
        vocab_size=whole("vocab_size"),
        hidden=hidden,
        intermediate=whole("intermediate_size"),
        layers=whole("num_hidden_layers"),
        heads=heads,
        kv_heads=whole("num_key_value_heads", heads),
        head_dim=whole("head_dim", 128 if family == "qwen3" else max(1, hidden // heads)),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        norm_eps=number(raw, "rms_norm_eps", where),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_positions=_reach(rope_scaling, _positions(raw, family, where)),
        dtype=dtype,
        model_type=family,
        extra=json.dumps(raw, sort_keys=True),
        **FAMILIES[family][1],
    )


def _refuse(raw: dict, where: str) -> None:
    """Raises UserError on the first key that changes the numbers in a way that is not computed here."""
    types = raw.get("layer_types") or []
    refused = {
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "layer_types": not isinstance(types, list) or any(each != "full_attention" for each in types),
        "partial_rotary_factor": raw.get("partial_rotary_factor") not in (None, 1),
        "is_causal": raw.get("is_causal") not in (None, True),
        **{key: bool(raw.get(key)) for key in REFUSED},
    }
    for key, bad in refused.items():
        if bad:
            raise UserError(f"{where}: {key} = {raw[key]!r} is not supported")
    for key in UNUSED:
        if raw.get(key):
            hf_rope.warn_once(f"{where}: {key} = {raw[key]!r} is not used")


def _positions(raw: dict, family: str, where: str) -> int:
    """`max_position_embeddings`; where it is absent, what transformers takes for the family."""
    return size(raw, "max_position_embeddings", 2048 if family == "llama" else 32768, where)


def _reach(scaling, positions: int) -> int:
    """The length a model is good for. Qwen's model cards add YaRN without raising `max_position_embeddings`."""
    if not isinstance(scaling, YarnScaling):
        return positions
    return max(positions, int(scaling.factor * scaling.original_max_positions))


def to_hf(config: DecoderConfig, dtype: str) -> dict:
    """The config.json of an export: what the model came with, brought up to date, for transformers 4 and 5.

    `vocab_size` is the real one.
    """
    raw = json.loads(config.extra)
    if config.model_type not in FAMILIES:
        raise UserError(f"model_type {config.model_type!r} is not supported; supported are {', '.join(FAMILIES)}")
    architecture, adds = FAMILIES[config.model_type]
    if (config.qkv_bias, config.qk_norm) != (adds.get("qkv_bias", False), adds.get("qk_norm", False)):
        raise UserError(
            f"a model with qkv_bias={config.qkv_bias} and qk_norm={config.qk_norm} is no {config.model_type}; "
            "Hugging Face has no family for it"
        )
    return raw | hf_rope.write(config, raw) | {
        "architectures": [architecture],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_positions,
        "dtype": dtype,
        "torch_dtype": dtype,  # what transformers before 4.56 reads
    }


