"""Helpers for tests, ours and yours: a scripted backend and server, captured events, observers that misbehave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rollcast.testing.observers import EventCapture, RaisingObserver, StallingObserver, capture_events
from rollcast.testing.openai_answers import ServedAnswer, ServedCall
from rollcast.testing.scripted import ScriptedBackend, tokens_of

if TYPE_CHECKING:
    from rollcast.testing.openai_server import OpenAIServer, ReceivedRequest

__all__ = [
    "EventCapture",
    "OpenAIServer",
    "RaisingObserver",
    "ReceivedRequest",
    "ScriptedBackend",
    "ServedAnswer",
    "ServedCall",
    "StallingObserver",
    "capture_events",
    "tokens_of",
]


def __getattr__(name: str) -> Any:
    if name in {"OpenAIServer", "ReceivedRequest"}:
        from rollcast.testing import openai_server  # noqa: PLC0415  (imports aiohttp, which is an extra)

        return getattr(openai_server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
