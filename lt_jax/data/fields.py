"""Fields of a record, read with errors that name the place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lt_jax.errors import UserError


def text(record: Mapping, field: str, where: str, default: str | None = None) -> str:
    """The text of a field; numbers are accepted as an answer. UserError if it is none, or missing without default."""
    value = record.get(field)
    if value is None:
        if default is None:
            raise UserError(f"{where}: missing field {field!r} (fields here: {', '.join(sorted(record)) or 'none'})")
        return default
    if isinstance(value, bool | int | float) and field == "answer":
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: field {field!r} must be text, not {type(value).__name__}")
    return value


def texts(record: Mapping, field: str, where: str) -> tuple[str, ...]:
    """A field that is a list of texts, () if it is missing."""
    value = record.get(field)
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(part, str) for part in value):
        raise UserError(f"{where}: field {field!r} must be a list of texts")
    return tuple(value)


def extra(record: Mapping, *fields: str) -> dict[str, Any]:
    """Those of `fields` that the record has."""
    return {field: record[field] for field in fields if record.get(field) is not None}
