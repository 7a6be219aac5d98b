"""Observers that write, call back, combine others, measure and raise alarms. Those that load much are loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rollcast.observers.callback import CallbackStreamObserver
from rollcast.observers.composite import ChainSpecificStreamObserver, MultiChainStreamObserver
from rollcast.observers.generator import AsyncGeneratorStreamObserver
from rollcast.observers.jsonl import JSONStreamObserver

if TYPE_CHECKING:
    from rollcast.observers.alert import AlertObserver
    from rollcast.observers.hints import HintObserver
    from rollcast.observers.otel import OpenTelemetryStreamObserver
    from rollcast.observers.prometheus import PrometheusStreamObserver

__all__ = [
    "AlertObserver",
    "AsyncGeneratorStreamObserver",
    "CallbackStreamObserver",
    "ChainSpecificStreamObserver",
    "HintObserver",
    "JSONStreamObserver",
    "MultiChainStreamObserver",
    "OpenTelemetryStreamObserver",
    "PrometheusStreamObserver",
]


_LAZY = {
    "AlertObserver": "alert",
    "HintObserver": "hints",
    "OpenTelemetryStreamObserver": "otel",
    "PrometheusStreamObserver": "prometheus",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
