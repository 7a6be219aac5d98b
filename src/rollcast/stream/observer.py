"""What watches: the base class of every observer."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from typing import Any, Literal

from rollcast.errors import InputError
from rollcast.records import EventFilter, StreamEvent
from rollcast.stream.delivery import ObserverStatistics
from rollcast.stream.fanout import Fanout

__all__ = ["DeliveryMode", "PulledObserver", "StreamObserver", "TokenInterest"]

DeliveryMode = Literal["coalesce", "lossless"]
TokenInterest = Literal["wanted", "shared", "never"]


class StreamObserver(ABC):
    """Gets the events of the managers to which it is added. Override `on_event`, or `on_batch` for speed.

    An instance belongs to one manager at a time and may be added again later. It is never called twice at once.

    Attributes:
        filter: which events; what it leaves out is not built for this observer. After a change of it call `manager.refresh()`.
        mode: what happens when this observer falls behind. `coalesce`: neighbouring chunks merge, and beyond a limit a
            `gap` stands for what was dropped. `lossless`: the rollout waits.
        threaded: True where the observer blocks (files, terminals): it is then called on a thread of its own, with an
            event loop of its own. False: it is called in the event loop of the run and must not block it.
        tokens: `wanted`: it gets the chunks that its filter wants. `shared`: those of them that are made for another observer
            anyway, so that a token that nobody else watches stays free. `never`: no chunks.
        queue_limit: bytes of memory that its waiting events may take, if that is more than its manager gives each observer.
        loop: the event loop in which it wants to be called while that runs; None: that of the run.
        manager: the manager to which it is added, or None.
    """

    filter: EventFilter = EventFilter()
    mode: DeliveryMode = "coalesce"
    threaded: bool = False
    tokens: TokenInterest = "wanted"
    queue_limit: int = 0
    loop: asyncio.AbstractEventLoop | None = None
    manager: Any = None  # a StreamingManager, which imports this module

    @property
    def name(self) -> str:
        """How warnings, errors and statistics call this observer."""
        return type(self).__name__

    @abstractmethod
    async def on_event(self, event: StreamEvent) -> None:
        """Take one event. Raising is logged and reported; five times in a row detaches the observer."""

    async def on_batch(self, events: list[StreamEvent]) -> None:
        """Take the events that are waiting, oldest first. Where this is overridden, `on_event` is not called."""
        for event in events:
            await self.on_event(event)

    async def on_chain_closed(self, run_id: str, chain_id: str) -> None:  # noqa: B027  (a hook)
        """All events of the chain were delivered; comes whatever the filter leaves out."""

    async def on_run_opened(self, run_id: str) -> None:  # noqa: B027  (a hook)
        """A run begins, or is going on while the observer is added; comes whatever the filter leaves out."""

    async def on_run_closed(self, run_id: str) -> None:  # noqa: B027  (a hook)
        """All events of the run were delivered; comes whatever the filter leaves out."""

    def leaves(self) -> dict[StreamObserver, EventFilter]:
        """The observers to which events really go, each with what it wants: this one, unless it stands for others.

        Each leaf has a queue, a thread where it is threaded, and its failures to itself. After a change of what this
        returns, call `manager.refresh()`.
        """
        return {self: self.filter}

    def report(self, error: BaseException) -> None:
        """Tell the other observers of a failure that this one survives, as an `error` event `observer:NAME`."""
        if self.manager is not None:
            self.manager.report(self, error)

    async def aclose(self) -> None:  # noqa: B027  (a hook)
        """Flush and let go, after removal. The observer may be added again later."""


class PulledObserver(StreamObserver):
    """An observer that is not called: it takes its events itself, from deliveries of its own.

    Attributes:
        lock: guards it; the manager's, once it was added to one.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()

    async def on_event(self, event: StreamEvent) -> None:
        """It is not called.

        Raises:
            InputError: somebody called it.
        """
        raise InputError(f"{self.name} takes its events from a manager; add it to one with add_observer")

    @abstractmethod
    def attach_locked(self, fanout: Fanout, name: str, filter: EventFilter) -> None:
        """It was added: take events that the filter wants, from now on. The fanout's lock is held."""

    @abstractmethod
    def set_filter_locked(self, filter: EventFilter) -> None:
        """From now on it wants what this filter wants."""

    @abstractmethod
    def detach_locked(self) -> None:
        """It was removed: take nothing more."""

    @abstractmethod
    def statistics_locked(self) -> ObserverStatistics:
        """The numbers of its queues together."""
