"""Observers that print, write and call back. The console, and Rich with it, is loaded when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rollcast.stream.observers.callback import CallbackStreamObserver
from rollcast.stream.observers.composite import ChainSpecificStreamObserver, MultiChainStreamObserver
from rollcast.stream.observers.generator import AsyncGeneratorStreamObserver
from rollcast.stream.observers.jsonl import JSONStreamObserver

if TYPE_CHECKING:
    from rollcast.stream.observers.console import ConsoleStreamObserver

__all__ = [
    "AsyncGeneratorStreamObserver",
    "CallbackStreamObserver",
    "ChainSpecificStreamObserver",
    "ConsoleStreamObserver",
    "JSONStreamObserver",
    "MultiChainStreamObserver",
]


def __getattr__(name: str) -> Any:
    if name != "ConsoleStreamObserver":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rollcast.stream.observers.console import ConsoleStreamObserver  # noqa: PLC0415  (loads Rich)

    return ConsoleStreamObserver
