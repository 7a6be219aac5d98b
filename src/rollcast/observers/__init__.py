"""Observers that write, call back, combine others, measure and raise alarms. Each is loaded when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollcast.lazy import lazy_names

if TYPE_CHECKING:
    from rollcast.observers.alert import AlertObserver
    from rollcast.observers.callback import CallbackStreamObserver
    from rollcast.observers.composite import ChainSpecificStreamObserver, MultiChainStreamObserver
    from rollcast.observers.generator import AsyncGeneratorStreamObserver
    from rollcast.observers.hints import HintObserver
    from rollcast.observers.jsonl import JSONStreamObserver
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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "rollcast.observers.alert": "AlertObserver",
        "rollcast.observers.callback": "CallbackStreamObserver",
        "rollcast.observers.composite": "ChainSpecificStreamObserver MultiChainStreamObserver",
        "rollcast.observers.generator": "AsyncGeneratorStreamObserver",
        "rollcast.observers.hints": "HintObserver",
        "rollcast.observers.jsonl": "JSONStreamObserver",
        "rollcast.observers.otel": "OpenTelemetryStreamObserver",
        "rollcast.observers.prometheus": "PrometheusStreamObserver",
    },
)
