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
from lt_jax.models import hf_ends, hf_tokenizer, lora, safetensors
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig
from lt_jax.models.hf_config import from_hf, read_config, to_hf

__all__ = ["from_hf", "load", "names", "read_config", "save", "to_hf"]

MODULES = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{name: f"self_attn.{name}_proj" for name in "qkvo"},
    **{name: f"self_attn.{name}" for name in ("q_norm", "k_norm")},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
MAX_FILE_BYTES = 5 * 10**9


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
        for array in arrays:
            safetensors.release(array)
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
    source: str | os.PathLike | None = None,
    eos: int | None = None,
    pad: int | None = None,
) -> Path:
    """Writes a checkpoint folder that `transformers` 4 and 5 load: LoRA merged, vocabulary without its padding.

    The folder appears complete or not at all: it is written beside its place and then renamed. With several processes
    all must call this, and the first writes.

    Args:
        tokenizer: a folder to copy tokenizer files from, or a tokenizer with `save_pretrained`; None writes none.
        dtype: of the tensors; None keeps that of the embedding.
        overwrite: replace a checkpoint folder that is there; a folder that is no checkpoint is never replaced.
        max_file_bytes: above this the tensors are spread over numbered files with an index.
        files: name -> text of further files to put in the folder.
        source: the folder the model came from; its generation_config.json goes along.
        eos, pad: ids that ended and filled up the rows the model was trained on, see `hf_ends`; None leaves those of
            `source`.

    Raises:
        UserError: the folder is in the way, there is no tokenizer where it should be, or the disk is full.
    """
    folder = Path(folder).absolute()
    _check_target(folder, overwrite)
    params, config = lora.merge(params, config)
    host = jax.tree.map(_fetch, params)
    if jax.process_index() == 0:
        dtype = np.dtype(dtype or params["embed"].dtype)

        def write(partial: Path) -> None:
            raw = hf_ends.aligned(to_hf(config, dtype.name), eos, pad)
            (partial / "config.json").write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            hf_ends.write_generation(partial, source, raw, eos, pad)
            hf_tokenizer.write(partial, tokenizer)
            for name, text in (files or {}).items():
                (partial / name).write_text(text, encoding="utf-8")
            safetensors.write_folder(partial, _tensors(host, config, dtype), max_file_bytes)

        try:
            _whole(folder, write)
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


def _whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a folder beside the place of `folder`, and then moves it there, over an older one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        os.chmod(partial, 0o755)
        write(partial)
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
