"""The safetensors file format, read memory mapped and written tensor by tensor, with errors that name the tensor.

A file is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and the bytes.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

from lt_jax.errors import UserError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every tensor of a file as a read-only view of the mapped file; nothing is read until it is used.

    Raises:
        UserError: the file is missing, truncated or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    size = path.stat().st_size
    with open(path, "rb") as file:
        n = int.from_bytes(file.read(8), "little")
        if size < 8 or n > MAX_HEADER:
            raise UserError(f"{path}: not a safetensors file (no header)")
        if size < 8 + n:
            raise UserError(f"{path}: truncated, {size:,} bytes where the header alone needs {8 + n:,}; copy it again")
        try:
            header = json.loads(file.read(n))
            header.pop("__metadata__", None)
            entries = {name: _entry(path, name, value) for name, value in header.items()}
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: not a safetensors file (unreadable header)") from None
    end = max((stop for _, _, _, stop in entries.values()), default=0)
    if size < 8 + n + end:
        raise UserError(f"{path}: truncated, {size:,} bytes of {8 + n + end:,}; copy it again")
    if not end:
        return {name: np.zeros(shape, dtype) for name, (dtype, shape, _, _) in entries.items()}
    data = np.memmap(path, np.uint8, mode="r", offset=8 + n)
    view = lambda dtype, shape, start, stop: data[start:stop].view(dtype).reshape(shape)
    return {name: view(*entry) for name, entry in entries.items()}


def release(tensor: np.ndarray) -> None:
    """Lets go of the pages of the file that `read` made this a view of: they count as memory of the process once they
    are used. They are read again if need be."""
    while tensor is not None and not isinstance(tensor, mmap.mmap):
        tensor = getattr(tensor, "base", None)
    if tensor is not None and hasattr(mmap, "MADV_DONTNEED"):
        tensor.madvise(mmap.MADV_DONTNEED)


def _entry(path: Path, name: str, value: dict) -> tuple[np.dtype, tuple[int, ...], int, int]:
    if value["dtype"] not in DTYPES:
        raise UserError(f"{path}: tensor {name} has dtype {value['dtype']}; supported are {', '.join(DTYPES)}")
    dtype, shape, (start, stop) = DTYPES[value["dtype"]], tuple(value["shape"]), value["data_offsets"]
    if start < 0 or stop - start != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{path}: tensor {name} has {stop - start} bytes, not those of {list(shape)} {value['dtype']}")
    return dtype, shape, start, stop


def read_folder(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a folder: `model.safetensors`, or the files that `model.safetensors.index.json` names."""
    folder = Path(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return read(single)
    if not index.is_file():
        hint = "; pickled .bin weights are not read" if any(folder.glob("*.bin")) else ""
        raise UserError(f"{folder}: neither model.safetensors nor model.safetensors.index.json is here{hint}")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {file: read(folder / file) for file in sorted(set(weight_map.values()))}
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: not a safetensors index (no weight_map)") from None
    for name, file in weight_map.items():
        if name not in files[file]:
            raise UserError(f"{folder / file}: tensor {name} is missing, which {index.name} says is here")
    return {name: files[file][name] for name, file in weight_map.items()}


def write(path: str | os.PathLike, tensors: Iterable[tuple[str, tuple[int, ...], np.dtype, Callable]]) -> None:
    """Writes (name, shape, dtype, make) tensors; `make()` gives the array, and only one exists at a time."""
    tensors, header, offset = list(tensors), {"__metadata__": {"format": "pt"}}, 0
    for name, shape, dtype, _ in tensors:
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, _, _, make in tensors:
            file.write(np.ascontiguousarray(make()).view(np.uint8).reshape(-1).data)
        file.flush()
        os.fsync(file.fileno())


def write_folder(folder: str | os.PathLike, tensors: Iterable, max_file_bytes: int) -> None:
    """Writes tensors as `write` takes them: one file, or above `max_file_bytes` numbered files and an index."""
    folder, files, room = Path(folder), [], 0
    nbytes = lambda tensor: math.prod(tensor[1]) * tensor[2].itemsize
    for tensor in tensors:
        if not files or nbytes(tensor) > room:
            files.append([])
            room = max_file_bytes
        files[-1].append(tensor)
        room -= nbytes(tensor)
    if len(files) == 1:
        return write(folder / "model.safetensors", files[0])
    weight_map = {}
    for i, part in enumerate(files, 1):
        name = f"model-{i:05d}-of-{len(files):05d}.safetensors"
        write(folder / name, part)
        weight_map |= {tensor[0]: name for tensor in part}
    total = sum(nbytes(tensor) for part in files for tensor in part)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
