"""Hugging Face checkpoint folders in and out: Qwen2/2.5, Qwen3, Llama 3.x, and so the DeepSeek-R1 distillations.

Tensors are read from memory-mapped safetensors straight to their place in the stacked arrays, or, given shardings, to
the devices that hold them, slice by slice. Exports are folders that `transformers` loads.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from lt_jax.errors import UserError
from lt_jax.models import lora, safetensors
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig, Llama3Scaling

# What a family adds to the plain Llama decoder.
FAMILIES = {
    "llama": ("LlamaForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {"qkv_bias": True}),
    "qwen3": ("Qwen3ForCausalLM", {"qk_norm": True}),
}
MODULES = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{name: f"self_attn.{name}_proj" for name in "qkvo"},
    **{name: f"self_attn.{name}" for name in ("q_norm", "k_norm")},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
MAX_FILE_BYTES = 5 * 10**9


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
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: not a JSON object")
    return from_hf(raw, dtype, str(path))


def from_hf(raw: dict, dtype: str = "float32", where: str = "config.json") -> DecoderConfig:
    """The values of a config.json, of transformers 4 or 5, as a `DecoderConfig`; `where` goes into error messages."""
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(f"{where}: model_type {family!r} is not supported; supported are {', '.join(FAMILIES)}")
    refused = {
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(raw.get("attention_bias")),
        "mlp_bias": bool(raw.get("mlp_bias")),
        "use_sliding_window": bool(raw.get("use_sliding_window")),
        "quantization_config": bool(raw.get("quantization_config")),
    }
    for key, bad in refused.items():
        if bad:
            raise UserError(f"{where}: {key} = {raw[key]!r} is not supported")

    size = lambda key, default=None: _size(raw, key, default, where)
    rope = _rope(raw, where)
    heads, hidden = size("num_attention_heads"), size("hidden_size")
    return DecoderConfig(
        vocab_size=size("vocab_size"),
        hidden=hidden,
        intermediate=size("intermediate_size"),
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", 128 if family == "qwen3" else max(1, hidden // heads)),
        rope_theta=_number(rope, "rope_theta", where),
        rope_scaling=_scaling(rope, where),
        norm_eps=_number(raw, "rms_norm_eps", where),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_positions=size("max_position_embeddings", 32768),
        dtype=dtype,
        model_type=family,
        extra=json.dumps(raw, sort_keys=True),
        **FAMILIES[family][1],
    )


def _size(raw: dict, key: str, default: int | None, where: str) -> int:
    """A whole number of 1 or more; null and absent are the default, if there is one."""
    value = raw.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: {key} is {value!r}; it must be a whole number of 1 or more")
    return value


def _number(raw: dict, key: str, where: str) -> float:
    value = raw.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UserError(f"{where}: {key} is {value!r}; it must be a number above 0")
    return float(value)


def _rope(raw: dict, where: str) -> dict:
    """What config.json says of RoPE, in the form of transformers 5: with its base."""
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(raw.get(key) or {}, dict):
            raise UserError(f"{where}: {key} is {raw[key]!r}; it must be an object")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    bases = [values["rope_theta"] for values in (rope, raw) if values.get("rope_theta") is not None]
    return rope | {"rope_theta": bases[0] if bases else 10000.0}


def _scaling(rope: dict, where: str) -> Llama3Scaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"{where}: rope scaling {kind!r} is not supported; supported are default and llama3")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if missing := [key for key in keys if key not in rope]:
        raise UserError(f"{where}: llama3 rope scaling has no {missing[0]}")
    return Llama3Scaling(*(_number(rope, key, where) for key in keys[:3]), _size(rope, keys[3], None, where))


def to_hf(config: DecoderConfig, dtype: str) -> dict:
    """The config.json of an export: what the model came with, brought up to date. `vocab_size` is the real one."""
    raw = json.loads(config.extra)
    if config.model_type not in FAMILIES:
        raise UserError(f"model_type {config.model_type!r} is not supported; supported are {', '.join(FAMILIES)}")
    architecture, adds = FAMILIES[config.model_type]
    if (config.qkv_bias, config.qk_norm) != (adds.get("qkv_bias", False), adds.get("qk_norm", False)):
        raise UserError(
            f"a model with qkv_bias={config.qkv_bias} and qk_norm={config.qk_norm} is no {config.model_type}; "
            "Hugging Face has no family for it"
        )
    rope = {"rope_theta": config.rope_theta}
    if s := config.rope_scaling:
        scaling = {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_positions,
        }
    if "rope_parameters" in raw:
        rope = {"rope_parameters": {"rope_type": "default", **rope, **(scaling if s else {})}}
    else:
        rope |= {"rope_scaling": scaling if s else None}
    return raw | rope | {
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
        "dtype" if "dtype" in raw else "torch_dtype": dtype,
    }


def names(config: DecoderConfig) -> dict[tuple[str, ...], tuple[str, bool]]:
    """Tree path -> (Hugging Face name, transposed?); names of layer arrays have a `{}` for the layer."""
    table = {("embed",): ("model.embed_tokens.weight", False), ("final_norm",): ("model.norm.weight", False)}
    if not config.tie_embeddings:
        table["head",] = ("lm_head.weight", True)
    for name, spec in parameters.specs(config.replace(lora=None))["layers"].items():
        module = f"model.layers.{{}}.{MODULES[name]}"
        if not isinstance(spec, dict):
            table["layers", name] = (f"{module}.weight", False)
            continue
        table["layers", name, "w"] = (f"{module}.weight", True)
        if "b" in spec:
            table["layers", name, "b"] = (f"{module}.bias", False)
    return table


def load(
    folder: str | os.PathLike, dtype=None, *, compute_dtype: str = "float32", shardings: dict | None = None
) -> tuple[dict, DecoderConfig]:
    """Reads a checkpoint folder.

    Args:
        folder: with config.json and model.safetensors, or several files and their index.
        dtype: storage dtype of the parameters; None keeps the file's.
        compute_dtype: the config's.
        shardings: tree of `jax.sharding.Sharding` like the parameters (see `params.logical_axes`); every process then
            reads only what its devices hold. `read_config` gives the config to make it from.

    Returns:
        (params, config), the vocabulary padded to a multiple of 128 with zero rows.

    Raises:
        UserError: one line about the file or tensor that is missing, truncated, of a wrong shape or not understood.
    """
    config = read_config(folder, compute_dtype)
    tensors = safetensors.read_folder(folder)
    specs, table = parameters.specs(config), names(config)
    sources = {path: _sources(tensors, specs, path, *entry, config, folder) for path, entry in table.items()}
    known = {name.format(i) for name, _ in table.values() for i in range(config.layers)}
    skip = lambda name: name.endswith("rotary_emb.inv_freq") or (config.tie_embeddings and name == "lm_head.weight")
    if strange := sorted(name for name in tensors if name not in known and not skip(name)):
        raise UserError(f"{folder}: tensor {strange[0]} (of {len(strange)} such) has no place in a {config.model_type}")
    params: dict = {}
    for path, arrays in sources.items():
        shape, to = _at(specs, path).shape, np.dtype(dtype or arrays[0].dtype)
        read = _reader(arrays, shape, to, stacked=path[0] == "layers")
        if shardings is None:
            value = jnp.asarray(read((slice(None),) * len(shape)))
        else:
            value = jax.make_array_from_callback(shape, _at(shardings, path), read)
        _put(params, path, value)
    return params, config


def _sources(tensors, specs, path, name, transposed, config, folder) -> list[np.ndarray]:
    """The tensors behind one array, one for each layer, oriented like ours; checks that they exist and fit."""
    stacked = path[0] == "layers"
    spec = _at(specs, path)
    want = tuple(config.vocab_size if axis == "vocab" else n for axis, n in zip(spec.axes, spec.shape, strict=True))
    want = want[1:] if stacked else want
    found = []
    for i in range(config.layers if stacked else 1):
        full = name.format(i)
        if full not in tensors:
            raise UserError(f"{folder}: tensor {full} is missing; config.json promises a {config.model_type} with it")
        value, expected = tensors[full], want[::-1] if transposed else want
        if value.shape != expected:
            raise UserError(f"{folder}: tensor {full} has shape {list(value.shape)}, expected {list(expected)}")
        found.append(value.T if transposed else value)
    return found


def _reader(arrays: list[np.ndarray], shape: tuple[int, ...], dtype: np.dtype, stacked: bool) -> Callable:
    """A function from an index (a tuple of slices into `shape`) to that part of the stacked, padded array."""

    def read(index):
        bounds = [range(*s.indices(n)) for s, n in zip(index, shape, strict=True)]
        inner = bounds[1:] if stacked else bounds
        layers = bounds[0] if stacked else range(1)
        out = np.zeros((len(layers), *map(len, inner)), dtype)
        for i, layer in enumerate(layers):
            # Rows past the source's end are padding and stay zero.
            part = arrays[layer][tuple(slice(r.start, r.stop) for r in inner)]
            out[i][tuple(slice(n) for n in part.shape)] = part
        return out if stacked else out[0]

    return read


def _at(tree: dict, path: tuple[str, ...]):
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: dict, path: tuple[str, ...], value) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def save(
    folder: str | os.PathLike,
    params: dict,
    config: DecoderConfig,
    tokenizer=None,
    *,
    dtype=None,
    overwrite: bool = False,
    max_file_bytes: int = MAX_FILE_BYTES,
    files: dict[str, str] | None = None,
) -> Path:
    """Writes a checkpoint folder that `transformers` loads: LoRA merged, vocabulary without its padding.

    The folder appears complete or not at all: it is written beside its place and then renamed. With several processes
    all must call this, and the first writes.

    Args:
        tokenizer: a folder to copy tokenizer files from, or a tokenizer with `save_pretrained`; None writes none.
        dtype: of the tensors; None keeps that of the embedding.
        overwrite: replace a checkpoint folder that is there; a folder that is no checkpoint is never replaced.
        max_file_bytes: above this the tensors are spread over numbered files with an index.
        files: name -> text of further files to put in the folder.

    Raises:
        UserError: the folder is in the way, there is no tokenizer where it should be, or the disk is full.
    """
    folder = Path(folder).absolute()
    _check_target(folder, overwrite)
    params, config = lora.merge(params, config)
    host = jax.tree.map(_fetch, params)
    if jax.process_index() == 0:
        dtype = np.dtype(dtype or params["embed"].dtype)
        try:
            _write(folder, host, config, tokenizer, dtype, max_file_bytes, files or {})
        except OSError as error:
            raise UserError(f"{folder}: could not be written ({error.strerror or error}); nothing was left") from None
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {folder.name}")
    return folder


def _check_target(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: exists and is no checkpoint folder; choose another place")
    if not overwrite:
        raise UserError(f"{folder}: a checkpoint is there already; remove it or choose another place")


def _fetch(x) -> np.ndarray:
    """An array on the host, gathered from all processes where it is spread over them."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def _write(folder: Path, host: dict, config: DecoderConfig, tokenizer, dtype, max_file_bytes: int, files: dict) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        os.chmod(partial, 0o755)
        text = json.dumps(to_hf(config, dtype.name), indent=2, sort_keys=True) + "\n"
        (partial / "config.json").write_text(text, encoding="utf-8")
        _write_tokenizer(partial, tokenizer)
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
        safetensors.write_folder(partial, _tensors(host, config, dtype), max_file_bytes)
        old = None
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
            os.replace(folder, old)
        os.replace(partial, folder)
        if old:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tensors(host: dict, config: DecoderConfig, dtype: np.dtype):
    """(name, shape, dtype, make) of every tensor of an export, in the order of the model."""
    out = []
    for path, (name, transposed) in names(config).items():
        stacked = path[0] == "layers"
        for i, value in enumerate(_at(host, path) if stacked else [_at(host, path)]):
            value = value.T if transposed else value
            value = value[: config.vocab_size] if path[0] in ("embed", "head") else value
            order = i if stacked else math.inf if path[0] in ("final_norm", "head") else -1
            out.append((order, (name.format(i), value.shape, dtype, lambda v=value: v.astype(dtype, copy=False))))
    return [tensor for _, tensor in sorted(out, key=lambda entry: entry[0])]


def _write_tokenizer(folder: Path, tokenizer) -> None:
    if tokenizer is None:
        return
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
        _keep_tokenizer_class(folder / "tokenizer_config.json", Path(tokenizer.name_or_path) / "tokenizer_config.json")
        return
    source = Path(tokenizer)
    if not (source / "tokenizer.json").is_file():
        raise UserError(f"{source / 'tokenizer.json'}: no such file; the export would have no tokenizer")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _keep_tokenizer_class(written: Path, source: Path) -> None:
    """Names the source's class again: transformers 5 writes one that transformers 4 does not know."""
    config = json.loads(written.read_text(encoding="utf-8"))
    before = json.loads(source.read_text(encoding="utf-8")) if source.is_file() else {}
    config["tokenizer_class"] = before.get("tokenizer_class", "PreTrainedTokenizerFast")
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    written.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
