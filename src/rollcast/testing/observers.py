"""Observers for tests: one that keeps what it gets, and ones that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from rollcast.records import EventFilter, StreamEvent, StreamEventType, check_events
from rollcast.stream import DeliveryMode, StreamingManager, StreamObserver

__all__ = ["EventCapture", "RaisingObserver", "StallingObserver", "capture_events"]


class EventCapture(StreamObserver):
    """Keeps every event that it gets.

    Args:
        filter: the events that it gets.
        mode: `lossless` by default, so that nothing is merged.
    """

    def __init__(self, filter: EventFilter | None = None, mode: DeliveryMode = "lossless") -> None:
        self.filter = filter if filter is not None else EventFilter()
        self.mode = mode
        self.events: list[StreamEvent] = []
        self.closed_runs: list[str] = []
        self.closed_chains: list[str] = []

    async def on_event(self, event: StreamEvent) -> None:
        """Keep it."""
        self.events.append(event)

    async def on_run_closed(self, run_id: str) -> None:
        """Keep its id."""
        self.closed_runs.append(run_id)

    async def on_chain_closed(self, run_id: str, chain_id: str) -> None:
        """Keep its id."""
        self.closed_chains.append(chain_id)

    def of(self, event_type: StreamEventType | str, chain_id: str | None = None) -> list[StreamEvent]:
        """The events of one type; of one chain, if it is named."""
        return [e for e in self.events if e.event_type == event_type and chain_id in (None, e.chain_id)]

    def types(self, chain_id: str | None = None) -> list[str]:
        """The types in order; of one chain, if it is named."""
        return [e.event_type.value for e in self.events if chain_id in (None, e.chain_id)]

    def text(self, chain_id: str, step: int | None = None) -> str:
        """The joined text of the chain's chunks; of one step, if it is named."""
        chunks = self.of(StreamEventType.LLM_GENERATION_CHUNK, chain_id)
        return "".join(e.data["content"] for e in chunks if step in (None, e.step))

    def check(self, *, late: bool = False) -> None:
        """Check the grammar of the events.

        Raises:
            GrammarError: it is broken.
        """
        check_events(self.events, late=late)


@contextmanager
def capture_events(manager: StreamingManager, filter: EventFilter | None = None) -> Iterator[EventCapture]:
    """Keep the manager's events while the block runs."""
    capture = EventCapture(filter)
    manager.add_observer(capture)
    try:
        yield capture
    finally:
        manager.remove_observer(capture)


class StallingObserver(StreamObserver):
    """Takes `after` events and then hangs, until `release()` or for ever."""

    def __init__(self, after: int = 0, mode: DeliveryMode = "coalesce") -> None:
        self.mode = mode
        self.after = after
        self.events: list[StreamEvent] = []
        self.stalled = asyncio.Event()
        self._released = asyncio.Event()

    async def on_event(self, event: StreamEvent) -> None:
        """Take it, or hang."""
        if len(self.events) >= self.after and not self._released.is_set():
            self.stalled.set()
            await self._released.wait()
        self.events.append(event)

    def release(self) -> None:
        """Go on, from the event loop in which it hangs."""
        self._released.set()


class RaisingObserver(StreamObserver):
    """Raises on every event, or on the first `times`."""

    def __init__(self, times: int | None = None, error: Exception | None = None) -> None:
        self.times = times
        self.error = error if error is not None else ValueError("this observer raises, as it was told to")
        self.calls = 0
        self.events: list[StreamEvent] = []

    async def on_event(self, event: StreamEvent) -> None:
        """Raise, or take it."""
        self.calls += 1
        if self.times is None or self.calls <= self.times:
            raise self.error
        self.events.append(event)
