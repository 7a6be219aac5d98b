"""The StreamingManager: observers come and go, runs are produced, and nobody waits for anybody."""

from __future__ import annotations

import logging
import time
from operator import attrgetter
from typing import Unpack

import msgspec

from rollcast import lifetime
from rollcast.errors import InputError
from rollcast.failures import text_and_place
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.stream.definition import name_of
from rollcast.stream.delivery import Delivery, ObserverStatistics
from rollcast.stream.fanout import Fanout
from rollcast.stream.handmade import HandMade
from rollcast.stream.observer import StreamObserver
from rollcast.stream.queue import event_size
from rollcast.stream.relay import Relay
from rollcast.stream.roster import Roster
from rollcast.stream.run import RunAbout, RunWriter
from rollcast.stream.subscription import Subscription

__all__ = ["ManagerStatistics", "StreamingManager"]

logger = logging.getLogger("rollcast.stream")


class ManagerStatistics(msgspec.Struct, frozen=True):
    """What goes through a manager as a whole. Runs without streaming do not count.

    Attributes:
        open_runs, open_chains: now.
        completion_tokens: sampled since the manager was made, those of open generations included. Read from the
            trajectories, so that it is exact even if nobody watches tokens.
        emitted: events since the manager was made, by type. What no observer wants does not become an event.
        refused: events made by hand that were dropped, by what was wrong.
    """

    open_runs: int
    open_chains: int
    completion_tokens: int
    emitted: dict[str, int]
    refused: dict[str, int] = {}


