"""The StreamingManager: who watches, and who gets what.

`emit` never waits and never raises. Producers (`producer.py`) hold a `Route` a chain, which knows the deliveries that
want each type of its events; where nobody wants a token, none is made into an event.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Unpack

import msgspec

from rollcast.errors import InputError
from rollcast.failures import text_and_place
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.jsonable import described
from rollcast.stream.delivery import Delivery, ObserverStatistics, proxy_of, refuse_to_wait_for_oneself
from rollcast.stream.handmade import HandMade
from rollcast.stream.lifetime import managers
from rollcast.stream.observer import StreamObserver
from rollcast.stream.queue import Control, event_size
from rollcast.stream.route import Route, Targets
from rollcast.stream.waiting import WaitingRoom

if TYPE_CHECKING:
    from rollcast.stream.producer import RunAbout, RunStream

__all__ = ["ManagerStatistics", "StreamingManager"]

logger = logging.getLogger("rollcast.stream")

QUEUE_LIMIT = 8 << 20  # bytes
QUEUE_LIMIT_OF_A_CHAIN = 8 << 10  # bytes: all chains may begin in one turn of the loop, and end in one


class ManagerStatistics(msgspec.Struct, frozen=True):
    """What goes through a manager as a whole. Runs without streaming do not count.

    Attributes:
        open_runs, open_chains: now.
        completion_tokens: sampled since the manager was made, those of open generations included. Read from the
            trajectories, so that it is exact where nobody watches tokens too.
        emitted: events since the manager was made, by type. What no observer wanted is no event.
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
            that was open at once, where that is more.
        drain_timeout: seconds that the end of a run waits for observers that lag.
        source: which worker this is; `""` in a single process.
    """

    def __init__(
        self, *, queue_limit: int | None = None, drain_timeout: float = 5.0, source: str = ""
    ) -> None:
        self.queue_limit = QUEUE_LIMIT if queue_limit is None else queue_limit
        self._limit_grows = queue_limit is None
        self.drain_timeout = drain_timeout
        self.source = source
        self.lock = threading.RLock()
        self.runs: dict[str, RunStream] = {}  # open ones
        self._waiting = WaitingRoom(self.lock)
        self.congested = self._waiting.congested  # lossless observers that the rollout waits for
        self.named_places: frozenset[str] = frozenset()  # chains and groups that filters name
        self.pumps: set[asyncio.Task[None]] = set()
        self.ended_tokens = 0  # of the generations that ended
        self._emitted = dict.fromkeys(StreamEventType, 0)
        self._added: dict[StreamObserver, None] = {}
        self._deliveries: dict[StreamObserver, Delivery] = {}  # to the leaves of those that were added
        self._detached: weakref.WeakSet[StreamObserver] = weakref.WeakSet()  # leaves that failed too often
        self.closing: set[Delivery] = set()  # of observers that were removed, until they are closed
        self._progress: dict[Delivery, tuple[int, int]] = {}  # of those, when everybody had to leave
        self._leaving: weakref.WeakKeyDictionary[StreamObserver, Future[None]] = weakref.WeakKeyDictionary()
        self._routes: weakref.WeakSet[Route] = weakref.WeakSet()
        self._foreign_seq: dict[str, int] = {}  # of events that are emitted by hand
        self._handmade = HandMade()
        self._background: asyncio.AbstractEventLoop | None = None
        managers.add(self)

    # -- observers ---------------------------------------------------------------------------------------------------

    @property
    def observers(self) -> list[StreamObserver]:
        """Those that were added, in the order in which they came."""
        with self.lock:
            return list(self._added)

    def add_observer(self, observer: StreamObserver) -> None:
        """From now on the observer gets what its filter wants; of chains that run already, first a snapshot.

        Raises:
            InputError: it is no StreamObserver, cannot be hashed, or is added to a manager already.
        """
        if not isinstance(observer, StreamObserver):
            raise InputError(
                f"add_observer got {type(observer).__name__}; expected a StreamObserver "
                "(wrap a function in CallbackStreamObserver)"
            )
        with self.lock:
            for each in (observer, *_leaves(observer)):
                if each.manager is not None and (each is observer or each.manager is not self):
                    whose = "this" if each.manager is self else "another"
                    raise InputError(
                        f"{each.name} is added to {whose} manager already; remove it there first, or make a second one"
                    )
            self._detached.difference_update(_leaves(observer))
            observer.manager = self
            self._added[observer] = None
            self.refresh()
        logger.debug("added %s (%s)", observer.name, observer.mode)

    def remove_observer(self, observer: StreamObserver) -> None:
        """The observer gets what was emitted until now and nothing more; then its `aclose` is called.

        One that is not added is ignored, so that removing twice is no error.
        """
        with self.lock:
            if observer in self._added:
                del self._added[observer]
                observer.manager = None
            elif observer in self._deliveries:
                self._detached.add(observer)
            else:
                return
            self.refresh()
        logger.debug("removed %s", observer.name)

    def refresh(self) -> None:
        """Have it known that an observer's filter or leaves changed: what it newly wants begins with snapshots."""
        with self.lock:
            wanted: dict[StreamObserver, EventFilter] = {}
            for observer in self._added:
                for leaf, wish in observer.leaves().items():
                    wanted[leaf] = wanted[leaf] | wish if leaf in wanted else wish
            self._detached.intersection_update(wanted)  # who was taken off may come back
            for leaf in self._detached:
                del wanted[leaf]
            for leaf in [leaf for leaf in self._deliveries if leaf not in wanted]:
                self._let_go(leaf)
            for leaf, wish in wanted.items():
                leaf.manager = self  # also where it was added twice, and one of them is gone
                if leaf not in self._deliveries:
                    self._take_on(leaf, wish)
                elif self._deliveries[leaf].filter != wish:
                    self._change_filter(self._deliveries[leaf], wish)
            self._topology_changed()

    def _take_on(self, leaf: StreamObserver, filter: EventFilter) -> None:
        self._rouse_leaving()
        delivery = Delivery(self, leaf, filter, self._leaving.pop(leaf, None))
        self._deliveries[leaf] = delivery
        if self.runs:
            delivery.put_free([Control("run_opened", run_id) for run_id in self.runs])
            delivery.put_free(list(self.snapshots(filter)))

    def _let_go(self, leaf: StreamObserver) -> None:
        delivery = self._deliveries.pop(leaf)
        leaf.manager = None
        self._leaving[leaf] = delivery.finished
        self.congested.discard(delivery)
        self.wake_producers()
        delivery.closing = True
        self.closing.add(delivery)
        delivery.rouse()

    def _rouse_leaving(self) -> None:
        """Observers that were removed while their loop ended have something left to do. The lock is held."""
        for delivery in list(self.closing):
            delivery.rouse()

    def _change_filter(self, delivery: Delivery, filter: EventFilter) -> None:
        seen, delivery.filter = delivery.filter, filter
        delivery.put_free(list(self.snapshots(filter, besides=seen)))

    def _topology_changed(self) -> None:
        named = [a for d in self._deliveries.values() for a in d.filter.alternatives]
        self.named_places = frozenset().union(
            *(a.chains or () for a in named), *(a.groups or () for a in named)
        )
        for route in list(self._routes):
            route.forget()

    def wants(
        self, event_type: StreamEventType, chain_id: str = "", group_id: str | None = None, run_id: str = ""
    ) -> bool:
        """Whether any observer wants events of this type and place."""
        return bool(self.interested(event_type, chain_id, group_id, run_id))

    def interested(
        self, event_type: StreamEventType, chain_id: str, group_id: str | None, run_id: str
    ) -> Targets:
        """The deliveries to whose observers such an event goes."""
        with self.lock:
            return tuple(
                d for d in self._deliveries.values() if d.wants(event_type, chain_id, group_id, run_id)
            )

    def statistics(self) -> list[ObserverStatistics]:
        """One entry an observer, in the order in which they were added."""
        with self.lock:
            return [delivery.statistics() for delivery in self._deliveries.values()]

    def totals(self) -> ManagerStatistics:
        """The numbers that are not one observer's."""
        with self.lock:
            chains = [chain for run in self.runs.values() for chain in run.open_chains.values()]
            growing = sum(
                chain.generation_open.turn.completion_tokens for chain in chains if chain.generation_open
            )
            return ManagerStatistics(
                open_runs=len(self.runs),
                open_chains=len(chains),
                completion_tokens=self.ended_tokens + growing,
                emitted={event_type.value: n for event_type, n in self._emitted.items() if n},
                refused=dict(self._handmade.refused),
            )

    # -- ending -------------------------------------------------------------------------------------------------------

    def cancel(self, run_id: str, chain_id: str | None = None) -> None:
        """End a run, or one of its open chains, on behalf of somebody who watches it; from any thread.

        Raises:
            InputError: no such run or chain is open, or whoever produces it cannot be told to stop.
        """
        with self.lock:
            run = self.runs.get(run_id)
            if run is None:
                raise InputError(f"no run {run_id!r} is open")
            if chain_id is not None and chain_id not in run.open_chains:
                raise InputError(f"run {run_id} has no open chain {chain_id!r}")
            on_cancel = run.on_cancel
        if on_cancel is None:
            raise InputError(f"run {run_id} cannot be cancelled from outside: its producer gave no on_cancel")
        on_cancel(chain_id)

    # -- producing ----------------------------------------------------------------------------------------------------

    def run(self, **about: Unpack[RunAbout]) -> RunStream:
        """A run of this manager's, for a loop of your own; use it as a context manager, sync or async.

        The keywords are those of `RunStream`.
        """
        from rollcast.stream.producer import RunStream  # noqa: PLC0415  (producer imports this module's types)

        return RunStream(self, **about)

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
        if run_id not in self.runs or (chain := self.runs[run_id].open_chains.get(chain_id)) is None:
            return None
        turn = chain.trajectory.open_turn
        return len(chain.trajectory.turns), 0 if turn is None else turn.chars

    def _emit(self, event: StreamEvent, without: StreamObserver | None) -> None:
        with self.lock:
            targets = [
                d
                for d in self.interested(event.event_type, event.chain_id, event.group_id, event.run_id)
                if d.observer is not without
            ]
            if not targets:
                return
            run = self.runs.get(event.run_id)
            if run is not None:
                run.seq = seq = run.seq + 1
            else:
                seq = self._foreign_seq.pop(event.run_id, 0) + 1
                self._foreign_seq[event.run_id] = seq
                if len(self._foreign_seq) > 1024:
                    del self._foreign_seq[next(iter(self._foreign_seq))]
            self._emitted[event.event_type] += 1
            stamped = msgspec.structs.replace(event, seq=seq, source=event.source or self.source)
            size = event_size(stamped)
            for delivery in targets:
                delivery.put(stamped, size)

    def send(
        self,
        targets: Targets,
        event_type: StreamEventType,
        route: Route,
        data: dict[str, Any],
        step: int | None,
        depth: int | None = None,
        size: int = 0,
    ) -> None:
        """Build the event and queue it for each target. The hot path; the lock is held, and the route has a run.

        `size` is its `event_size`, where that is known.
        """
        run = route.run
        assert run is not None
        run.seq = seq = run.seq + 1
        self._emitted[event_type] += 1
        event = StreamEvent(
            event_type,
            route.chain_id,
            time.time(),
            data,
            step,
            depth,
            seq,
            run.run_id,
            route.group_id,
            self.source,
        )
        size = size or event_size(event)
        for delivery in targets:
            delivery.put(event, size)

    def make_room(self, chains: int) -> None:
        """So many chains are open: their starts, or their ends, have to find room in a queue. The lock is held."""
        if self._limit_grows and chains * QUEUE_LIMIT_OF_A_CHAIN > self.queue_limit:
            self.queue_limit = chains * QUEUE_LIMIT_OF_A_CHAIN
            for delivery in self._deliveries.values():
                delivery.limit = self.queue_limit

    def broadcast(self, control: Control) -> None:
        """Queue a hook for every observer."""
        with self.lock:
            self._rouse_leaving()
            for delivery in self._deliveries.values():
                delivery.put_control(control)

    def report(self, observer: StreamObserver, error: BaseException, run_id: str | None = None) -> None:
        """Emit an `error` event about the observer to the others."""
        with self.lock:
            if run_id is None:  # of any run that has begun, so that who watches runs sees it
                run_id = next((name for name, run in self.runs.items() if run.seq >= 0), "")
            elif run_id not in self.runs:
                run_id = ""
            event = StreamEvent(
                StreamEventType.ERROR,
                "",
                time.time(),
                {
                    "error": text_and_place(error),
                    "error_type": type(error).__name__,
                    "where": f"observer:{observer.name}",
                },
                run_id=run_id,
            )
            self._emit(event, observer)

    def route(self, run: RunStream, chain_id: str, group_id: str | None) -> Route:
        """A new route, kept up to date while somebody holds it."""
        route = Route(self, run, chain_id, group_id)
        with self.lock:
            self._routes.add(route)
        return route

    def snapshots(self, filter: EventFilter, besides: EventFilter | None = None) -> Iterable[StreamEvent]:
        """A `chain_snapshot` of each open chain that passes the filter, and not `besides`. The lock is held."""
        for run in self.runs.values():
            for chain in run.open_chains.values():
                if chain.snapshot_wanted(filter) and not (besides and chain.snapshot_wanted(besides)):
                    yield chain.snapshot()

    @property
    def deliveries(self) -> list[Delivery]:
        """One for each leaf of the observers that were added."""
        with self.lock:
            return list(self._deliveries.values())

    # -- waiting -----------------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Return at once unless a lossless observer's queue is full; then wait for it, and say so once."""
        await self._waiting.ready()

    def ready_sync(self) -> None:
        """As `ready`, for a loop on a thread.

        In an event loop, observers that live there are not waited for: they would never get their turn.
        """
        self._waiting.ready_sync()

    def wake_producers(self) -> None:
        """A full queue has room again. The lock is held."""
        self._waiting.wake()

    def _barriers(self) -> list[tuple[Delivery, Future[None]]]:
        with self.lock:
            barriers = [(d, Future[None]()) for d in self._deliveries.values() if not d.idle]
            for delivery, done in barriers:
                delivery.put_free([Control("barrier", done=done)])
            return barriers

    async def drain(self, timeout: float | None = None) -> None:
        """Wait until every observer has been given all that was emitted.

        One that does not take it within `timeout` seconds (the manager's `drain_timeout` where None) is named in a warning.

        Raises:
            InputError: an observer awaits this in one of its own hooks, and would be waited for.
        """
        barriers = self._barriers()
        if barriers:
            refuse_to_wait_for_oneself("drain", (d for d, _ in barriers))
            await _wait_all([done for _, done in barriers], self._seconds(timeout))
            self._name_the_late(barriers, self._seconds(timeout))

    def drain_sync(self, timeout: float | None = None) -> None:
        """As `drain`, for code without an event loop. Observers that live in this thread's own loop are not waited for."""
        here = asyncio._get_running_loop()  # noqa: SLF001  (documented; None instead of an exception)
        barriers = [b for b in self._barriers() if here is None or b[0].observer.threaded]
        refuse_to_wait_for_oneself("drain_sync", (d for d, _ in barriers))
        deadline = time.monotonic() + self._seconds(timeout)
        for _, done in barriers:
            try:
                done.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                continue
        self._name_the_late(barriers, self._seconds(timeout))

    def _seconds(self, timeout: float | None) -> float:
        return self.drain_timeout if timeout is None else timeout

    def _name_the_late(self, barriers: list[tuple[Delivery, Future[None]]], timeout: float) -> None:
        for delivery, done in barriers:
            if not done.done() and not delivery.abandoned:
                with self.lock:
                    left = delivery.statistics().queued
                logger.warning(
                    "%s did not take its events within %g s; %d wait still",
                    delivery.observer.name,
                    timeout,
                    left,
                )

    async def aclose(self) -> None:
        """Remove every observer, and wait until each has taken what was emitted and has closed.

        One that takes nothing at all for `drain_timeout` seconds hangs: its call is cancelled, and a warning names it.
        One that is merely slow goes on by itself after twice that time. Raises what `drain` does.
        """
        self._remove_all("aclose")
        for step in (self._give_up_hanging, self._give_up_hanging, self._name_the_slow):
            await _wait_all(self._unfinished(), self.drain_timeout)
            step()
        self._stop_background()

    def close(self) -> None:
        """As `aclose`, for code without an event loop; interpreter exit calls it. Raises what that does."""
        deliveries = self.deliveries
        self._remove_all("close")
        for step in (self._give_up_hanging, self._give_up_hanging, self._name_the_slow):
            deadline = time.monotonic() + self.drain_timeout
            if asyncio._get_running_loop() is None:  # noqa: SLF001  (as in `drain_sync`)
                for delivery in deliveries:
                    delivery.empty_here()
            for finished in self._unfinished():
                with suppress(TimeoutError):
                    finished.result(max(0.0, deadline - time.monotonic()))
            step()
        self._stop_background()

    def _remove_all(self, what: str) -> None:
        with self.lock:
            refuse_to_wait_for_oneself(what, [*self._deliveries.values(), *self.closing])
            self._handmade.tell_refused()
        for observer in self.observers:
            self.remove_observer(observer)
        with self.lock:
            self._rouse_leaving()

    def _unfinished(self) -> list[Future[None]]:
        with self.lock:
            self._progress = {delivery: delivery.progress for delivery in self.closing}
            return [delivery.finished for delivery in self.closing]

    def _give_up_hanging(self) -> None:
        with self.lock:
            for delivery, before in self._progress.items():
                if delivery in self.closing and delivery.progress == before and not delivery.abandoned:
                    logger.warning(
                        "%s has taken nothing for %g s: it hangs, and is stopped; %d of its events are dropped",
                        delivery.observer.name,
                        self.drain_timeout,
                        delivery.statistics().queued,
                    )
                    delivery.give_up()

    def _name_the_slow(self) -> None:
        with self.lock:
            self._progress = {}
            for delivery in self.closing:
                logger.warning(
                    "%s has not closed yet; it goes on with %d events",
                    delivery.observer.name,
                    delivery.statistics().queued,
                )

    # -- observers without a loop of their own -------------------------------------------------------------------------

    def loop_of_a_run(self) -> asyncio.AbstractEventLoop | None:
        """Where an observer that was added from another thread is called. The lock is held."""
        loops = (run.loop for run in self.runs.values())
        return next((loop for loop in loops if loop is not None and loop.is_running()), None)

    def background_loop(self) -> asyncio.AbstractEventLoop:
        """A loop on a daemon thread, for observers that are neither threaded nor in anybody's loop."""
        if self._background is None or self._background.is_closed():
            loop = asyncio.new_event_loop()
            thread = threading.Thread(
                target=_run_until_stopped, args=(loop,), name="rollcast-observers", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                loop.close()
                raise
            self._background = loop
        return self._background

    def after_fork(self) -> None:
        """In a forked child, which has none of the threads and loops. The lock is held."""
        self._background = None
        self.pumps.clear()
        self.closing.clear()
        self._waiting.after_fork()
        self._leaving.clear()
        for delivery in self._deliveries.values():
            delivery.after_fork()

    def _stop_background(self) -> None:
        with self.lock:
            if self.closing:  # somebody slow may be at work there
                return
            loop, self._background = self._background, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)


def _run_until_stopped(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)  # observers that hang
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
    finally:
        loop.close()


def _leaves(observer: StreamObserver) -> dict[StreamObserver, EventFilter]:
    try:
        leaves = observer.leaves()
    except TypeError as error:  # a dataclass with eq=True
        raise InputError(
            f"{observer.name} cannot be told from others: {error}; if it is a dataclass, make it @dataclass(eq=False)"
        ) from None
    for leaf, wish in leaves.items():
        if not isinstance(wish, EventFilter):
            raise InputError(f"the filter of {leaf.name} is {described(wish)}; expected an EventFilter")
    return leaves


async def _wait_all(futures: list[Future[None]], timeout: float) -> None:
    """Wait until all are done, `timeout` seconds at most; the futures themselves are left alone."""
    waiting = [asyncio.wrap_future(proxy_of(future)) for future in futures]
    if waiting:
        _, late = await asyncio.wait(waiting, timeout=timeout)
        for waiter in late:
            waiter.cancel()
