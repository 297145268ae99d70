"""Files of reasoning traces, read one record at a time: JSONL (also .gz) and Parquet; and the lines of text files."""

from __future__ import annotations

import codecs
import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lt_jax.data.traces import Trace, convert, detect
from lt_jax.errors import UserError
from lt_jax.layout.encode import SURROGATE

JSONL = (".jsonl", ".jsonl.gz", ".ndjson")
PARQUET = (".parquet",)
_WANTED = "each line must be one JSON object"
_MOST_DEEP = 100  # lists and objects in each other; Python itself gives up at some depth that depends on its version
_DEEP = f"lists or objects nested more than {_MOST_DEEP} deep"
_PARQUET_ROWS = 64  # rows decoded at a time: traces are long, memory should stay small


def trace_files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files that `paths` name, in a fixed order: files as they are, of a folder every JSONL and Parquet file in it.

    Raises:
        UserError: a path does not exist, is of another kind, or a folder holds no such file.
    """
    found = []
    for path in [paths] if isinstance(paths, str | Path) else list(paths):
        path = Path(path).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(JSONL + PARQUET))
            if not inside:
                raise UserError(f"{path}: the folder holds no {', '.join(JSONL + PARQUET)} file")
            found += inside
        elif not path.exists():
            raise UserError(f"{path}: no such file; give a {', '.join(JSONL + PARQUET)} file or a folder of them")
        elif not path.name.endswith(JSONL + PARQUET):
            raise UserError(f"{path}: unknown kind of file; give {', '.join(JSONL + PARQUET)}")
        else:
            found.append(path)
    if not found:
        raise UserError("no trace files given")
    return found


def read_traces(paths, format: str | None = None, evaluation: bool = False) -> Iterator[Trace]:
    """Streams the traces of files; arguments and errors as `read_placed`."""
    return (trace for _, trace in read_placed(paths, format, evaluation))


def read_placed(paths, format: str | None = None, evaluation: bool = False) -> Iterator[tuple[str, Trace]]:
    """Streams (where, trace) of files, `where` being "file:line".

    Args:
        paths: see `trace_files`.
        format: a key of `traces.FORMATS`; None to see it, file by file, from the first record.
        evaluation: accept records without an output (questions and answers only).

    Raises:
        UserError: with file and line (row of a Parquet file, counted from 1): what `read_records` raises, a missing or
            mistyped field; with the files' names: no record at all.
    """
    files = trace_files(paths)
    count = 0
    for path in files:
        name = format
        for where, record in read_records(path):
            name = name or detect(record, where)
            yield where, convert(record, name, where, evaluation)
            count += 1
    if not count:
        raise UserError(f"{', '.join(map(str, files[:3]))}{' ...' if len(files) > 3 else ''}: no trace in the data; "
                        "an empty dataset cannot be used")  # fmt: skip


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Streams (where, record) of one file, `where` being "file:line".

    A JSONL line is strict JSON (RFC 8259): NaN and Infinity, the same key twice, or half a surrogate pair, which is no
    character, are refused. In a table NaN is a missing value, as pandas writes it.

    Raises:
        UserError: with file and line (or row), whatever it is that cannot be read.
    """
    if path.name.endswith(PARQUET):
        yield from _read_parquet(path)
        return
    for where, line in read_lines(path):
        if line.strip():
            yield where, _parse(line, where)


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Streams (where, line) of a text file in UTF-8, unpacked if it is a .gz; a byte order mark is left out.

    Only "\\n" and "\\r\\n" end a line, and are left out: U+2028 or a form feed within a text are part of it.

    Raises:
        UserError: with file and line: another encoding, a broken or cut off .gz, a file that cannot be read.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}:{number}"
                yield where, _decoded(line, where).removesuffix("\n").removesuffix("\r")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: broken gzip file after line {number} ({error}); download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _decoded(line: bytes, where: str) -> str:
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in line:
        raise UserError(f"{where}: not UTF-8 but UTF-16, or no text at all; save the file as UTF-8")
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {error.start} of the line is not UTF-8; save the file as UTF-8") from None


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant)
        _check(record)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: broken JSON: {error.msg} at column {error.colno}; {_WANTED}") from None
    except RecursionError:
        raise UserError(f"{where}: {_DEEP}; {_WANTED}") from None
    except ValueError as error:  # of the checks below, and of Python for a number of thousands of digits
        raise UserError(f"{where}: {str(error).partition(';')[0]}; {_WANTED}") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON {type(record).__name__}, not an object; {_WANTED}")
    return record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!a} stands twice in one object")
    return found


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON, where a missing value is null")


def _check(value, depth: int = 0) -> None:
    """Raises ValueError for what JSON can spell and nothing after it can take."""
    if depth > _MOST_DEEP:
        raise ValueError(_DEEP)
    if isinstance(value, str):
        if lone := SURROGATE.search(value):
            raise ValueError(f"a text has {lone.group()!a}, half a surrogate pair, which is no character")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is too large for a float")
    elif isinstance(value, dict):
        for key, part in value.items():
            _check(key, depth)
            _check(part, depth + 1)
    elif isinstance(value, list):
        for part in value:
            _check(part, depth + 1)


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                raise UserError(f"{path}: the column {twice[0]!r} is there twice")
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
                for record in _rows(batch, path, number):
                    number += 1
                    yield f"{path}:{number}", record
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UserError(f"{path}: broken Parquet file after row {number}: {reason}; download it again") from None


def _rows(batch, path: Path, before: int) -> list[dict[str, Any]]:
    """The rows of a record batch, `before` rows into the file."""
    try:
        return [{name: _without_missing(value) for name, value in record.items()} for record in batch.to_pylist()]
    except Exception:  # text that is not UTF-8, dates that Python does not have, ...: which row is it?
        for place in range(len(batch)):
            try:
                batch.slice(place, 1).to_pylist()
            except Exception as error:
                where, reason = f"{path}:{before + place + 1}", " ".join(str(error).split())
                raise UserError(f"{where}: a value cannot be read: {reason}") from None
        raise


def _without_missing(value):
    """`value` without fields that are null, as Arrow fills every object of a list up to the fields of all the others,
    or NaN, as pandas writes what is missing."""
    if isinstance(value, list):
        return [_without_missing(part) for part in value]
    if isinstance(value, dict):
        whole = {key: _without_missing(part) for key, part in value.items()}
        return {key: part for key, part in whole.items() if part is not None}
    return None if isinstance(value, float) and math.isnan(value) else value