class StreamingManager:
    """Manages observers and distributes events to them.

    Observers may be added and removed at any moment: before any event loop exists, while chains run, from other
    threads, across successive `asyncio.run` calls. Memory is bounded by the queues and the open chains.

    Args:
        queue_limit: bytes of memory that one observer's waiting events may take. None: 8 MiB, or 8 KiB for each chain
            that was open at once, if that is more.
        drain_timeout: seconds that the end of a run waits for observers that lag.
        source: which worker this is; `""` in a single process.

    Attributes:
        fanout: the observers' queues.
    """

    def __init__(
        self, *, queue_limit: int | None = None, drain_timeout: float = 5.0, source: str = ""
    ) -> None:
        self.fanout = Fanout(queue_limit=queue_limit, drain_timeout=drain_timeout, source=source)
        self.lock = self.fanout.lock
        self._roster = Roster(self, self.fanout)
        self._foreign_seq: dict[str, int] = {}  # of events that are emitted by hand
        self._handmade = HandMade()
        self._relay = Relay(self.fanout)
        lifetime.register(self)

    # Where 0.1 had them.
    runs = property(attrgetter("fanout.runs"))
    deliveries = property(attrgetter("fanout.deliveries"))
    congested = property(attrgetter("fanout.congested"))
    queue_limit = property(attrgetter("fanout.queue_limit"))
    drain_timeout = property(attrgetter("fanout.drain_timeout"))
    source = property(attrgetter("fanout.source"))

    # -- observers -----------------------------------------------------------------------------------------------------

    @property
    def observers(self) -> list[StreamObserver]:
        """Those that were added, in the order in which they came."""
        return self._roster.observers

    def add_observer(self, observer: StreamObserver) -> None:
        """From now on the observer gets what its filter wants; of chains that run already, first a snapshot.

        Raises:
            InputError: it is not a StreamObserver, is added to a manager already, or what it says about itself is wrong; then
                it is not added, and nobody else notices.
        """
        self._roster.add(observer)

    def remove_observer(self, observer: StreamObserver) -> None:
        """The observer gets what was emitted until now and nothing more; then its `aclose` is called.

        One that is not added is ignored, so that removing twice is no error.
        """
        self._roster.remove(observer)

    def refresh(self, observer: StreamObserver | None = None) -> None:
        """Read again what an observer (all of them if None) says about itself: its filter, its leaves, its loop.

        Chains that come into view start with a snapshot. If it cannot be read, the observer stays as it was, and the failure
        is logged and reported to the others.
        """
        self._roster.refresh(observer)

    def report(self, observer: StreamObserver, error: BaseException, run_id: str | None = None) -> None:
        """Emit an `error` event about the observer to the others.

        Args:
            observer: who failed.
            error: how.
            run_id: in which run; None: in one that is open now, if there is one.
        """
        with self.lock:
            runs = self.fanout.runs
            if run_id is None:  # of any run that has begun, so that whoever watches runs sees it
                run_id = next((name for name, run in runs.items() if run.seq >= 0), "")
            elif run_id not in runs:
                run_id = ""
            event = StreamEvent(
                StreamEventType.ERROR,
                "",
                time.time(),
                {
                    "error": text_and_place(error),
                    "error_type": type(error).__name__,
                    "where": f"observer:{name_of(observer)}",
                },
                run_id=run_id,
            )
            self._emit(event, observer)

    def subscribe(self, filter: EventFilter | None = None, *, name: str = "subscription") -> Subscription:
        """Events to be pulled, from now on: `async for event in manager.subscribe(...)`.

        Args:
            filter: which ones; None: all.
            name: for gaps and warnings.
        """
        return Subscription(self.fanout, self.fanout.delivery(name, filter or EventFilter()))

    # -- producing -----------------------------------------------------------------------------------------------------

    def run(self, **about: Unpack[RunAbout]) -> RunWriter:
        """A run for a loop of your own; use it as a context manager, sync or async.

        The keywords are those of `RunWriter`.
        """
        run = RunWriter(self.fanout, **about)
        run.manager = self
        return run

    def emit(self, event: StreamEvent) -> None:
        """Give the event to the observers that want it, stamped with `seq` and `source`.

        For events made by hand; producers have `run(...)`. What its type promises and its maker left out is filled in from
        what the same chain said before: the `offset` of a chunk, the `call_id` of an observation. What cannot be accepted
        is dropped, and told in one warning for each cause. Never waits and never raises; from any thread.
        """
        with self.lock:
            completed = self._handmade.completed(event, self._open_generation)
            if completed is not None:
                self._emit(completed, None)

    def _open_generation(self, run_id: str, chain_id: str) -> tuple[int, int] | None:
        """Step and characters so far of a chain that a run of this manager writes. The lock is held."""
        run = self.fanout.runs.get(run_id)
        return None if run is None else run.place_in(chain_id)

    def _emit(self, event: StreamEvent, without: StreamObserver | None) -> None:
        with self.lock:
            own = self._roster.delivery_of(without) if without is not None else None
            targets = [
                d
                for d in self.fanout.interested(
                    event.event_type, event.chain_id, event.group_id, event.run_id
                )
                if own is None or d is not own
            ]
            if not targets:
                return
            run = self.fanout.runs.get(event.run_id)
            if run is not None:
                run.seq = seq = run.seq + 1
            else:
                seq = self._foreign_seq.pop(event.run_id, 0) + 1
                self._foreign_seq[event.run_id] = seq
                if len(self._foreign_seq) > 1024:
                    del self._foreign_seq[next(iter(self._foreign_seq))]
            stamped = msgspec.structs.replace(event, seq=seq, source=event.source or self.fanout.source)
            self.fanout.publish_locked(stamped, targets, event_size(stamped))

    def relay(self, event: StreamEvent) -> None:
        """Pass on an event of a run that is produced elsewhere, as it is: it keeps its `seq` and its `source`.

        The hooks around runs and chains are called, and observers that join late get snapshots, as for runs of this manager. A
        run opens with the first event of it that is relayed. Never waits; from any thread.

        Raises:
            InputError: it is not a StreamEvent.
        """
        if not isinstance(event, StreamEvent):
            raise InputError(
                f"relay got {type(event).__name__}; expected a StreamEvent, as rollcast.records.decode gives"
            )
        with self.lock:
            self._relay.pass_on_locked(event)

    def wants(
        self, event_type: StreamEventType, chain_id: str = "", group_id: str | None = None, run_id: str = ""
    ) -> bool:
        """Whether any observer wants events of this type and place."""
        return bool(self.fanout.interested(event_type, chain_id, group_id, run_id))

    def cancel(self, run_id: str, chain_id: str | None = None) -> None:
        """End a run, or one of its open chains, on behalf of somebody who watches it; from any thread.

        Raises:
            InputError: no such run or chain is open, or its producer cannot be told to stop.
        """
        with self.lock:
            run = self.fanout.runs.get(run_id)
            if run is None:
                raise InputError(f"no run {run_id!r} is open")
            if chain_id is not None and not run.has_chain(chain_id):
                raise InputError(f"run {run_id} has no open chain {chain_id!r}")
            on_cancel = run.on_cancel
        if on_cancel is None:
            raise InputError(f"run {run_id} cannot be cancelled from outside: its producer gave no on_cancel")
        on_cancel(chain_id)

    # -- waiting -------------------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Return at once unless a lossless observer's queue is full; then wait for it, and say so once."""
        await self.fanout.ready()

    def ready_sync(self) -> None:
        """As `ready`, for a loop on a thread.

        In an event loop, observers that live there are not waited for: they would never get their turn.
        """
        self.fanout.ready_sync()

    async def drain(self, timeout: float | None = None) -> None:
        """Wait until every observer has been given all that was emitted.

        One that does not take it within `timeout` seconds (the manager's `drain_timeout` if None) is named in a warning.

        Raises:
            InputError: an observer awaits this in one of its own hooks, and would be waited for.
        """
        await self.fanout.drain(timeout)

    def drain_sync(self, timeout: float | None = None) -> None:
        """As `drain`, for code without an event loop. Observers that live in this thread's own loop are not waited for."""
        self.fanout.drain_sync(timeout)

    async def aclose(self) -> None:
        """Remove every observer, and wait until each has taken what was emitted and has closed.

        One that takes nothing at all for `drain_timeout` seconds hangs: its call is cancelled, and a warning names it.
        One that is merely slow goes on by itself after twice that time. Raises what `drain` does.
        """
        self._remove_all("aclose")
        await self._roster.all_closed()

    def close(self) -> None:
        """As `aclose`, for code without an event loop; interpreter exit calls it. Raises what that does."""
        self._remove_all("close")
        self._roster.all_closed_blocking()

    def _remove_all(self, what: str) -> None:
        with self.lock:
            self._roster.ensure_not_in_own_hook_locked(what)
            self._handmade.tell_refused()
            self._relay.close_locked()
        self._roster.remove_all()

    # -- numbers -------------------------------------------------------------------------------------------------------

    def statistics(self) -> list[ObserverStatistics]:
        """One entry for each observer, in the order in which they were added."""
        return self._roster.statistics()

    def delivery_of(self, observer: StreamObserver) -> Delivery | None:
        """The queue of one observer, if it is added (or stands for itself in one that is)."""
        return self._roster.delivery_of(observer)

    def totals(self) -> ManagerStatistics:
        """The numbers that are not one observer's."""
        fanout = self.fanout
        with self.lock:
            standing = [run.standing() for run in fanout.runs.values()]
            return ManagerStatistics(
                open_runs=len(standing),
                open_chains=sum(chains for chains, _ in standing),
                completion_tokens=fanout.completion_tokens + sum(tokens for _, tokens in standing),
                emitted={event_type.value: n for event_type, n in fanout.emitted_by_type().items() if n},
                refused=dict(self._handmade.refused),
            )

    def after_fork(self) -> None:
        """In a forked child, which has none of the threads and loops. The lock is held."""
        self._roster.after_fork_locked()
        self.fanout.after_fork_locked()
