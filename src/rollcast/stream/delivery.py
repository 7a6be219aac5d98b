"""One reader's queue, with its filter and its counts.

    fanout ──put_nowait──▶ Delivery ──take──▶ a pump, or another reader

It has no event loop or thread of its own. The lock that the delivery is made with guards everything; all deliveries of one
manager share it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Literal, cast

import msgspec

from rollcast.aio import running_loop, wake
from rollcast.errors import InputError
from rollcast.failures import by_signal, text_and_place
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.stream.asked import AskedChains
from rollcast.stream.own_filter import OwnFilter
from rollcast.stream.queue import Control, EventQueue, Item, Single, events_of, single
from rollcast.stream.waiting import event_of

__all__ = ["REST_S", "Delivery", "ObserverStatistics", "Snapshots", "ensure_not_in_own_hook"]

logger = logging.getLogger("rollcast.stream")

REST_S = 0.01  # a threaded reader wakes at most this often, to compete less for the interpreter lock

Snapshots = Callable[[EventFilter], Iterable[StreamEvent]]


class ObserverStatistics(msgspec.Struct, frozen=True):
    """How one observer is doing. Counts are events since it was added; `lag_s` is the age of its oldest queued event, in seconds."""

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
    """One reader's queue. Methods whose names end in `_locked`, and all methods of `EventQueue`, need the lock held.

    Args:
        reader: the reader's name, for gaps, warnings and statistics.
        filter: which events the reader wants.
        lock: guards the queue.
        limit: how many bytes of memory the waiting events may take.
        snapshots: makes a `chain_snapshot` of each open chain that a filter wants, for a reader that lost events.
        lossless: whether the producer waits while the queue is full.
        threaded: whether the reader has a thread of its own, so that a thread that runs an event loop may wait for it.

    Attributes:
        on_wake: called, with the lock held, if something waits and nobody is reading.
        on_bad_filter: called if the filter raises, whose code may be the user's; the event does not pass then.
        on_full: called, with the lock held, when a lossless queue becomes full (True) and when it has room again (False).
        tokens: which chunks the reader takes; see `StreamObserver.chunk_interest`.
        encodes: whether the reader takes an `EncodableChunk` as it is.
        rest_s: the seconds between two calls of a reader that has a thread of its own.
        follows_chains: whether it is told when a chain has closed: its reader wants to know, or its chunks may be merged.
        pulled: whether the reader takes events at its own pace, and nothing waits for it.
        asked: what the reader has not asked yet, if it is one that asks (`asked.py`); None for any other.
        names_are_meant: whether it is a mistake if the filter names chains that a run does not have.
        ended: whether nothing more will be put in.
        discarding: whether waiting items are dropped instead of handed over.
        hook_task: the task that calls the reader's hooks, or called them last.
        delivered, failed: how many events were delivered, and how many calls failed.
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
    ) -> None:
        super().__init__(reader, limit, lossless=lossless)
        self.filter = filter
        self.lock = lock
        self.threaded = threaded
        self.born = time.perf_counter()
        self.on_wake: Callable[[], object] = lambda: None
        self.on_full: Callable[[Delivery, bool], object] = lambda _delivery, _full: None
        self.on_bad_filter: Callable[[BaseException], object] = self._bad_filter
        self.names_are_meant = True
        self.tokens: Literal["wanted", "shared", "never"] = "wanted"
        self.encodes = False
        self.rest_s = REST_S
        self.follows_chains = True
        self.pulled = False
        self.asked: AskedChains | None = None
        self.ended = False
        self.discarding = False
        self.hook_task: asyncio.Task[None] | None = None
        self.delivered = self.failed = 0
        self.begun = 0  # of the items taken last, how many the reader has been given or is being given
        self.taken_mixed = False  # the items taken last were `mixed`
        self._snapshots = snapshots
        self._waiter: asyncio.Future[None] | None = None
        self._resting: asyncio.Future[None] | None = None
        self._in_flight: list[Item] = []
        self._bytes_in_flight = 0
        self._warned: set[str] = set()

    # -- the producer's side -------------------------------------------------------------------------------------------

    def wants(
        self, event_type: StreamEventType, chain_id: str, group_id: str | None, run_id: str, source: str
    ) -> bool:
        """Whether the filter lets such an event pass."""
        return self.filter.wants(event_type, chain_id, group_id, run_id, source)

    @property
    def takes_passages(self) -> bool:
        """Whether events may be put in as a `Passage`."""
        return self.lossless and self.encodes and not self.pulled and type(self.filter) is not OwnFilter

    def wants_ids(self, chain_id: str, group_id: str | None, run_id: str, source: str) -> bool:
        """Whether the filter asks for the ids of this chain's generations."""
        return self.filter.wants_ids(chain_id, group_id, run_id, source)

    @property
    def timed(self) -> bool:
        """See `EventQueue.timed`: the filter asks for ids, and so for their times."""
        return any(wanted.ids for wanted in self.filter.alternatives)

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
        """See `EventQueue.put_uncounted`. At least once in each run this notices a reader that died with its event loop."""
        super().put_uncounted(items)
        self.on_wake()
        if _has_barrier(items):
            self._rouse()

    def put_back(self, items: list[Item]) -> None:
        """See `EventQueue.put_back`."""
        if self.discarding:
            self.dropped += len(events_of(items))
            items = []
        super().put_back(items)

    def end_locked(self) -> None:
        """End the queue: nothing more will be put in, and the reader takes what is left."""
        self.ended = True
        self._rouse()
        if not self.awake:
            self.wake()

    def discard_locked(self) -> None:
        """Drop what waits, and everything that is put in later."""
        self.discarding = True
        self.dropped += len(self.waiting)
        self.items, self.bytes = [], 0

    # -- the reader's side ---------------------------------------------------------------------------------------------

    async def take(self) -> list[Single]:
        """Wait for items and take them, oldest first; empty if the delivery has ended and nothing is left."""
        while True:
            with self.lock:
                items = self.take_locked()
                over = not items and self.ended
                waiter = None if items or over else self.sleep_locked()
            if waiter is not None:
                await waiter
            elif over or (passing := self._passing(items)):
                return [] if over else passing

    def take_locked(self) -> list[Item]:
        """Take everything that waits. Call this when what was taken before has reached the reader.

        The items count as in flight until the next call of this or of `handed_over_locked`.
        """
        self._rouse()
        if self.full:
            self.full = False
            self.on_full(self, False)
        self._bytes_in_flight, self.taken_mixed, self.begun = self.bytes, self.mixed, 0
        self._in_flight = items = self.take_nowait(self._snapshots(self.filter) if self._lost else ())
        return items

    def handed_over_locked(self) -> None:
        """Note that what was taken has reached the reader."""
        self._in_flight, self._bytes_in_flight = [], 0
        if self.full:
            self.full = False
            self.on_full(self, False)

    def sleep_locked(self) -> asyncio.Future[None]:
        """Put the reader to sleep: a future of the running event loop, which is done when something comes."""
        self.awake = False
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        return waiter

    def rest_locked(self) -> asyncio.Future[None]:
        """Let the reader rest: a future of the running event loop, which is done when something waits for the reader, or when half of
        what may wait does, so that nothing is merged or dropped since it rests.
        """
        self._resting = resting = asyncio.get_running_loop().create_future()
        self.shrink_sooner()
        return resting

    def _rouse(self) -> None:
        """End the reader's rest, if it rests."""
        resting, self._resting = self._resting, None
        if resting is not None:
            self.shrink_as_usual()
            wake(resting)

    def _shrink(self) -> None:
        if self._resting is not None:
            self._rouse()
            if self.bytes <= self.limit and len(self.items) < self._least_to_compact:
                return
        super()._shrink()

    def leave_locked(self) -> None:
        """Note that there is no reader for now."""
        self.handed_over_locked()
        self.awake, self._waiter = False, None

    def after_fork_locked(self) -> None:
        """In a forked child: drop what waits, since the parent delivers it, and have no reader."""
        self.take_nowait(())
        self.full, self._resting = False, None
        self.leave_locked()

    # -- a filter of the user's own: the lock is not held, since it may take long --------------------------------------

    def passes(self, event: StreamEvent) -> bool:
        """Whether the event is to be handed over: of a filter of the user's own, nobody else asks."""
        wanted = self.filter
        if type(wanted) is not OwnFilter:
            return True
        try:
            return wanted.passes(event)
        except BaseException as error:  # the user's code may raise anything
            if by_signal(error):
                raise
            self.on_bad_filter(error)
            return False

    def _passing(self, items: list[Item]) -> list[Single]:
        if type(self.filter) is not OwnFilter:
            return cast("list[Single]", items)  # a `Passage` is only put in for a pump
        return [item for item in single(items) if isinstance(item, Control) or self.passes(event_of(item))]

    def _bad_filter(self, error: BaseException) -> None:
        if self.first_time("filter"):
            logger.error("the filter of %s failed: %s", self.reader, text_and_place(error), exc_info=error)

    # -- numbers -------------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> tuple[int, int]:
        """A value that changes whenever the reader takes something."""
        return self.delivered, self.begun

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being handed over. The lock is held."""
        return not self.items and not self.awake

    @property
    def urgent(self) -> bool:
        """Whether something, such as `drain`, waits for this reader. The lock is held."""
        return _has_barrier(self.items)

    def statistics(self) -> ObserverStatistics:
        """The current counts. The lock is held."""
        waiting = self.waiting
        in_flight = events_of(self._in_flight)
        oldest = next(iter(in_flight or waiting), None)
        return ObserverStatistics(
            name=self.reader,
            mode="lossless" if self.lossless else "coalesce",
            delivered=self.delivered,
            queued=len(waiting) + len(in_flight),
            queued_bytes=self.bytes + self._bytes_in_flight,
            merged=self.merged,
            dropped=self.dropped,
            failed=self.failed,
            lag_s=max(0.0, time.time() - oldest.timestamp) if oldest is not None else 0.0,
        )

    def first_time(self, topic: str) -> bool:
        """Whether this is the first call with this topic; for warnings that should appear once."""
        new = topic not in self._warned
        self._warned.add(topic)
        return new


def _has_barrier(items: Iterable[Item]) -> bool:
    return any(isinstance(item, Control) and item.kind == "barrier" for item in items)


def ensure_not_in_own_hook(what: str, deliveries: Iterable[Delivery]) -> None:
    """Refuse to wait in an observer's hook for that same hook to end.

    A task that a hook started may wait, since it may outlive the hook.

    Args:
        what: the function that would wait.
        deliveries: the deliveries that it would wait for.

    Raises:
        InputError: the current task calls the hooks of one of them.
    """
    task = asyncio.current_task() if running_loop() is not None else None
    for delivery in deliveries:
        if task is not None and delivery.hook_task is task:
            raise InputError(
                f"{what} was called in a hook of {delivery.reader}, which it would wait for; call it elsewhere, or in "
                "a task that no hook awaits: asyncio.create_task(…)"
            )
