"""Events as an async generator: `async for event in observer.events()`."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator

from rollcast.aio import wake
from rollcast.records import EventFilter, StreamEvent
from rollcast.records.filter import Names
from rollcast.stream.observer import StreamObserver
from rollcast.stream.queue import Control, EventQueue, Item, event_size

__all__ = ["AsyncGeneratorStreamObserver"]

logger = logging.getLogger("rollcast.stream")

MAX_UNREAD = 8 << 20  # bytes of one run's events that wait for a reader to come
# Half of that may wait for a reader who is there; beyond, the manager's queue fills, and coalesces.


class AsyncGeneratorStreamObserver(StreamObserver):
    """Keeps events until `events()` is read.

    One `events()` serves one run: the one that goes on, or else the oldest that nobody has read, or else the next. It ends
    when the chains that the filter names have ended, or, where it names none, when the run has; in any case when the run
    has ended or the observer is removed. So it always ends if a run does: whatever the filter leaves out, whether the
    chains exist, whether the run fails, whether the reader comes before, during or after the run.

    A reader that is slow gets merged chunks, and beyond 8 MiB a `gap`, as every observer; it never slows the rollout.

    Args:
        chain_filter: a chain id, several, or an `EventFilter`; None: everything.
    """

    def __init__(self, chain_filter: EventFilter | Names = None) -> None:
        self.filter = EventFilter.coerce(chain_filter)
        self._lock = threading.Lock()
        self._runs: dict[str, _RunBuffer] = {}  # in the order in which they opened
        self._waiters: list[asyncio.Future[None]] = []
        self._room = MAX_UNREAD
        self._gone = 0  # how often the observer was removed

    async def events(self) -> AsyncIterator[StreamEvent]:
        """The events of one run, oldest first, as they come."""
        buffer = await self._claim()
        if buffer is None:
            return
        items: deque[Item] = deque()
        finished = False
        try:
            while not finished:
                items.extend(await self._take(buffer))
                while items and not finished:
                    item = items.popleft()
                    if isinstance(item, StreamEvent):
                        yield item
                    else:
                        finished = buffer.finished_by(item)
        finally:
            self._leave(buffer, list(items), finished=finished)

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self.events()

    # -- the reader's side ---------------------------------------------------------------------------------------------

    async def _claim(self) -> _RunBuffer | None:
        """The run to read; None where the observer was removed before one began."""
        gone = self._gone
        while True:
            with self._lock:
                free = [buffer for buffer in self._runs.values() if not buffer.being_read]
                if free:
                    free[0].being_read = True
                    free[0].left = False
                    return free[0]
                if self._gone != gone:
                    return None
                waiter = self._waiter()
            await waiter

    async def _take(self, buffer: _RunBuffer) -> list[Item]:
        while True:
            with self._lock:
                items = buffer.take_nowait(())
                if items:
                    self._wake()  # who waits for room
                    return items
                waiter = self._waiter()
            await waiter

    def _leave(self, buffer: _RunBuffer, unread: list[Item], *, finished: bool) -> None:
        """A run that was read to its end is done with; one that was left early can be gone on with while it lasts."""
        with self._lock:
            buffer.being_read = False
            buffer.left = True
            buffer.put_back(unread)
            if finished or buffer.closed:
                self._runs.pop(buffer.run_id, None)
            self._wake()

    def _waiter(self) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            wake(waiter)

    # -- the manager's side --------------------------------------------------------------------------------------------

    async def on_event(self, event: StreamEvent) -> None:
        """Keep it for the reader."""
        await self.on_batch([event])

    async def on_batch(self, events: list[StreamEvent]) -> None:
        """Keep them for the reader; wait for a reader who is there and slow."""
        if self.manager is not None and self.manager.queue_limit > self._room:
            self._room = self.manager.queue_limit  # it grows with the open chains
        with self._lock:
            for event in events:
                buffer = self._runs.get(event.run_id)
                if buffer is not None:
                    buffer.limit = self._room
                    buffer.put_nowait(event, event_size(event))
            self._wake()
        while True:
            with self._lock:
                if not any(b.being_read and b.bytes > self._room // 2 for b in self._runs.values()):
                    return
                waiter = self._waiter()
            await waiter

    async def on_run_opened(self, run_id: str) -> None:
        """A run that somebody may read."""
        with self._lock:
            for other in [b for b in self._runs.values() if b.closed and not b.being_read][:-1]:
                logger.debug("nobody read the events of run %s; they are dropped", other.run_id)
                del self._runs[other.run_id]
            if any(part.runs is None or run_id in part.runs for part in self.filter.alternatives):
                self._runs[run_id] = _RunBuffer(run_id, self.name, self._last_chains())
                self._wake()

    def _last_chains(self) -> set[str]:
        """The chains after whose end nothing more can come; none where only the run's end tells."""
        named: set[str] = set()
        for part in self.filter.alternatives:
            if part.chains is None:
                return set()
            named |= part.chains
        return named

    async def on_chain_closed(self, run_id: str, chain_id: str) -> None:
        """Its readers may be done."""
        self._mark(Control("chain_closed", run_id, chain_id))

    async def on_run_closed(self, run_id: str) -> None:
        """Its readers are done."""
        self._mark(Control("run_closed", run_id))

    def _mark(self, control: Control) -> None:
        with self._lock:
            buffer = self._runs.get(control.run_id)
            if buffer is None:
                return
            if control.kind == "run_closed":
                buffer.closed = True
                if buffer.left:
                    del self._runs[control.run_id]
            buffer.put_uncounted([control])
            self._wake()

    async def aclose(self) -> None:
        """End every reader."""
        with self._lock:
            self._gone += 1
            for buffer in self._runs.values():
                buffer.put_uncounted([Control("run_closed", buffer.run_id)])
                buffer.closed = True
            self._wake()


class _RunBuffer(EventQueue):
    """What waits of one run."""

    def __init__(self, run_id: str, name: str, chains: set[str]) -> None:
        super().__init__(name, MAX_UNREAD)
        self.run_id = run_id
        self.being_read = False  # somebody reads it
        self.left = False  # somebody did, and stopped
        self.closed = False  # nothing more comes
        self._chains = chains

    def finished_by(self, control: Control) -> bool:
        """Whether nothing more comes after this."""
        if control.kind == "chain_closed" and control.chain_id in self._chains:
            self._chains.discard(control.chain_id)
            return not self._chains
        return control.kind == "run_closed"
