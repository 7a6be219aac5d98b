"""One reader's queue: what waits for it, its filter and its numbers.

    fanout ──put_nowait──▶ Delivery ──take──▶ a pump, or whoever reads it

No event loop and no thread lives here. Everything is guarded by the lock that the delivery is made with, which all
deliveries of one manager share.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from rollcast.aio import running_loop, wake
from rollcast.errors import InputError
from rollcast.failures import by_signal
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.stream.queue import Control, EventQueue, Item

__all__ = ["Delivery", "ObserverStatistics", "Snapshots", "ensure_not_in_own_hook"]

Snapshots = Callable[[EventFilter], Iterable[StreamEvent]]


class ObserverStatistics(msgspec.Struct, frozen=True):
    """How one observer is doing. Counts are events since it was added; `lag_s` is the age of its oldest one, in seconds."""

    name: str
    mode: str
    delivered: int
    queued: int
    queued_bytes: int
    merged: int
    dropped: int
    failed: int
    lag_s: float


class Delivery(EventQueue):
    """Methods whose names end in `_locked`, and all of `EventQueue`'s, need the lock held.

    Args:
        reader: its name, for gaps, warnings and statistics.
        filter: which events it wants.
        lock: guards the queue.
        limit: bytes of memory that the waiting events may take.
        snapshots: makes a `chain_snapshot` of each open chain that a filter wants, for a reader that lost events.
        lossless: the producer waits while the queue is full.
        threaded: its reader has a thread of its own, so a thread that runs an event loop may wait for it.
        source: as events carry it.

    Attributes:
        on_wake: called, with the lock held, if something waits and nobody is reading.
        on_bad_filter: called, with the lock held, if the filter raises, whose code may be the user's; it wants nothing then.
        on_full: called, with the lock held, when a lossless queue becomes full (True) and when it has room again (False).
        tokens: which chunks it takes, as `StreamObserver.tokens`.
        pulled: it is read when its reader likes, and nobody waits for that.
        ended: nothing more will be put in.
        discarding: what waits is dropped instead of being handed over.
        hook_task: the task in which the reader's hooks are called, the last one if it has ended.
        delivered, failed: counts of events.
    """

    def __init__(
        self,
        reader: str,
        filter: EventFilter,
        *,
        lock: threading.RLock,
        limit: int,
        snapshots: Snapshots,
        lossless: bool = False,
        threaded: bool = False,
        source: str = "",
    ) -> None:
        super().__init__(reader, limit, lossless=lossless, source=source)
        self.filter = filter
        self.lock = lock
        self.threaded = threaded
        self.born = time.perf_counter()
        self.on_wake: Callable[[], object] = lambda: None
        self.on_full: Callable[[Delivery, bool], object] = lambda _delivery, _full: None
        self.on_bad_filter: Callable[[BaseException], object] = lambda _error: None
        self.tokens: Literal["wanted", "shared", "never"] = "wanted"
        self.pulled = False
        self.ended = False
        self.discarding = False
        self.hook_task: asyncio.Task[None] | None = None
        self.delivered = self.failed = 0
        self.begun = 0  # items of those taken last whose handing over has begun
        self.taken_mixed = False  # they were `mixed`
        self._snapshots = snapshots
        self._waiter: asyncio.Future[None] | None = None
        self._in_flight: list[Item] = []
        self._bytes_in_flight = 0
        self._warned: set[str] = set()

    # -- the producer's side -------------------------------------------------------------------------------------------

    def wants(self, event_type: StreamEventType, chain_id: str, group_id: str | None, run_id: str) -> bool:
        """Whether the filter lets such an event pass."""
        try:
            return bool(self.filter.wants(event_type, chain_id, group_id, run_id))
        except BaseException as error:  # a subclass of somebody's may raise anything
            if by_signal(error):
                raise
            self.on_bad_filter(error)
            return False

    def wants_ids(self, chain_id: str, group_id: str | None, run_id: str) -> bool:
        """Whether the ends of this chain's generations are to have their ids."""
        try:
            return bool(self.filter.wants_ids(chain_id, group_id, run_id))
        except BaseException as error:  # as above
            if by_signal(error):
                raise
            self.on_bad_filter(error)
            return False

    def wake(self) -> None:
        """See `EventQueue.wake`."""
        self.awake = True
        waiter, self._waiter = self._waiter, None
        if waiter is None or not wake(waiter):
            self.on_wake()

    def became_full(self) -> None:
        """See `EventQueue.became_full`."""
        self.on_full(self, True)

    def put_uncounted(self, items: list[Item]) -> None:
        """See `EventQueue.put_uncounted`. A reader that died with its event loop is noticed here, once a run at least."""
        super().put_uncounted(items)
        self.on_wake()

    def put_back(self, items: list[Item]) -> None:
        """See `EventQueue.put_back`."""
        if self.discarding:
            self.dropped += sum(not isinstance(item, Control) for item in items)
            items = []
        super().put_back(items)

    def end_locked(self) -> None:
        """Nothing more will be put in; the reader takes what is left."""
        self.ended = True
        if not self.awake:
            self.wake()

    def discard_locked(self) -> None:
        """Drop what waits, and whatever is put in later."""
        self.discarding = True
        self.dropped += len(self.waiting)
        self.items, self.bytes = [], 0

    # -- the reader's side ---------------------------------------------------------------------------------------------

    async def take(self) -> list[Item]:
        """Wait for something and take it, oldest first; empty if the delivery has ended and nothing is left."""
        while True:
            with self.lock:
                items = self.take_locked()
                if items or self.ended:
                    return items
                waiter = self.sleep_locked()
            await waiter

    def take_locked(self) -> list[Item]:
        """Take everything that waits, now that what was taken before has reached the reader.

        It counts as in flight until the next call of this, or of `handed_over_locked`.
        """
        if self.full:
            self.full = False
            self.on_full(self, False)
        self._bytes_in_flight, self.taken_mixed, self.begun = self.bytes, self.mixed, 0
        self._in_flight = items = self.take_nowait(self._snapshots(self.filter) if self._lost else ())
        return items

    def handed_over_locked(self) -> None:
        """What was taken has reached the reader."""
        self._in_flight, self._bytes_in_flight = [], 0
        if self.full:
            self.full = False
            self.on_full(self, False)

    def sleep_locked(self) -> asyncio.Future[None]:
        """The reader is about to wait in the running event loop: a future that is done when something comes."""
        self.awake = False
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        return waiter

    def leave_locked(self) -> None:
        """Nobody reads any more, for now."""
        self.handed_over_locked()
        self.awake, self._waiter = False, None

    def after_fork_locked(self) -> None:
        """In a forked child, whatever waits is the parent's to deliver, and nobody reads."""
        self.take_nowait(())
        self.full = False
        self.leave_locked()

    # -- numbers -------------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> tuple[int, int]:
        """Changes whenever the reader takes something."""
        return self.delivered, self.begun

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being handed over. The lock is held."""
        return not self.items and not self.awake

    @property
    def urgent(self) -> bool:
        """Somebody waits for this reader. The lock is held."""
        return any(isinstance(item, Control) and item.kind == "barrier" for item in self.items)

    def statistics(self) -> ObserverStatistics:
        """The numbers. The lock is held."""
        waiting = self.waiting
        known = (item for item in self._in_flight if not isinstance(item, Control))
        oldest = next(known, waiting[0] if waiting else None)
        return ObserverStatistics(
            name=self.reader,
            mode="lossless" if self.lossless else "coalesce",
            delivered=self.delivered,
            queued=len(waiting) + len(self._in_flight),
            queued_bytes=self.bytes + self._bytes_in_flight,
            merged=self.merged,
            dropped=self.dropped,
            failed=self.failed,
            lag_s=max(0.0, time.time() - oldest.timestamp) if oldest is not None else 0.0,
        )

    def first_time(self, topic: str) -> bool:
        """Whether this is asked for the first time of this topic: for warnings that are to come once."""
        new = topic not in self._warned
        self._warned.add(topic)
        return new


def ensure_not_in_own_hook(what: str, deliveries: Iterable[Delivery]) -> None:
    """Refuse to wait, in an observer's hook, for that very hook to end.

    A task that a hook started, and that may outlive it, is not refused.

    Args:
        what: would wait.
        deliveries: the ones that it would wait for.

    Raises:
        InputError: this task calls the hooks of one of them.
    """
    task = asyncio.current_task() if running_loop() is not None else None
    for delivery in deliveries:
        if task is not None and delivery.hook_task is task:
            raise InputError(
                f"{what} was called in a hook of {delivery.reader}, which it would wait for; call it elsewhere, or in "
                "a task that no hook awaits: asyncio.create_task(…)"
            )
