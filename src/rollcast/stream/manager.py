"""The StreamingManager, which distributes the events of runs to observers."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, Unpack

import msgspec

from rollcast import lifetime
from rollcast.failures import class_name_of, text_and_place
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.jsonable import detached
from rollcast.records.lanes import Lane
from rollcast.stream.cancelling import cancel
from rollcast.stream.definition import check_filter, name_of
from rollcast.stream.delivery import Delivery, ObserverStatistics
from rollcast.stream.fanout import Fanout
from rollcast.stream.handmade import HandMade
from rollcast.stream.hub import publish_if_asked
from rollcast.stream.observer import StreamObserver
from rollcast.stream.own_filter import guarded
from rollcast.stream.processes import default_source
from rollcast.stream.queue import event_size
from rollcast.stream.relay import Relay, relayable
from rollcast.stream.roster import Roster
from rollcast.stream.run import RunAbout, RunWriter
from rollcast.stream.subscription import Subscription
from rollcast.stream.waiting import Relayed

__all__ = ["ManagerStatistics", "StreamingManager"]

logger = logging.getLogger("rollcast.stream")


class ManagerStatistics(msgspec.Struct, frozen=True):
    """The totals of a manager. Runs without streaming do not count.

    Attributes:
        open_runs, open_chains: how many are open now.
        completion_tokens: how many tokens were sampled since the manager was made, with those of open generations. They are
            counted in the trajectories, so the number is exact even if no observer wants tokens.
        emitted: how many events of each type there were since the manager was made. What no observer wants is not an event.
        refused: how many events made by hand were dropped, by cause.
    """

    open_runs: int
    open_chains: int
    completion_tokens: int
    emitted: dict[str, int]
    refused: dict[str, int] = {}


def _of_fanout(name: str) -> Any:
    """An attribute of the manager that is the fanout's."""
    return property(
        lambda manager: getattr(manager.fanout, name),
        lambda manager, value: setattr(manager.fanout, name, value),
    )


