"""Helpers for tests, ours and yours: a scripted backend, captured events, observers that misbehave."""

from rollcast.testing.observers import EventCapture, RaisingObserver, StallingObserver, capture_events
from rollcast.testing.scripted import ScriptedBackend, tokens_of

__all__ = [
    "EventCapture",
    "RaisingObserver",
    "ScriptedBackend",
    "StallingObserver",
    "capture_events",
    "tokens_of",
]
