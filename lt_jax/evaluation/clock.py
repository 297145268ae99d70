"""How long this process has spent on compiling, as JAX itself reports it."""

from __future__ import annotations

import functools

import jax

EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")


@functools.cache
def _told() -> list[float]:
    """The seconds that each program took to be lowered and compiled, since the first call of this function.

    Tracing is left out, because JAX reports the time of an inner function again as part of the outer one.
    """
    found: list[float] = []

    def listen(event: str, seconds: float, **_) -> None:
        if event in EVENTS:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


def compiled() -> float:
    """Seconds spent on compiling since the first call; the difference of two calls is what passed between them."""
    return sum(_told())
