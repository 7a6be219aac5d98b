"""The console, which shows chains on a terminal, and its parts. Rich is loaded when the console is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollcast.terminal.console import ConsoleStreamObserver

__all__ = ["ConsoleStreamObserver"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.console").ConsoleStreamObserver
