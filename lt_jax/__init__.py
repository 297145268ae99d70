"""Models that reason at length inside a small attention cache. The idea behind it is in `lt_jax.lifetimes`.

    import lt_jax

    model = lt_jax.load("DIR")
    print(model.generate("What is 17 * 24?"))
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["Answer", "AskConfig", "Model", "load"]

_PLACES = {"load": "model", "Model": "model", "Answer": "ask", "AskConfig": "ask"}


def __getattr__(name: str):
    """Imports what `__all__` names when it is first used, because JAX and what comes with it take seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module 'lt_jax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"lt_jax.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
