"""The console, which shows chains on a terminal, and its parts. Rich is loaded when the console is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollcast.lazy import lazy_names

if TYPE_CHECKING:
    from rollcast.terminal.console import ConsoleStreamObserver

__all__ = ["ConsoleStreamObserver"]

__getattr__, __dir__ = lazy_names(__name__, {"rollcast.terminal.console": "ConsoleStreamObserver"})
