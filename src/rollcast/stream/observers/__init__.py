"""Observers that print, write, call back and measure. What needs Rich or an extra is loaded when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rollcast.stream.observers.callback import CallbackStreamObserver
from rollcast.stream.observers.composite import ChainSpecificStreamObserver, MultiChainStreamObserver
from rollcast.stream.observers.generator import AsyncGeneratorStreamObserver
from rollcast.stream.observers.jsonl import JSONStreamObserver

if TYPE_CHECKING:
    from rollcast.stream.observers.console import ConsoleStreamObserver
    from rollcast.stream.observers.otel import OpenTelemetryStreamObserver
    from rollcast.stream.observers.prometheus import PrometheusStreamObserver

__all__ = [
    "AsyncGeneratorStreamObserver",
    "CallbackStreamObserver",
    "ChainSpecificStreamObserver",
    "ConsoleStreamObserver",
    "JSONStreamObserver",
    "MultiChainStreamObserver",
    "OpenTelemetryStreamObserver",
    "PrometheusStreamObserver",
]


_LAZY = {
    "ConsoleStreamObserver": "console",
    "OpenTelemetryStreamObserver": "otel",
    "PrometheusStreamObserver": "prometheus",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