class StreamingManager:
    """Manages observers and distributes events to them.

    Observers may be added and removed at any moment: before any event loop exists, while chains run, from other
    threads, across successive `asyncio.run` calls. Memory is bounded by the queues and the open chains.

    It has more than twenty methods since it is the one object that users see; most pass the call on to the roster or the fanout.

    Args:
        queue_limit: how many bytes of memory one observer's waiting events may take. None: 8 MiB, or 8 KiB for each chain
            that was open at once, if that is more.
        drain_timeout: how many seconds the end of a run waits for observers that lag.
        source: the name of this worker; if `""`, that of the process if the environment says that it is one of several, and else none.
        publish: whether it publishes to the hub that `ROLLCAST_HUB` names, if one is named (docs/publishing.md).

    Attributes:
        fanout: the observers' queues.
        publishes: whether it does that. Then every run streams, whether or not its caller asks for it.
    """

    def __init__(
        self,
        *,
        queue_limit: int | None = None,
        drain_timeout: float = 5.0,
        source: str = "",
        publish: bool = True,
    ) -> None:
        self.fanout = Fanout(
            queue_limit=queue_limit, drain_timeout=drain_timeout, source=source or default_source()
        )
        self.lock = self.fanout.lock
        self._roster = Roster(self, self.fanout)
        # The last `seq` of events that were emitted by hand, of runs and sources that no open run here numbers.
        self._foreign_seq: dict[Lane, int] = {}
        self._handmade = HandMade()
        self._relay = Relay(self.fanout)
        lifetime.register(self)
        self.publishes = publish and publish_if_asked(self)

    # Where 0.1 had them.
    runs = _of_fanout("runs")
    deliveries = _of_fanout("deliveries")
    congested = _of_fanout("congested")
    queue_limit = _of_fanout("queue_limit")
    drain_timeout = _of_fanout("drain_timeout")
    source = _of_fanout("source")

    # -- observers -----------------------------------------------------------------------------------------------------

    @property
    def observers(self) -> list[StreamObserver]:
        """The observers that were added, in that order."""
        return self._roster.observers

    def add_observer(self, observer: StreamObserver) -> None:
        """Give the observer what its filter wants from now on; chains that already run start with a snapshot.

        Raises:
            InputError: it is not a StreamObserver, is already added to a manager, or has a wrong setting; it is then not
                added, and other observers are not affected.
        """
        self._roster.add(observer)

    def remove_observer(self, observer: StreamObserver) -> None:
        """Give the observer what was emitted until now and nothing more, then call its `aclose`.

        An observer that is not added is ignored, so removing one twice is not an error.
        """
        self._roster.remove(observer)

    def refresh(self, observer: StreamObserver | None = None) -> None:
        """Re-read an observer's filter, leaves and loop, or those of every observer if None.

        Chains that come into view start with a snapshot. If they cannot be read, the observer keeps its old ones, and the
        failure is logged and reported to the other observers.
        """
        self._roster.refresh(observer)

    def report(self, observer: StreamObserver, error: BaseException, run_id: str | None = None) -> None:
        """Emit an `error` event about the observer to the others.

        Args:
            observer: the observer that failed.
            error: what it raised.
            run_id: the run in which it failed; None: any run that is open now, if there is one.
        """
        with self.lock:
            runs = self.fanout.runs
            if run_id is None:  # any run that has begun, so that observers of runs see it
                own = self.fanout.source
                run_id = next((name for name, run in runs.items() if run.as_of().get(own, -1) >= 0), "")
            elif run_id not in runs:
                run_id = ""
            event = StreamEvent(
                StreamEventType.ERROR,
                "",
                time.time(),
                {
                    "error": text_and_place(error),
                    "error_type": class_name_of(error),
                    "where": f"observer:{name_of(observer)}",
                },
                run_id=run_id,
            )
            self._emit(event, observer)

    def subscribe(self, filter: EventFilter | None = None, *, name: str = "subscription") -> Subscription:
        """Read events from now on: `async for event in manager.subscribe(...)`.

        Args:
            filter: which ones; None: all.
            name: for gaps and warnings.

        Raises:
            InputError: the filter is not one.
        """
        wanted = EventFilter() if filter is None else filter
        check_filter(name, wanted)
        return Subscription(self.fanout, self.fanout.delivery(name, guarded(wanted)))

    # -- producing -----------------------------------------------------------------------------------------------------

    def run(self, **about: Unpack[RunAbout]) -> RunWriter:
        """Make a run for a loop of your own; use it as a context manager, sync or async.

        The keywords are those of `RunWriter`.
        """
        run = RunWriter(self.fanout, **about)
        run.manager = self
        return run

    def emit(self, event: StreamEvent) -> None:
        """Give the event to the observers that want it, stamped with `seq` and `source`.

        This is for events made by hand; producers have `run(...)`. Fields that are required but missing are filled in from
        the chain's earlier events: the `offset` of a chunk, the `call_id` of an observation. An event that cannot be accepted
        is dropped, with one warning for each cause. This never waits and never raises. Call it from any thread.
        """
        with self.lock:
            completed = self._handmade.completed(event, self._open_generation)
            if completed is not None:
                self._emit(completed, None)

    def _open_generation(self, run_id: str, chain_id: str) -> tuple[int, int] | None:
        """The step and the characters so far of a chain that a run of this manager writes. The lock is held."""
        run = self.fanout.runs.get(run_id)
        return None if run is None else run.place_in(chain_id)

    def _emit(self, event: StreamEvent, without: StreamObserver | None) -> None:
        with self.lock:
            own = self._roster.delivery_of(without) if without is not None else None
            source = event.source or self.fanout.source
            found = self.fanout.interested(
                event.event_type, event.chain_id, event.group_id, event.run_id, source
            )
            targets = [d for d in found if own is None or d is not own]
            if not targets:
                return
            run = self.fanout.runs.get(event.run_id)
            if run is not None:
                run.tell_all(event.chain_id)
            seq = None if run is None else run.next_seq(source)
            if seq is None:
                lane = Lane(event.run_id, source)
                seq = self._foreign_seq.pop(lane, 0) + 1
                self._foreign_seq[lane] = seq
                if len(self._foreign_seq) > 1024:
                    del self._foreign_seq[next(iter(self._foreign_seq))]
            stamped = msgspec.structs.replace(event, data=detached(event.data), seq=seq, source=source)
            self.fanout.publish_locked(stamped, targets, event_size(stamped))

    def relay(self, event: StreamEvent) -> None:
        """Pass on an event of a run that is produced elsewhere, unchanged: it keeps its `seq` and its `source`.

        The hooks of runs and chains are called, and observers that join late get snapshots, as for this manager's own runs. A
        run opens with its first relayed event, and closes when every source that it had events of has ended its part. This
        never waits. Call it from any thread.

        Raises:
            InputError: it is not a StreamEvent, or a field of it has the wrong type.
        """
        event = relayable(event)
        with self.lock:
            self._relay.pass_on_locked(event)

    def relay_read(self, events: Iterable[tuple[Relayed, bytes | None]]) -> None:
        """Do the same as `relay` for events that were read from JSON and checked: each with its line, or None if it was made here."""
        with self.lock:
            self._relay.pass_all_on_locked(events)

    def expect_relayed_runs(self, most: int) -> None:
        """Let as many relayed runs be open at once, for an owner who knows which producers are there."""
        with self.lock:
            self._relay.runs_limit = max(most, self._relay.runs_limit)

    def wants(
        self, event_type: StreamEventType, chain_id: str = "", group_id: str | None = None, run_id: str = ""
    ) -> bool:
        """Whether any observer wants events of this type from this chain or run, emitted here."""
        return bool(self.fanout.interested(event_type, chain_id, group_id, run_id, self.fanout.source))

    def cancel(self, run_id: str, chain_id: str | None = None, group_id: str | None = None) -> list[str]:
        """Cancel a run, one of its chains, or the chains of a group, for a watcher. Call it from any thread.

        Chains that are open are told to end. Those that have not begun do not begin, if the run has announced them (an agent's
        run announces all its chains; see `run.announce`). If the run is cancelled, it ends with the status `cancelled`, unless
        all its chains were over.

        Returns:
            The open chains that are told to end.

        Raises:
            InputError: no such run, chain or group is open, or its producer cannot be told to stop.
        """
        return cancel(self.fanout, run_id, chain_id, group_id).ending

    # -- waiting -------------------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Return at once unless a lossless observer's queue is full; then wait for it, and log a warning once."""
        await self.fanout.ready()

    def ready_sync(self) -> None:
        """Do the same as `ready`, but block the thread.

        Inside an event loop it waits only for threaded observers, since the others would never get their turn.
        """
        self.fanout.ready_sync()

    async def drain(self, timeout: float | None = None) -> None:
        """Wait until every observer has been given everything that was emitted.

        A warning names each observer that does not take it within `timeout` seconds (the manager's `drain_timeout` if None).

        Raises:
            InputError: an observer awaits this in one of its own hooks, and so would wait for itself.
        """
        await self.fanout.drain(timeout)

    def drain_sync(self, timeout: float | None = None) -> None:
        """Do the same as `drain`, for code without an event loop. Inside an event loop it waits only for threaded observers."""
        self._roster.take_here_at_exit()
        self.fanout.drain_sync(timeout)

    async def aclose(self) -> None:
        """Remove every observer, and wait until each has taken what was emitted and has closed.

        An observer that takes nothing for `drain_timeout` seconds hangs: its call is cancelled, and a warning names it.
        One that is only slow is no longer waited for after three times that long, and goes on in the background. Raises what
        `drain` raises.
        """
        self._remove_all("aclose")
        await self._roster.all_closed()

    def close(self) -> None:
        """Do the same as `aclose`, for code without an event loop. It is also called when the interpreter exits."""
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
        """The statistics of each observer, in the order in which they were added."""
        return self._roster.statistics()

    def delivery_of(self, observer: StreamObserver) -> Delivery | None:
        """The queue of one observer, if it is added or is a leaf of one that is."""
        return self._roster.delivery_of(observer)

    def totals(self) -> ManagerStatistics:
        """The numbers of the manager as a whole."""
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
        """Reset in a forked child, which has none of the threads and loops. The lock is held."""
        self._roster.after_fork_locked()
        self.fanout.after_fork_locked()
