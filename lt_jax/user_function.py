"""Functions of the user's by name, "module:function". Nothing here imports JAX, since it is used in child processes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

from lt_jax.errors import UserError

MOST_CHARS = 300  # of what is told of an error


def user_function(text: str, *sample, takes: str, setting: str = "") -> Callable:
    """The function of that name, after its module has been imported.

    Args:
        text: "module:function".
        sample: what it will be called with, as far as its signature can say whether it takes that.
        takes: that in words.
        setting: what named it, if the error is to say so.

    Raises:
        UserError: there is no such function, or it takes something else.
    """
    try:
        return _found(text, sample, takes)
    except UserError as error:
        raise UserError(f"{setting} is {text!r}: {error}" if setting else str(error)) from None


def _found(text: str, sample: tuple, takes: str) -> Callable:
    module, _, name = text.partition(":")
    if not module or not name:
        raise UserError("it must be module:function, with a function that is there")
    try:
        found = importlib.import_module(module)
    except BaseException as error:  # a module is the user's and may raise anything
        raise UserError(f"module {module!r} cannot be imported ({told(error)}); it is looked for in the working "
                        "directory and on PYTHONPATH") from None  # fmt: skip
    function = getattr(found, name, None)
    if not callable(function):
        raise UserError(f"{getattr(found, '__file__', module)} has no function {name!r}")
    try:
        inspect.signature(function).bind(*sample)
    except TypeError:
        raise UserError(f"{name}{inspect.signature(function)} must take {takes}") from None
    except ValueError:  # it does not say what it takes
        pass
    return function


def told(error: BaseException) -> str:
    """An error as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")[:MOST_CHARS]
