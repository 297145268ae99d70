"""One of the teachers, from settings."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

from lt_jax.errors import UserError
from lt_jax.memory.teachers import Teacher
from lt_jax.memory.teachers.endpoint import Endpoint
from lt_jax.memory.teachers.endpoint_config import EndpointConfig
from lt_jax.memory.teachers.local import Local, LocalConfig
from lt_jax.memory.teachers.scripted import scripted
from lt_jax.model import load
from lt_jax.user_function import user_function


@dataclasses.dataclass(frozen=True)
class Connection:
    """A teacher that can be asked.

    Attributes:
        teacher: gives it when it is entered.
        about: what trajectories say of it: teacher, model and settings.
        describe: a line about what it was asked, for a terminal; "" if there is nothing to say.
    """

    teacher: contextlib.AbstractAsyncContextManager[Teacher]
    about: dict
    describe: Callable[[], str] = lambda: ""


def by_endpoint(config: EndpointConfig, key: str = "") -> Connection:
    """See `endpoint.Endpoint`. key: sent with requests, and written nowhere."""
    endpoint = Endpoint(config, key)
    return Connection(endpoint, config.about(), endpoint.counts.describe)


def by_model(folder: str, config: LocalConfig, dtype: str | None = None) -> Connection:
    """See `local.Local`.

    Raises:
        UserError: what `model.load` raises.
    """
    if not folder:
        raise UserError("local.path is empty; it must be the checkpoint folder that teaches")
    local = Local(load(folder, dtype=dtype), config)
    said = lambda: (
        f"{local.written:,} tokens written, {local.read:,} read and {local.reused:,} taken over from the turn before"
    )
    return Connection(local, config.about(Path(folder).resolve().name), said)  # where it lies is nobody's business


def by_script(expert: str) -> Connection:
    """See `scripted.scripted`. expert: "module:function", problem -> log.

    Raises:
        UserError: there is no such function.
    """
    teacher = scripted(user_function(expert, None, takes="a problem", setting="scripted.expert"))
    return Connection(contextlib.nullcontext(teacher), {"teacher": "scripted", "model": expert, "settings": {}})
