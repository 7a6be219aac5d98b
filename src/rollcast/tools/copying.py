"""Copies and pickles tools and rewards: they are found by their function's name, or made again from the function."""

from __future__ import annotations

import importlib
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

__all__ = ["reduced"]


def reduced(
    value: Any, function: Callable[..., Any], make: Callable[..., Any], settings: dict[str, Any]
) -> tuple[Any, ...]:
    """Return what `__reduce__` returns: the name if a module has the value under its function's name, else how to make it.

    The name of a decorated function leads to what the decorator made, so the function is found through that.

    Args:
        value: the tool or reward.
        function: the function that it was made from.
        make: makes it again from the function and the settings.
        settings: its settings, which can be pickled.

    Raises:
        pickle.PicklingError: no other process could find the function, and the pickler does not take its code along.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    pickler = _pickler_of_code()
    takes_code = pickler is not None
    found: Any = _found(module, name) if isinstance(module, str) and isinstance(name, str) else None
    if pickler is not None and _goes_by_value(module, pickler):
        found = function
    if found is value:
        return _found, (module, name)
    if type(found) is type(value) and found.function is function:
        return _again, (make, _Found(module, name), settings)
    if isinstance(function, types.FunctionType) and found is not function and not takes_code:
        raise pickle.PicklingError(
            f"{value!r} cannot be pickled: its function {name!r} is not at the top level of the module {module!r}; define it "
            "there, or pickle with cloudpickle, which takes the code along"
        )
    return _again, (make, function, settings)


class _Found:
    """A function that is found through what a decorator made from it."""

    def __init__(self, module: Any, name: Any) -> None:
        self.module, self.name = module, name


def _again(make: Callable[..., Any], source: Any, settings: dict[str, Any]) -> Any:
    function = _found(source.module, source.name).function if isinstance(source, _Found) else source
    return make(function, settings)


def _found(module: Any, name: Any) -> Any:
    """The module's attribute of this name; None if there is none."""
    try:
        value: Any = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError):
        return None
    return value


def _pickler_of_code() -> dict[str, Any] | None:
    """The globals of the calling pickler if it saves the code of functions: cloudpickle, which Ray has too, or dill."""
    frame: types.FrameType | None = sys._getframe(2)  # noqa: SLF001  (documented; nothing else tells the caller)
    while frame is not None:
        if {"cloudpickle", "dill"}.intersection(str(frame.f_globals.get("__name__", "")).split(".")):
            return frame.f_globals
        frame = frame.f_back
    return None


def _goes_by_value(module: Any, pickler: dict[str, Any]) -> bool:
    """Whether the pickler takes the code of a module along, instead of its name."""
    if module == "__main__":  # another process has another __main__
        return True
    registered = pickler.get("list_registry_pickle_by_value", set)()
    return any(module == name or str(module).startswith(f"{name}.") for name in registered)
