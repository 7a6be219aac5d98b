"""The base class of every observer."""

from __future__ import annotations

import asyncio
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeGuard

from rollcast.errors import InputError
from rollcast.records import EventFilter, StreamEvent
from rollcast.stream.delivery import REST_S, ObserverStatistics
from rollcast.stream.fanout import Fanout
from rollcast.stream.waiting import Encodable, Relayed, encodable

__all__ = [
    "ChunkInterest",
    "DeliveryMode",
    "EncodingObserver",
    "PulledObserver",
    "StreamObserver",
    "inherits",
    "is_pulled",
    "overrides_on_batch",
]

DeliveryMode = Literal["coalesce", "lossless"]
ChunkInterest = Literal["wanted", "shared", "never"]


_BASES = type.__dict__["__mro__"]


class StreamObserver(ABC):
    """Gets the events of the manager that it is added to. Override `on_event`, or `on_batch` for speed.

    An instance belongs to one manager at a time and may be added again later. It is never called twice at once.

    Attributes:
        filter: which events it gets; the others are not made for this observer. After changing it call `manager.refresh()`.
        mode: what happens when this observer falls behind. `coalesce`: neighbouring chunks merge, and beyond a limit a
            `gap` stands for what was dropped. `lossless`: the rollout waits.
        threaded: True if the observer blocks (files, terminals): it is then called on a thread of its own, with an
            event loop of its own. False: it is called in the event loop of the run and must not block it.
        chunk_interest: `wanted`: it gets the chunks that its filter wants. `shared`: it gets only those that are made for another
            observer anyway, so a token that nobody else watches costs nothing. `never`: it gets no chunks.
        queue_limit_bytes: how many bytes of memory its waiting events may take, if that is more than its manager allows each observer.
        loop: the event loop in which to call it while that loop runs; None: that of the run.
        manager: the manager that it is added to, or None.
    """

    filter: EventFilter = EventFilter()
    mode: DeliveryMode = "coalesce"
    threaded: bool = False
    chunk_interest: ChunkInterest = "wanted"
    queue_limit_bytes: int = 0
    loop: asyncio.AbstractEventLoop | None = None
    manager: Any = None  # a StreamingManager, which imports this module

    @property
    def name(self) -> str:
        """The observer's name in warnings, errors and statistics."""
        return type(self).__name__

    @abstractmethod
    async def on_event(self, event: StreamEvent) -> None:
        """Take one event. An exception is logged and reported; five in a row detach the observer."""

    async def on_batch(self, events: list[StreamEvent]) -> None:
        """Take the events that are waiting, oldest first. If this is overridden, `on_event` is not called."""
        for event in events:
            await self.on_event(event)

    async def on_chain_closed(self, run_id: str, chain_id: str) -> None:  # noqa: B027  (a hook)
        """Called when all events of the chain were delivered, whatever the filter leaves out."""

    async def on_run_opened(self, run_id: str) -> None:  # noqa: B027  (a hook)
        """Called when a run begins, or is open while the observer is added, whatever the filter leaves out."""

    async def on_run_closed(self, run_id: str) -> None:  # noqa: B027  (a hook)
        """Called when all events of the run were delivered, whatever the filter leaves out."""

    def leaves(self) -> dict[StreamObserver, EventFilter]:
        """The observers that events actually go to, each with its filter: this one, unless it stands for others.

        Each leaf has its own queue, its own thread if it is threaded, and its own failures. After a change to what this
        returns, call `manager.refresh()`.
        """
        return {self: self.filter}

    def report(self, error: BaseException) -> None:
        """Report a failure that this observer survives to the others, as an `error` event from `observer:NAME`."""
        if self.manager is not None:
            self.manager.report(self, error)

    async def aclose(self) -> None:  # noqa: B027  (a hook)
        """Flush and release resources after removal. The observer may be added again later."""


class EncodingObserver(StreamObserver):
    """An observer that encodes what it gets and hardly looks at it, so that most chunks need no event.

    Chunks may come as `EncodableChunk`, unless a subclass overrides `on_batch`, which gets events.

    Attributes:
        rest_s: if it is `threaded`, the seconds between two calls, in which events gather.
    """

    rest_s = REST_S

    @abstractmethod
    async def on_encodable(self, events: Sequence[Encodable]) -> None:
        """Take the events that are waiting, oldest first."""

    async def on_passage(self, events: Sequence[Relayed], lines: Sequence[bytes | None]) -> None:
        """Take relayed events that are waiting, oldest first, of a lossless observer.

        Args:
            events: as for `on_encodable`, or an `EncodableEvent`.
            lines: the JSON that each was read from, as its producer wrote it; None for an event that was made here.
        """
        await self.on_encodable(encodable(events))

    async def on_event(self, event: StreamEvent) -> None:
        """See `StreamObserver.on_event`."""
        await self.on_batch([event])

    async def on_batch(self, events: list[StreamEvent]) -> None:
        """See `StreamObserver.on_batch`."""
        await self.on_encodable(events)

    def takes_encodable(self) -> bool:
        """Whether `on_batch` is not overridden."""
        return getattr(self.on_batch, "__func__", None) is EncodingObserver.on_batch


class PulledObserver(StreamObserver):
    """An observer that is not called: it takes its events from deliveries of its own.

    Attributes:
        lock: guards the observer; once it was added, this is the manager's lock.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()

    async def on_event(self, event: StreamEvent) -> None:
        """Raise, since this observer is not called.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.name} takes its events from a manager; add it to one with add_observer")

    @abstractmethod
    def attach_locked(self, fanout: Fanout, name: str, filter: EventFilter) -> None:
        """Called when it was added: take the events that the filter wants from now on. The fanout's lock is held."""

    @abstractmethod
    def set_filter_locked(self, filter: EventFilter) -> None:
        """Use this filter from now on."""

    @abstractmethod
    def detach_locked(self) -> None:
        """Called when it was removed: take nothing more."""

    @abstractmethod
    def statistics_locked(self) -> ObserverStatistics:
        """The statistics of all its queues together."""


def inherits(observer: object, kind: type) -> bool:
    """Whether the observer's class is derived from this one. Unlike `isinstance`, this runs no code of the observer's."""
    return kind in _BASES.__get__(type(observer))


def is_pulled(observer: StreamObserver) -> TypeGuard[PulledObserver]:
    """Whether the observer takes its events itself."""
    return inherits(observer, PulledObserver)


def overrides_on_chain_closed(observer: StreamObserver) -> bool:
    """Whether the observer, or its class, has an `on_chain_closed` of its own. This runs no code of the observer's."""
    found = inspect.getattr_static(observer, "on_chain_closed", None)
    return found is not StreamObserver.on_chain_closed


def overrides_on_batch(observer: StreamObserver) -> bool:
    """Whether the observer's class has an `on_batch` of its own. This runs no code of the observer's."""
    return inspect.getattr_static(type(observer), "on_batch") is not StreamObserver.on_batch
