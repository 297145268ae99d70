"""Files of reasoning traces, read one record at a time: JSONL (also .gz) and Parquet."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lt_jax.data.traces import Trace, convert, detect
from lt_jax.errors import UserError

JSONL = (".jsonl", ".jsonl.gz", ".ndjson")
PARQUET = (".parquet",)
_WANTED = "each line must be one JSON object"
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
        UserError: with file and line (row of a Parquet file, counted from 1): a broken line, a missing or mistyped
            field; with the files' names: no record at all.
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
    """Streams (where, record) of one file, `where` being "file:line"."""
    yield from _read_parquet(path) if path.name.endswith(PARQUET) else _read_jsonl(path)


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        lines = enumerate(file, start=1)
        while True:
            try:
                number, line = next(lines)
            except StopIteration:
                return
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(f"{path}: broken gzip file ({error}); download it again") from None
            if not line.strip():
                continue
            yield f"{path}:{number}", _parse(line, f"{path}:{number}")


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_number)
        check_text(record)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {error.start} of the line is not UTF-8; {_WANTED}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: broken JSON: {error.msg} at column {error.colno}; {_WANTED}") from None
    except RecursionError:
        raise UserError(f"{where}: JSON nested too deeply to be read; {_WANTED}") from None
    except ValueError as error:  # said by us, or a number of too many digits
        raise UserError(f"{where}: {str(error).split(';')[0]}; {_WANTED}") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON {type(record).__name__}, not an object; {_WANTED}")
    return record


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in an object")
    return found


def _no_number(name: str):
    raise ValueError(f"{name} is no number that JSON has")


def check_text(value: Any) -> None:
    """Raises ValueError if a text in a JSON-like value holds half of a surrogate pair, which no UTF-8 text can."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                code = f"\\u{ord(value[error.start]):04x}"
                around = value[max(0, error.start - 20) : error.start]
                raise ValueError(f"a text has {code}, half of a surrogate pair, after {around!r}") from None
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value


def text_lines(path: Path) -> list[str]:
    """The lines of a text file: UTF-8, or UTF-16 that says so by its byte order mark, which is no part of the text.

    A line ends with a line feed, with or without a carriage return before it, and with nothing else.

    Raises:
        UserError: with file and line: the bytes are not of that encoding; the file cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}:{line}: byte {error.start} of the file is not {'UTF-16' if wide else 'UTF-8'}; save it as UTF-8"
        ) from None
    return [line.removesuffix("\r") for line in text.split("\n")]


def _without_nulls(value):
    """`value` without fields that are null: Arrow gives every object of a list the fields of all the others."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", _without_nulls(record)
    except (pyarrow.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: broken Parquet file after row {number}: {reason}; download it again") from None
