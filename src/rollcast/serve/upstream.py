"""The manager that a server's observer is added to: what the server asks it for, and which runs it has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rollcast.errors import InputError
from rollcast.records import EventFilter, StreamEventType
from rollcast.serve.protocol import RunInfo
from rollcast.serve.runs import KnownRuns
from rollcast.serve.subscription import Outlet, Subscription
from rollcast.stream import StreamingManager
from rollcast.stream.cancelling import Cancelled, cancel
from rollcast.stream.observer import StreamObserver

__all__ = ["Upstream"]

NOTHING = EventFilter(types=())
MAX_FILTERS = 64  # that the manager is told one by one


class Upstream:
    """What concerns the manager. The server may have none at times, since its observer can be removed and added again.

    Args:
        lock: the broadcaster's.
        subscriptions: the server's; the dict itself.
        keeps: whether the server keeps a history, and so wants everything.

    Attributes:
        observer: the server's observer.
        runs: the runs that events told of.
        changes: how often what the clients want may have changed.
        on_change: called each time, in any thread.
    """

    observer: StreamObserver

    def __init__(
        self, lock: threading.RLock, subscriptions: dict[tuple[Outlet, str], Subscription], *, keeps: bool
    ) -> None:
        self.keeps = keeps
        self.runs = KnownRuns()
        self.changes = 0
        self.on_change: Callable[[], object] = lambda: None
        self._lock = lock
        self._subscriptions = subscriptions

    @property
    def manager(self) -> StreamingManager | None:
        """The manager that the observer is added to."""
        manager: StreamingManager | None = self.observer.manager
        return manager

    @contextmanager
    def locks(self) -> Iterator[StreamingManager | None]:
        """Hold the manager's lock, if there is a manager, and then the broadcaster's. Gives the manager."""
        manager = self.manager
        with manager.lock if manager is not None else nullcontext(), self._lock:
            yield manager

    def known_runs(self) -> list[RunInfo]:
        """The open runs and the latest ended ones."""
        with self.locks() as manager:
            return self.runs.listed({} if manager is None else manager.fanout.runs)

    def gone_locked(self) -> set[str]:
        """The runs that have ended unheard. Both locks are held."""
        manager = self.manager
        return set() if manager is None else self.runs.gone(manager.fanout.runs)

    def cancel(self, run_id: str, chain_id: str | None, group_id: str | None = None) -> Cancelled:
        """Ask the run's producer to cancel it, a chain of it or a group; returns what becomes of which chains.

        Raises:
            InputError: there is no such run, chain or group, or it cannot be cancelled.
        """
        manager = self.manager
        if manager is None:
            raise InputError(f"no run {run_id!r} is open")
        return cancel(manager.fanout, run_id, chain_id, group_id)

    def wanted(self) -> EventFilter:
        """What the server asks the manager for: everything if it keeps a history, otherwise what its clients want."""
        if self.keeps:
            return EventFilter()
        filters = self.client_filters()
        if len(filters) > MAX_FILTERS:  # too many to check each event against: types narrow enough
            types = [f.types for f in filters]
            return EventFilter(types=None if None in types else frozenset().union(*(t for t in types if t)))
        union = NOTHING
        for each in filters:
            union = each if union is NOTHING else union | each
        return union

    def client_filters(self) -> set[EventFilter]:
        """The filters of the clients that watch what happens; those of replays are not among them."""
        with self._lock:
            live = [s for s in self._subscriptions.values() if s.pace is None]
        return {s.selector.filter for s in live} | {s.next_filter for s in live if s.next_filter is not None}

    def narrow(self) -> None:
        """Tell the manager if what the clients want has changed."""
        self.changes += 1
        self.on_change()
        if self.keeps:
            return
        wanted = self.wanted()
        if wanted != self.observer.filter:
            self.observer.filter = wanted
            with self.locks() as manager:
                if manager is None:
                    return
                runs = manager.fanout.runs
                self.runs.listen(
                    runs,
                    lambda r: any(
                        wanted.wants(StreamEventType.RUN_END, "", None, r, source)
                        for source in runs[r].as_of()
                    ),
                )
            manager.refresh(self.observer)
