"""How long this process has spent on compiling so far, as JAX itself reports it."""

from __future__ import annotations

import functools

import jax

EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")


@functools.cache
def _told() -> list[float]:
    """Seconds of every program that JAX has lowered and compiled since this was first asked for.

    Not those of tracing, which are told for each function within another once more.
    """
    found: list[float] = []

    def listen(event: str, seconds: float, **_) -> None:
        if event in EVENTS:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


def compiled() -> float:
    """Seconds spent on compiling since the first call of this; two calls tell what came between them."""
    return sum(_told())
