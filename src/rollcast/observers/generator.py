"""Events as an async generator: `async for event in observer.events()`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from rollcast.aio import wake
from rollcast.records import EventFilter, StreamEvent
from rollcast.records.filter import Names
from rollcast.stream.delivery import Delivery, ObserverStatistics
from rollcast.stream.fanout import Fanout
from rollcast.stream.observer import PulledObserver
from rollcast.stream.queue import Control, Single
from rollcast.stream.waiting import event_of

__all__ = ["AsyncGeneratorStreamObserver"]

UNREAD_RUNS = 1024  # how many ended runs may wait to be read; the oldest are forgotten and counted


class AsyncGeneratorStreamObserver(PulledObserver):
    """Keeps events until `events()` is read.

    One `events()` serves one run: the oldest that is not being read, or else the next. It ends when the chains that the
    filter names have ended, or when the run has ended or the observer is removed. So it always ends if the run does:
    whatever the filter leaves out, whether or not the chains exist, whether the run fails, and whether the reader comes
    before, during or after the run.

    The waiting events of all runs together are bounded: for a reader that is slow or does not come, neighbouring chunks
    merge, and beyond the manager's `queue_limit` a `gap` stands for the events of the oldest runs. It never slows the rollout.

    Args:
        chain_filter: a chain id, several, or an `EventFilter`; None: everything.
    """

    def __init__(self, chain_filter: EventFilter | Names = None) -> None:
        super().__init__()
        self.filter = EventFilter.coerce(chain_filter)
        self._name, self._wanted = self.name, self.filter
        self._fanout: Fanout | None = None
        self._runs: dict[str, _Run] = {}  # in the order in which they opened
        self._waiters: list[asyncio.Future[None]] = []
        self._removals = 0
        self._forgotten = _NOTHING  # the statistics of forgotten runs

    # -- the reader's side ---------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[StreamEvent]:
        """The events of one run, oldest first, as they come."""
        run = await self._claim()
        if run is None:
            return
        items: deque[Single] = deque()
        finished = False
        try:
            while not finished:
                taken = await run.delivery.take()
                finished = not taken
                items.extend(taken)
                while items and not finished:
                    item = items.popleft()
                    if isinstance(item, Control):
                        finished = run.finished_by(item)
                    else:
                        run.delivery.delivered += 1
                        yield event_of(item)
        finally:
            self._leave(run, list(items), finished=finished)

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self.events()

    async def _claim(self) -> _Run | None:
        """The run to read; None if the observer was removed before one began."""
        removals = self._removals
        while True:
            lock = self.lock
            with lock:
                if lock is not self.lock:  # it was added meanwhile
                    continue
                free = next((run for run in self._runs.values() if not run.being_read), None)
                if free is not None:
                    free.being_read, free.left = True, False
                    return free
                if self._removals != removals:
                    return None
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
            await waiter

    def _leave(self, run: _Run, unread: list[Single], *, finished: bool) -> None:
        """Forget a run that was read to its end. One that was left early can be read further while it lasts."""
        with self.lock:
            run.being_read, run.left = False, True
            run.delivery.put_back([*unread])
            run.delivery.leave_locked()
            if finished or run.delivery.ended:
                self._forget_locked(run)
            self._wake_locked()

    def _wake_locked(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            wake(waiter)

    # -- the manager's side: the lock is held --------------------------------------------------------------------------

    def attach_locked(self, fanout: Fanout, name: str, filter: EventFilter) -> None:
        """See `PulledObserver.attach_locked`."""
        self.lock = fanout.lock
        self._fanout, self._name, self._wanted = fanout, name, filter
        fanout.run_openings.append(self._run_opened)
        fanout.run_closings.append(self._run_closed)
        for run_id in fanout.runs:
            self._run_opened(run_id)

    def detach_locked(self) -> None:
        """See `PulledObserver.detach_locked`. Every reader ends."""
        fanout, self._fanout = self._fanout, None
        assert fanout is not None
        fanout.run_openings.remove(self._run_opened)
        fanout.run_closings.remove(self._run_closed)
        self._removals += 1
        for run_id in list(self._runs):
            self._run_closed(run_id, fanout)
        self._wake_locked()

    def set_filter_locked(self, filter: EventFilter) -> None:
        """See `PulledObserver.set_filter_locked`."""
        assert self._fanout is not None
        self._wanted = filter
        for run in self._runs.values():
            if not run.delivery.ended:
                self._fanout.set_filter(run.delivery, filter & EventFilter(runs=run.run_id))

    def statistics_locked(self) -> ObserverStatistics:
        """See `PulledObserver.statistics_locked`."""
        parts = [run.delivery.statistics() for run in self._runs.values()]
        return _summed(self._name, [self._forgotten, *parts])

    def _run_opened(self, run_id: str) -> None:
        fanout = self._fanout
        if fanout is None or not any(p.runs is None or run_id in p.runs for p in self._wanted.alternatives):
            return
        self._keep_within_limits()
        delivery = fanout.delivery(self._name, self._wanted & EventFilter(runs=run_id))
        delivery.pulled = True
        self._runs[run_id] = _Run(run_id, delivery, _last_chains(self._wanted))
        fanout.add(delivery)
        self._wake_locked()

    def _run_closed(self, run_id: str, fanout: Fanout | None = None) -> None:
        run, fanout = self._runs.get(run_id), fanout or self._fanout
        if run is None or fanout is None:
            return
        fanout.remove(run.delivery)
        if run.left:
            self._forget_locked(run)
        self._keep_within_limits()

    def _forget_locked(self, run: _Run) -> None:
        if self._runs.get(run.run_id) is run:
            del self._runs[run.run_id]
            self._forgotten = _summed("", [self._forgotten, run.delivery.statistics()])
        if self._fanout is not None and not run.delivery.ended:
            self._fanout.remove(run.delivery)

    def _keep_within_limits(self) -> None:
        """Drop the events of ended runs that wait to be read, oldest first, until the limits hold."""
        if self._fanout is None:
            return
        limit = self._fanout.queue_limit
        unread = [run for run in self._runs.values() if run.delivery.ended and not run.being_read]
        total = sum(run.delivery.bytes for run in self._runs.values())
        for run in unread:
            if total <= limit:
                break
            total -= run.delivery.bytes
            run.delivery.lose_all()
        for run in unread[: max(0, len(unread) - UNREAD_RUNS)]:
            run.delivery.lose_all()
            self._forget_locked(run)


class _Run:
    """The waiting events of one run."""

    def __init__(self, run_id: str, delivery: Delivery, chains: set[str]) -> None:
        self.run_id = run_id
        self.delivery = delivery
        self.being_read = False
        self.left = False  # a reader has stopped reading it
        self._chains = chains

    def finished_by(self, control: Control) -> bool:
        """Whether no event comes after this."""
        if control.run_id != self.run_id:
            return False
        if control.kind == "chain_closed" and control.chain_id in self._chains:
            self._chains.discard(control.chain_id)
            return not self._chains
        return control.kind == "run_closed"


_NOTHING = ObserverStatistics("", "coalesce", 0, 0, 0, 0, 0, 0, 0.0)


def _summed(name: str, parts: list[ObserverStatistics]) -> ObserverStatistics:
    return ObserverStatistics(
        name=name,
        mode="coalesce",
        delivered=sum(part.delivered for part in parts),
        queued=sum(part.queued for part in parts),
        queued_bytes=sum(part.queued_bytes for part in parts),
        merged=sum(part.merged for part in parts),
        dropped=sum(part.dropped for part in parts),
        failed=sum(part.failed for part in parts),
        lag_s=max(part.lag_s for part in parts),
    )


def _last_chains(filter: EventFilter) -> set[str]:
    """The chains after whose end no event can come; empty if only the run's end shows that."""
    named: set[str] = set()
    for part in filter.alternatives:
        if part.chains is None:
            return set()
        named |= part.chains
    return named
