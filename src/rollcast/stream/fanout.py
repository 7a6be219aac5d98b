"""Decides which reader gets which event: the deliveries, their one lock, and a version that says when to look again.

    a writer ──targets, publish──▶ Fanout ──put_nowait──▶ Delivery, one for each reader

Publishing never waits. A writer keeps a `Route`, which remembers the deliveries that want each type of its events as long as
the version stays the same. If no reader wants a token, no event is made of it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from rollcast.aio import call_in, fulfil, resolve, running_loop, wait_for_all, wait_for_all_blocking
from rollcast.records import EventFilter, StreamEvent, StreamEventType, Trajectory
from rollcast.records.event import OpenToolCall
from rollcast.records.lanes import Lane
from rollcast.stream.asked import TOLD_ANYWAY, AskedChains
from rollcast.stream.delivery import Delivery, ensure_not_in_own_hook
from rollcast.stream.own_filter import OwnFilter
from rollcast.stream.queue import Control, EventQueue
from rollcast.stream.waiting import Encodable, Event, Place, Relayed, WaitingChunk, encodable

__all__ = ["Cut", "Fanout", "OpenPart", "OpenRun", "Route", "Silence", "Targets"]

logger = logging.getLogger("rollcast.stream")

QUEUE_LIMIT = 8 << 20  # bytes
CROWD = 256  # open chains; with fewer, events are gone before the collector sees them, and cost less if they are made at once
QUEUE_LIMIT_OF_A_CHAIN = 8 << 10  # bytes; in one turn of the loop all chains may begin, or end

CHUNK = StreamEventType.LLM_GENERATION_CHUNK
UNKNOWN = StreamEventType.of("unknown")  # as what events count whose type this version does not know

Targets = tuple[Delivery, ...]


class OpenPart(NamedTuple):
    """What is open in a chain: what its next events will repeat in whole.

    Attributes:
        step, depth: of its turn.
        seq: the latest of its run and source.
        content: the text of its open generation so far, None if none is open; `offset` characters stood before it.
        tool_calls: that have not ended.
    """

    run_id: str
    chain_id: str
    group_id: str | None
    step: int | None
    depth: int | None
    seq: int
    content: str | None
    offset: int
    tool_calls: list[OpenToolCall]


class OpenRun(Protocol):
    """An open run. Everything here is used with the lock held."""

    loop: asyncio.AbstractEventLoop | None
    parent_run_id: str | None
    expected_chains: int
    on_cancel: Callable[[str | None], object] | None
    announced: dict[str, str | None]

    def as_of(self) -> Mapping[str, int]:
        """The `seq` of the latest event, by source."""
        ...

    def next_seq(self, source: str) -> int | None:
        """Count an event that somebody else emits into this run, and return its `seq`; None: the run does not number that source."""
        ...

    def has_chain(self, chain_id: str) -> bool:
        """Whether this chain is open."""
        ...

    def tell_all(self, chain_id: str) -> None:
        """Somebody makes events of this chain by hand: readers that would ask the chain are given all of its events."""
        ...

    def place_in(self, chain_id: str) -> tuple[int, int] | None:
        """The step and the characters so far of this chain's open generation; None if the chain is not open."""
        ...

    def chain_ids(self, group_id: str | None = None) -> list[str]:
        """The chains that are open; only those of this group, unless it is None."""
        ...

    def count_ended(self, group_id: str | None = None) -> int:
        """How many chains have ended; only those of this group, unless it is None."""
        ...

    def open_part(self, chain_id: str) -> OpenPart | None:
        """What is open in this chain; None if nothing is."""
        ...

    def standing(self) -> tuple[int, int]:
        """How many chains are open, and how many tokens their open generations have."""
        ...

    def snapshots(self, filter: EventFilter, besides: EventFilter | None) -> Iterable[StreamEvent]:
        """A `chain_snapshot` of each open chain that the filter wants and `besides` does not."""
        ...


