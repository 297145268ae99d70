"""The time in which JAX traces and compiles, to be told apart from that of a rollout: it is spent once for each shape,
mostly in the first rollout, whose speed would otherwise say nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import jax.monitoring

COMPILING = "/jax/core/compile/"  # how the names of its events begin: traced, lowered, compiled (or read from a cache)


@contextlib.contextmanager
def compiling() -> Iterator[Callable[[], float]]:
    """A function that tells how many seconds JAX has traced and compiled for since the beginning of the `with`. What is
    traced inside of what is traced counts once."""
    spans: list[tuple[float, float]] = []  # disjoint, in order

    def heard(event: str, seconds: float, **_) -> None:
        if event.startswith(COMPILING):
            end = time.perf_counter()
            while spans and spans[-1][0] >= end - seconds:
                spans.pop()
            spans.append((end - seconds, end))

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield lambda: sum(end - begin for begin, end in spans)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
