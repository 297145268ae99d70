"""The JSON files of checkpoint folders, and numbers in them; one clear line where they are something else."""

from __future__ import annotations

import json
import math
from pathlib import Path

from lt_jax.errors import UserError


def read_object(path: Path) -> dict:
    """The object in a JSON file. UserError if it cannot be read or is no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object")
    return found


def size(values: dict, key: str, default: int | None, where: str) -> int:
    """A whole number of 1 or more; null and absent are the default, if there is one."""
    value = values.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: {key} is {value!r}; it must be a whole number of 1 or more")
    return value


def number(values: dict, key: str, where: str) -> float:
    """A number above 0."""
    value = values.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UserError(f"{where}: {key} is {value!r}; it must be a number above 0")
    return float(value)