class Cut(NamedTuple):
    """The state of everything that is open at one moment.

    Attributes:
        snapshots: a `chain_snapshot` of each open chain.
        as_of: the `seq` of the last event of each open run, by source.
        arrived: done when the reader has been given everything from before the cut; None if it already has.
    """

    snapshots: list[StreamEvent]
    as_of: dict[Lane, int]
    arrived: Future[None] | None


class Silence:
    """What all chains share whose tokens nobody wants, until any filter changes.

    Attributes:
        lasts: whether no filter has changed since. A change ends it before the first snapshot is made. A generation reads it without
            the lock, before it adds a token and again afterwards: if it has ended in between, that snapshot may lack the token.
    """

    __slots__ = ("lasts",)

    def __init__(self) -> None:
        self.lasts = True


class Fanout:
    """The deliveries of one manager.

    Its methods are more than twenty, since everything that its one lock guards is changed here: who reads, what they get, and
    which producers wait for them.

    Args:
        queue_limit: how many bytes of memory one reader's waiting events may take. None: 8 MiB, or 8 KiB for each chain that
            was open at once, if that is more.
        drain_timeout: how many seconds the end of a run waits for readers that lag.
        source: the `source` of events.

    Attributes:
        lock: guards everything here, the deliveries, and what the writers of live runs write, but for the tokens that nobody wants.
        version: rises whenever a delivery is added, is removed or changes its filter.
        silence: of this version; a chain that has it need not look whether somebody wants its tokens.
        crowded: whether so many chains are open that tokens wait as `WaitingChunk`.
        follows_chains: whether a delivery is told when a chain has closed.
        runs: the open runs, by id.
        congested: the lossless deliveries that are full, which the producers wait for.
        emitted: how many events were published, by type, without those in `chunks`.
        chunks: how many chunk events runs here published at once; counting in an attribute costs a third of a dict entry.
        named: the chains and groups that filters name.
        asking: what the readers that ask (`asked.py`) have not asked yet.
        run_openings, run_closings: called with the id of each run that opens or has closed; the lock is held.
        chain_closings: called with the trajectory of each chain that has ended, which no longer changes; the lock is held.
            Chains of relayed runs have no trajectory.
    """

    def __init__(
        self, *, queue_limit: int | None = None, drain_timeout: float = 5.0, source: str = ""
    ) -> None:
        self._queue_limit = QUEUE_LIMIT if queue_limit is None else queue_limit
        self._limit_grows = queue_limit is None
        self.drain_timeout = drain_timeout
        self.source = source
        self.lock = threading.RLock()
        self.version = 0
        self.silence = Silence()
        self.crowded = False
        self.follows_chains = False
        self.runs: dict[str, OpenRun] = {}
        self.emitted = dict.fromkeys(StreamEventType, 0)
        self.chunks = 0
        self.completion_tokens = 0  # in generations that have ended
        self.named: frozenset[str] = frozenset()
        self.asking: tuple[AskedChains, ...] = ()
        self.run_openings: list[Callable[[str], object]] = []
        self.run_closings: list[Callable[[str], object]] = []
        self.chain_closings: list[Callable[[Trajectory], object]] = []
        self.congested: set[Delivery] = set()
        self._deliveries: list[Delivery] = []
        self._targets: dict[Targets, Targets] = {}  # those found since the version changed
        # By type, if no filter names a run, chain, group or source: then all chains have the same targets. None if one does.
        self._anywhere: dict[StreamEventType, Targets] | None = {}
        # What is looked up, by run, source and whether a chain can be asked; for chains that no filter names.
        self._alike: dict[tuple[str, str, bool], dict[StreamEventType, Targets]] = {}
        self._leaving: list[Delivery] = []  # removed deliveries, until their readers have closed
        self._threads: list[Future[None]] = []  # threads that wait until nothing is congested
        self._tasks: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}

    # -- who reads -----------------------------------------------------------------------------------------------------

    @property
    def deliveries(self) -> list[Delivery]:
        """All deliveries, in the order in which they were added."""
        with self.lock:
            return list(self._deliveries)

    def delivery(
        self, reader: str, filter: EventFilter, *, lossless: bool = False, threaded: bool = False
    ) -> Delivery:
        """Make a delivery; `add` it to give it events."""
        delivery = Delivery(
            reader,
            filter,
            lock=self.lock,
            limit=self.queue_limit,
            snapshots=self.snapshots,
            lossless=lossless,
            threaded=threaded,
        )
        delivery.on_full = self._full_locked
        return delivery

    def add(self, delivery: Delivery) -> None:
        """Give the delivery what its filter wants from now on; chains that are already open start with a snapshot."""
        with self.lock:
            self._deliveries.append(delivery)
            self._changed_locked()
            if self.runs:
                delivery.put_uncounted([Control("run_opened", run_id) for run_id in self.runs])
                delivery.put_uncounted(list(self.snapshots(delivery.filter)))

    def remove(self, delivery: Delivery) -> None:
        """Give the delivery nothing more than what was published until now. An unknown delivery is only ended."""
        with self.lock:
            if delivery in self._deliveries:
                self._deliveries.remove(delivery)
                if not delivery.pulled:  # nothing waits for a reader that takes its events itself
                    self._leaving.append(delivery)
                self._changed_locked()
                self._full_locked(delivery, full=False)
            delivery.end_locked()

    def forget_locked(self, delivery: Delivery) -> None:
        """Forget a removed delivery, whose reader has closed."""
        if delivery in self._leaving:
            self._leaving.remove(delivery)

    def wake_leaving_locked(self) -> None:
        """Wake removed readers, which may still have work left from an event loop that ended."""
        for delivery in list(self._leaving):
            delivery.on_wake()

    def set_filter(self, delivery: Delivery, filter: EventFilter) -> None:
        """Change a delivery's filter. Chains that come into view start with a snapshot."""
        with self.lock:
            before, delivery.filter = delivery.filter, filter
            self._changed_locked()
            seen = (
                None if OwnFilter in (type(filter), type(before)) else before
            )  # what it let pass, nobody knows
            delivery.put_uncounted(list(self.snapshots(filter, besides=seen)))

    def _changed_locked(self) -> None:
        self.version += 1
        self.silence.lasts = False
        self.silence = Silence()
        self._targets.clear()
        self._alike.clear()
        self.follows_chains = any(d.follows_chains for d in self._deliveries)
        self.asking = tuple([d.asked for d in self._deliveries if d.asked is not None])
        parts = [part for delivery in self._deliveries for part in delivery.filter.alternatives]
        self.named = frozenset().union(*(p.chains or () for p in parts), *(p.groups or () for p in parts))
        self._anywhere = None if any(map(_names_a_place, parts)) else {}

    def make_room_locked(self, chains: int) -> None:
        """Adjust to this many open chains: the starts or the ends of all of them must fit into a queue."""
        self.crowded = chains > CROWD
        if self._limit_grows and chains * QUEUE_LIMIT_OF_A_CHAIN > self._queue_limit:
            self._queue_limit = chains * QUEUE_LIMIT_OF_A_CHAIN
            for delivery in self._deliveries:
                delivery.limit = max(delivery.limit, self._queue_limit)

    @property
    def queue_limit(self) -> int:
        """How many bytes one reader's waiting events may take. What is set counts for readers that are added later, and does not grow."""
        return self._queue_limit

    @queue_limit.setter
    def queue_limit(self, limit: int) -> None:
        self._queue_limit = limit
        self._limit_grows = False

    @property
    def same_for_all_chains(self) -> bool:
        """Whether all chains have the same targets, since no filter names a run, chain, group or source. The lock is held."""
        return self._anywhere is not None

    # -- what they get -------------------------------------------------------------------------------------------------

    def targets_anywhere(self, event_type: StreamEventType) -> Targets | None:
        """The deliveries that want such events of all chains; None if chains differ, or before the first lookup. The lock is held."""
        return None if self._anywhere is None else self._anywhere.get(event_type)

    def interested(
        self, event_type: StreamEventType, chain_id: str, group_id: str | None, run_id: str, source: str
    ) -> Targets:
        """The deliveries that want such an event. Chains with the same watchers share one tuple."""
        with self.lock:
            known = self._anywhere.get(event_type) if self._anywhere is not None else None
            if known is not None:
                return known
            place = (event_type, chain_id, group_id, run_id, source)
            found = tuple([d for d in self._deliveries if d.wants(*place)])
            if event_type is CHUNK:
                found = _of_a_token(found)
            found = self._targets.setdefault(found, found)
            if self._anywhere is not None:
                self._anywhere[event_type] = found
            return found

    def targets_by_type_locked(self, place: Place, *, asked: bool) -> dict[StreamEventType, Targets]:
        """Where to note what is looked up for a place: all chains of a run share it, but for those that a filter names."""
        if place.chain_id in self.named or place.group_id in self.named:
            return {}
        return self._alike.setdefault((place.run_id, place.source, asked), {})

    def not_asking_locked(self, targets: Targets) -> Targets:
        """Those of the deliveries whose readers do not ask."""
        found = tuple([d for d in targets if d.asked is None])
        return self._targets.setdefault(found, found)

    def snapshot_for_askers_locked(self, snapshot: StreamEvent) -> None:
        """Give the readers that ask a snapshot of a chain, whose events they are given from now on."""
        for delivery in self._deliveries:
            if delivery.asked is not None:
                delivery.put_uncounted([snapshot])

    def publish_locked(self, event: Event, targets: Iterable[Delivery], size: int) -> None:
        """Queue an event of `size` bytes for each target. This is on the path of every token."""
        self.count_locked(event.event_type)
        EventQueue.put_in_each(targets, event, size)

    def publish_relayed_locked(
        self, events: list[Relayed], lines: list[bytes | None], targets: Iterable[Delivery], size: int
    ) -> None:
        """Queue relayed events that follow each other for each target, all together.

        Args:
            events: the events.
            lines: the JSON of each; None for one that was made here.
            targets: the deliveries that want them.
            size: the sum of their bytes.
        """
        if not targets:
            return
        for kind, count in Counter([event.event_type for event in events]).items():
            self.count_locked(kind, count)
        made: Sequence[Encodable] = ()
        for delivery in targets:
            if delivery.takes_passages:
                delivery.put_passage(events, lines, size)
            else:
                made = made or encodable(events)
                delivery.mixed = delivery.mixed or not delivery.encodes
                delivery.put_all(list[Event](made), size)

    def count_locked(self, event_type: StreamEventType, count: int = 1) -> None:
        """Count events of this type as published."""
        kind = event_type if event_type in self.emitted else UNKNOWN
        self.emitted[kind] = self.emitted.get(kind, 0) + count

    def publish_waiting_locked(self, chunk: WaitingChunk, targets: Iterable[Delivery], size: int) -> None:
        """Do the same as `publish_locked` for a chunk whose event is made later."""
        for delivery in targets:
            delivery.mixed = True
        self.publish_locked(chunk, targets, size)

    def emitted_by_type(self) -> dict[StreamEventType, int]:
        """How many events of each type were published. The lock is held."""
        chunk = StreamEventType.LLM_GENERATION_CHUNK
        return self.emitted | {chunk: self.emitted[chunk] + self.chunks}

    def broadcast_locked(self, control: Control) -> None:
        """Queue a hook for every delivery."""
        self.wake_leaving_locked()
        if control.kind == "run_opened":
            for opened in list(self.run_openings):
                opened(control.run_id)
        of_a_chain = control.kind == "chain_closed"
        for delivery in self._deliveries:
            if delivery.follows_chains or not of_a_chain:
                delivery.put_control(control)
        if control.kind == "run_closed":
            for closed in list(self.run_closings):
                closed(control.run_id)

    def snapshots(self, filter: EventFilter, besides: EventFilter | None = None) -> Iterator[StreamEvent]:
        """A `chain_snapshot` of each open chain that the filter wants and `besides` does not. The lock is held."""
        for run in self.runs.values():
            yield from run.snapshots(filter, besides)

    def open_parts(self) -> Iterator[OpenPart]:
        """What is open in every chain. The lock is taken for one chain at a time: nobody waits for the whole."""
        with self.lock:
            chains = [(run, chain_id) for run in self.runs.values() for chain_id in run.chain_ids()]
        for run, chain_id in chains:
            with self.lock:
                part = run.open_part(chain_id)
            if part is not None:
                yield part

    def cut(
        self, filter: EventFilter, *, besides: EventFilter | None = None, reader: Delivery | None = None
    ) -> Cut:
        """The state of the chains that the filter wants and `besides` does not.

        Args:
            filter: which chains to include.
            besides: a filter whose chains are left out.
            reader: the delivery that the snapshots will be joined with; see `Cut.arrived`.
        """
        with self.lock:
            arrived = None
            if reader is not None and not reader.idle:
                arrived = Future[None]()
                reader.put_uncounted([Control("barrier", done=arrived)])
            as_of = {
                Lane(run_id, source): seq
                for run_id, run in self.runs.items()
                for source, seq in run.as_of().items()
            }
            return Cut(list(self.snapshots(filter, besides)), as_of, arrived)

    # -- waiting for readers -------------------------------------------------------------------------------------------

    def barriers(self) -> list[tuple[Delivery, Future[None]]]:
        """For each delivery that is not idle, a promise that is done when it has handed over all that waits now."""
        with self.lock:
            barriers = [(d, Future[None]()) for d in self._deliveries if not (d.idle or d.pulled)]
            for delivery, done in barriers:
                delivery.put_uncounted([Control("barrier", done=done)])
            return barriers

    async def drain(self, timeout: float | None = None) -> None:
        """Wait until every reader has been given everything that was published.

        A warning names each reader that does not take it within `timeout` seconds (`drain_timeout` if None).

        Raises:
            InputError: an observer awaits this in one of its own hooks, and so would wait for itself.
        """
        timeout = self.drain_timeout if timeout is None else timeout
        barriers = self.barriers()
        ensure_not_in_own_hook("drain", (delivery for delivery, _ in barriers))
        await wait_for_all([done for _, done in barriers], timeout)
        self._name_the_late(barriers, timeout)

    def drain_sync(self, timeout: float | None = None) -> None:
        """Do the same as `drain`, for code without an event loop. Inside an event loop it waits only for threaded readers."""
        timeout = self.drain_timeout if timeout is None else timeout
        here = running_loop()
        barriers = [b for b in self.barriers() if here is None or b[0].threaded]
        ensure_not_in_own_hook("drain_sync", (delivery for delivery, _ in barriers))
        wait_for_all_blocking([done for _, done in barriers], timeout)
        self._name_the_late(barriers, timeout)

    def _name_the_late(self, barriers: list[tuple[Delivery, Future[None]]], timeout: float) -> None:
        for delivery, done in barriers:
            if not done.done() and not delivery.discarding:
                with self.lock:
                    left = delivery.statistics().queued
                logger.warning(
                    "%s did not take its events within %g s; %d still wait", delivery.reader, timeout, left
                )

    # -- producers wait for lossless readers ---------------------------------------------------------------------------

    def _full_locked(self, delivery: Delivery, full: bool) -> None:
        if full:
            self.congested.add(delivery)
            return
        self.congested.discard(delivery)
        if not self.congested:
            self._wake_producers_locked()

    async def ready(self) -> None:
        """Return at once unless a lossless reader's queue is full; then wait for it, and log a warning once."""
        while self.congested:
            with self.lock:
                self._warn_of_waiting_locked(self.congested)
                if not self.congested:
                    return
                loop = asyncio.get_running_loop()
                waiter: asyncio.Future[None] = loop.create_future()
                self._tasks.setdefault(loop, []).append(waiter)
            await waiter

    def ready_sync(self) -> None:
        """Do the same as `ready`, but block the thread. Inside an event loop it waits only for threaded readers."""
        here = running_loop()
        while self.congested:
            with self.lock:
                late = [d for d in self.congested if here is None or d.threaded]
                if not late:
                    return
                self._warn_of_waiting_locked(late)
                waiter: Future[None] = Future()
                self._threads.append(waiter)
            waiter.result()

    def _warn_of_waiting_locked(self, late: Iterable[Delivery]) -> None:
        for delivery in late:
            if delivery.first_time("waiting"):
                logger.warning(
                    "the rollout waits for %s, which is lossless and has fallen behind", delivery.reader
                )

    def _wake_producers_locked(self) -> None:
        """Make one call into each loop, however many tasks wait there."""
        threads, self._threads = self._threads, []
        for thread in threads:
            fulfil(thread)
        tasks, self._tasks = self._tasks, {}
        for loop, waiters in tasks.items():
            call_in(loop, _resolve_all, waiters)  # if the loop was closed, nothing waits there any more

    def after_fork_locked(self) -> None:
        """In a forked child: forget everything that waits."""
        self.congested.clear()
        self._threads.clear()
        self._tasks.clear()
        self._leaving.clear()
        for delivery in self._deliveries:
            delivery.after_fork_locked()


