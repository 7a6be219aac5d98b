"""Events over a WebSocket: the server, the client, and the protocol between them (docs/server.md)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollcast.records.secrets import Masker
    from rollcast.serve.asking import QueryRows
    from rollcast.serve.client import WebSocketStreamingClient
    from rollcast.serve.hub_observer import HubStreamObserver
    from rollcast.serve.server import WebSocketStreamingServer
    from rollcast.serve.settings import Limits, ServerSettings, Token

__all__ = [
    "HubStreamObserver",
    "Limits",
    "Masker",
    "QueryRows",
    "ServerSettings",
    "Token",
    "WebSocketStreamingClient",
    "WebSocketStreamingServer",
]

_HOME = {
    "HubStreamObserver": "serve.hub_observer",
    "Limits": "serve.settings",
    "Masker": "records.secrets",
    "QueryRows": "serve.asking",
    "ServerSettings": "serve.settings",
    "Token": "serve.settings",
    "WebSocketStreamingClient": "serve.client",
    "WebSocketStreamingServer": "serve.server",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rollcast.serve' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rollcast.{_HOME[name]}"), name)