def _names_a_place(a: EventFilter) -> bool:
    return not (a.chains is None and a.groups is None and a.runs is None and a.sources is None)


def _of_a_token(wanted: Targets) -> Targets:
    """The deliveries that get a chunk which these want: nobody, unless one of them wants it for its own sake."""
    if not any(delivery.tokens == "wanted" for delivery in wanted):
        return ()
    return tuple(delivery for delivery in wanted if delivery.tokens != "never")


def _resolve_all(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        resolve(waiter)


class Route:
    """Where the events of one chain or of a whole run go: looked up once, and again whenever the version has changed.

    Args:
        fanout: the deliveries.
        run_id, chain_id, group_id, source: which events; a `source` of None is the manager's own.

    Attributes:
        place: the fields that all its events have in common.
        asked: whether the chain can be asked what it adds up to, so that readers that ask are given only its start and its end.
        chunk: the deliveries that want its tokens, as of `version`; None before the first lookup.
        encoded: whether all of these take an `EncodableChunk`.
    """

    __slots__ = ("_by_type", "_fanout", "_with_ids", "asked", "chunk", "encoded", "place", "version")

    def __init__(
        self,
        fanout: Fanout,
        run_id: str,
        chain_id: str,
        group_id: str | None,
        source: str | None = None,
        *,
        asked: bool = False,
    ) -> None:
        self._fanout = fanout
        self.place = Place(run_id, chain_id, group_id, fanout.source if source is None else source)
        self.asked = asked
        self.version = -1
        self.chunk: Targets | None = None
        self.encoded = False
        self._by_type: dict[StreamEventType, Targets]
        self._with_ids: Targets | None = None

    def tell_all(self) -> None:
        """Give all events to readers that ask too, from now on."""
        self.asked, self.version = False, -1

    def targets_of_ids_locked(self) -> Targets:
        """The deliveries that want this chain's ends of generations, with the ids."""
        targets = self.targets_locked(StreamEventType.LLM_GENERATION_END)
        if self._with_ids is None:
            at = self.place
            self._with_ids = tuple(
                [each for each in targets if each.wants_ids(at.chain_id, at.group_id, at.run_id, at.source)]
            )
        return self._with_ids

    def targets_locked(self, event_type: StreamEventType) -> Targets:
        """The deliveries that want this type of event."""
        fanout = self._fanout
        if self.version != fanout.version:
            self.version = fanout.version
            self._by_type = fanout.targets_by_type_locked(self.place, asked=self.asked)
            self.chunk = self._with_ids = None
        targets = self._by_type.get(event_type)
        if targets is None:
            place = self.place
            targets = fanout.interested(
                event_type, place.chain_id, place.group_id, place.run_id, place.source
            )
            if self.asked and fanout.asking and event_type not in TOLD_ANYWAY:
                targets = fanout.not_asking_locked(targets)
            self._by_type[event_type] = targets
        if event_type is CHUNK and self.chunk is None:
            self.chunk = targets
            self.encoded = all(d.encodes and type(d.filter) is not OwnFilter for d in targets)
        return targets
