"""From one observer to many clients, without sockets: what each subscription gets, and when.

    manager ──on_batch──▶ history ──flush──▶ batches ──▶ clients

A client is a position in the history. One that cannot take more stays where it is, which costs no memory; when it can
again, the chunks that it missed are merged. Clients with equal filters at one position share the bytes of a batch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

from rollcast.aio import call_in, running_loop
from rollcast.errors import InputError
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.codec import decode_unchecked
from rollcast.serve.fitting import fitted, in_parts
from rollcast.serve.history import Entry, History, Selector, encoded
from rollcast.serve.protocol import FRAME_BYTES, CloseCode, RunInfo, batch_frame
from rollcast.serve.settings import ServerSettings
from rollcast.stream import StreamObserver
from rollcast.stream.queue import compact

__all__ = ["Broadcaster", "Outlet", "ServerObserver", "Subscription"]

logger = logging.getLogger("rollcast.serve")

T = StreamEventType
NOTHING = EventFilter(types=())
PORTION = 2048  # entries that one subscription is given before others have their turn
PORTION_BYTES = 256 << 10
MAX_FILTERS = 64  # that the manager is told one by one
MAX_RUNS = 64  # that `welcome` may list, the latest ones


class Outlet(Protocol):
    """A client's connection, as the broadcaster sees it.

    Attributes:
        plain: one event a message and no frames around them.
    """

    plain: bool

    def unsent(self) -> int:
        """Bytes that were given to it and that the network has not taken."""

    def close(self, code: CloseCode, message: str) -> None:
        """End it. Does not wait."""


class Transmit(Protocol):
    """Sends messages to several clients, without waiting."""

    def __call__(self, outlets: Iterable[Any], /, *messages: bytes) -> None: ...


class _Join:
    """A subscription that begins with snapshots: what it must not get twice.

    Attributes:
        snapshots: of the open chains, encoded.
        as_of: seq of each open run's last event when they were made.
        before: what it got before, if only its filter changed.
    """

    __slots__ = ("as_of", "before", "snapshots")

    def __init__(self, snapshots: list[bytes], as_of: dict[str, int], before: Selector | None) -> None:
        self.snapshots = snapshots
        self.as_of = as_of
        self.before = before

    def covers(self, entry: Entry) -> bool | None:
        """Whether the snapshots tell what this event tells; None: half of it."""
        as_of = self.as_of.get(entry.place.run_id, -1)
        if entry.from_seq > as_of or (self.before is not None and self.before.wants(entry.place)):
            return False
        return True if entry.seq <= as_of else None


class Subscription:
    """What one client wants, and how far it is."""

    __slots__ = (
        "behind", "id", "join", "live_from", "max_message", "next_filter", "outlet", "position", "selector", "told"
    )  # fmt: skip

    def __init__(
        self, outlet: Outlet, id: str, selector: Selector, position: int, max_message: int | None = None
    ) -> None:
        self.outlet = outlet
        self.id = id
        self.max_message = max_message  # bytes; None: any number
        self.selector = selector
        self.position = position
        self.live_from = position  # what stands before it is replayed, and is not merged
        self.told = 0  # bytes before the cursor that the client knows
        self.behind = False  # it could not take more
        self.join: _Join | None = None
        self.next_filter: EventFilter | None = None  # to be changed to


class ServerObserver(StreamObserver):
    """The one observer of a server: `server.get_observer()`."""

    def __init__(self, broadcaster: Broadcaster) -> None:
        self.filter = broadcaster.wanted()
        self._broadcaster = broadcaster

    @property
    def name(self) -> str:
        """How warnings, errors and statistics call it."""
        return "WebSocketStreamingServer"

    async def on_event(self, event: StreamEvent) -> None:
        """Keep it and pass it on."""
        self._broadcaster.take([event])

    async def on_batch(self, events: list[StreamEvent]) -> None:
        """Keep them and pass them on."""
        self._broadcaster.take(events)


class Broadcaster:
    """The history, the subscriptions, and the way between them.

    `take` may be called from any thread; everything else in the event loop that `attach` names.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.keeps = settings.history_bytes > 0
        self.history = History(max(settings.history_bytes, settings.behind_bytes))
        self.lock = threading.RLock()
        self.subscriptions: dict[tuple[Outlet, str], Subscription] = {}
        self.observer = ServerObserver(self)
        self.runs: OrderedDict[str, RunInfo] = OrderedDict()
        self.sent_batches = self.closed_slow = 0
        self._selectors: dict[EventFilter, Selector] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transmit: Transmit | None = None
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._at_once = False
        self._flushed = (0, 0)  # head and total of the last flush

    # -- the event loop ----------------------------------------------------------------------------------------------

    def attach(self, loop: asyncio.AbstractEventLoop, transmit: Transmit) -> None:
        """Serve from this loop."""
        with self.lock:
            self._transmit = transmit
            self._loop = self.observer.loop = loop
        if self.observer.manager is not None:
            self.observer.manager.refresh(self.observer)

    def detach(self) -> None:
        """Serve no longer; events are still kept."""
        with self.lock:
            self._loop = self.observer.loop = self._transmit = None
            self.subscriptions.clear()
            self._cancel_timer()
        self._narrow()

    # -- events come in ------------------------------------------------------------------------------------------------

    def take(self, events: list[StreamEvent]) -> None:
        """Keep the events and see to it that they are sent."""
        first_chunk = False
        with self.lock:
            for event in events:
                self.history.append(event)
                kind = event.event_type
                if kind is T.LLM_GENERATION_CHUNK:
                    if event.data.get("offset") == 0:
                        first_chunk = True
                elif kind is T.RUN_START or kind is T.RUN_END:
                    self._note_run(event)
            loop = self._loop
            head, total = self._flushed
            full = (
                self.history.head - head >= self.settings.batch_events
                or self.history.total - total >= self.settings.batch_bytes
            )
        if loop is None:
            return
        if loop is running_loop():
            self._schedule(at_once=first_chunk or full)
            return
        if not call_in(loop, partial(self._schedule, at_once=first_chunk or full)):  # the server has stopped
            logger.debug("the server's event loop is closed; the events are kept")

    def _note_run(self, event: StreamEvent) -> None:
        data = event.data
        known = self.runs.pop(event.run_id, None)
        if event.event_type is T.RUN_START:
            info = RunInfo(event.run_id, data.get("parent_run_id"), "running", data.get("chains", 0))
        else:
            parent = known.parent_run_id if known else None
            info = RunInfo(event.run_id, parent, data.get("status", "completed"), data.get("chains", 0))
        self.runs[event.run_id] = info
        while len(self.runs) > MAX_RUNS:
            self.runs.popitem(last=False)

    def known_runs(self) -> list[RunInfo]:
        """The open runs, and the latest of those that ended."""
        manager = self.observer.manager
        with manager.lock if manager is not None else nullcontext(), self.lock:
            runs = dict(self.runs)
            for run_id, run in manager.runs.items() if manager is not None else ():
                runs[run_id] = RunInfo(run_id, run.parent_run_id, "running", run.expected_chains)
            return list(runs.values())

    def cancel(self, run_id: str, chain_id: str | None) -> None:
        """Pass it on to who produces the run.

        Raises:
            InputError: there is no such run or chain, or it cannot be cancelled.
        """
        manager = self.observer.manager
        if manager is None:
            raise InputError(f"no run {run_id!r} is open")
        manager.cancel(run_id, chain_id)

    # -- subscriptions -------------------------------------------------------------------------------------------------

    def wanted(self) -> EventFilter:
        """What the server asks the manager for: everything if it keeps a history, else what its clients want."""
        if self.keeps:
            return EventFilter()
        filters = {s.next_filter or s.selector.filter for s in self.subscriptions.values()}
        if (
            len(filters) > MAX_FILTERS
        ):  # every event would be held against each: the types alone narrow enough
            types = [f.types for f in filters]
            return EventFilter(types=None if None in types else frozenset().union(*(t for t in types if t)))
        union = NOTHING
        for each in filters:
            union = each if union is NOTHING else union | each
        return union

    def _narrow(self) -> None:
        """Tell the manager if what the clients want has changed."""
        if self.keeps:
            return
        wanted, manager = self.wanted(), self.observer.manager
        if wanted != self.observer.filter:
            self.observer.filter = wanted
            if manager is not None:
                manager.refresh(self.observer)

    def _selector(self, filter: EventFilter) -> Selector:
        selector = self._selectors.get(filter)
        if selector is None:
            if len(self._selectors) > 2 * len(self.subscriptions) + 64:
                used = {s.selector.filter: s.selector for s in self.subscriptions.values()}
                self._selectors = used
            selector = self._selectors[filter] = Selector(filter)
        return selector

    def subscribe(
        self,
        outlet: Outlet,
        id: str,
        filter: EventFilter,
        since: str = "live",
        *,
        max_message: int | None = None,
    ) -> tuple[bool, str | None]:
        """Send the outlet what the filter wants, from `live`, from `start` or from a cursor on.

        A batch of more than `max_message` bytes goes in parts.

        Returns:
            Whether everything since then is there; and the cursor to come back to, None if snapshots are to come first.
        """
        manager = self.observer.manager
        with manager.lock if manager is not None else nullcontext(), self.lock:
            position = self._position(since)
            here = self.history.head if position is None else position
            subscription = Subscription(outlet, id, self._selector(filter), here, max_message)
            subscription.live_from = self.history.head
            subscription.told = self.history.before(here)
            self.subscriptions[outlet, id] = subscription
            self._narrow()
            if position is None:
                self._begin_join(subscription, None)
            cursor = None if subscription.join else self.history.cursor(here)
        if position is not None:
            self._schedule(at_once=True)
        return position is not None or since == "live", cursor

    def _position(self, since: str) -> int | None:
        if since == "live" or not self.keeps:
            return None
        if since == "start":
            return 0 if self.history.tail == 0 else None
        return self.history.position(since)

    def update(self, outlet: Outlet, id: str, filter: EventFilter) -> tuple[bool, str | None]:
        """Send something else from here on; what is newly wanted begins with snapshots. Returns as `subscribe`."""
        manager = self.observer.manager
        with manager.lock if manager is not None else nullcontext(), self.lock:
            subscription = self.subscriptions[outlet, id]
            if subscription.join is None and self.history.head - subscription.position > PORTION:
                subscription.next_filter = filter  # once it has caught up
            else:
                self._change(subscription, filter)
            return True, None if subscription.join else self.history.cursor(subscription.position)

    def _change(self, subscription: Subscription, filter: EventFilter) -> None:
        """Both locks are held."""
        before = subscription.join.before if subscription.join else subscription.selector
        subscription.selector, subscription.next_filter = self._selector(filter), None
        self._narrow()
        self._begin_join(subscription, before)

    def unsubscribe(self, outlet: Outlet, id: str | None = None) -> None:
        """Send the outlet no more of this subscription, or of any."""
        with self.lock:
            keys = [(outlet, id)] if id is not None else [k for k in self.subscriptions if k[0] is outlet]
            for key in keys:
                self.subscriptions.pop(key, None)
        self._narrow()

    # -- joining: snapshots without a hole or a repetition -------------------------------------------------------------

    def _begin_join(self, subscription: Subscription, before: Selector | None) -> None:
        """Make snapshots now; send them when the history has everything that was emitted before. Both locks are held."""
        manager, loop = self.observer.manager, self._loop
        if manager is None or loop is None:
            return
        seen = None if before is None else before.filter
        cut = manager.fanout.cut(
            subscription.selector.filter, besides=seen, reader=manager.delivery_of(self.observer)
        )
        subscription.join = join = _Join([encoded(s) for s in cut.snapshots], cut.as_of, before)
        if cut.arrived is None:
            loop.call_soon(self._complete_join, subscription, join)  # after the answer to `subscribe`
        else:
            cut.arrived.add_done_callback(partial(self._arrived, subscription, join))

    def _arrived(self, subscription: Subscription, join: _Join, _: Future[None]) -> None:
        loop = self._loop
        if loop is not None and not call_in(
            loop, self._complete_join, subscription, join
        ):  # the server has stopped
            logger.debug("the server's event loop is closed; a client's snapshots are not sent")

    def _complete_join(self, subscription: Subscription, join: _Join) -> None:
        """Send the snapshots and what came since, as one whole: a client cut before it has nothing, after it all."""
        with self.lock:
            current = self.subscriptions.get((subscription.outlet, subscription.id))
            if current is not subscription or subscription.join is not join:
                return  # it has left, or began anew
            if subscription.position < self.history.tail:
                self._too_slow(subscription)
                return
            window = self.history.window(subscription.position, self.history.head)
        wanted = [entry for entry in window if subscription.selector.wants(entry.place)]
        covered = [join.covers(entry) for entry in wanted]
        if None in covered:  # merged over the moment of the snapshots: new ones are needed
            manager = self.observer.manager
            with manager.lock if manager is not None else nullcontext(), self.lock:
                self._begin_join(subscription, join.before)
            return
        events = [entry for entry, told in zip(wanted, covered, strict=True) if not told]
        position = subscription.position + len(window)
        subscription.join = None
        subscription.position = subscription.live_from = position
        self._send([subscription], [*join.snapshots, *(e.data for e in events)], position)
        self._told([subscription], window)
        self._schedule(at_once=False)

    # -- events go out -------------------------------------------------------------------------------------------------

    def _schedule(self, *, at_once: bool) -> None:
        """Flush soon, or when a batch's time is over."""
        loop = self._loop
        if loop is None or self._at_once:
            return
        if at_once:
            self._cancel_timer()
            self._at_once = True
            self._timer = loop.call_soon(self.flush)
        elif self._timer is None:
            self._timer = loop.call_later(self.settings.batch_s, self.flush)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._at_once = None, False

    def flush(self) -> None:
        """Send every subscription its next portion, as far as its client can take more.

        1. Who can take more, and who stands at the same place with the same filter?
        2. Each such group gets the same bytes.
        3. Whoever could not take more is given its events merged, once it can.
        4. Come again: at once if somebody has more to take, in a batch's time if somebody waits.
        """
        self._cancel_timer()
        groups: dict[tuple[Selector, int], list[Subscription]] = {}
        late: list[Subscription] = []
        waiting = False
        with self.lock:
            history = self.history
            head, self._flushed = history.head, (history.head, history.total)
            for subscription in list(self.subscriptions.values()):
                if subscription.join is not None or subscription.position == head:
                    continue
                if not self._can_take(subscription):
                    waiting = True
                elif subscription.behind and subscription.position >= subscription.live_from:
                    late.append(subscription)
                else:
                    groups.setdefault((subscription.selector, subscription.position), []).append(subscription)
        for (selector, position), members in groups.items():
            self._give(members, selector, position)
        for subscription in late:
            self._give_merged(subscription)
        more = False
        for subscription in [s for members in groups.values() for s in members] + late:
            if subscription.position < head:
                more = True
            else:
                self._caught_up(subscription)
        if not self.keeps:
            with self.lock:
                self.history.forget_before(
                    min((s.position for s in self.subscriptions.values()), default=head)
                )
        if more or waiting:
            self._schedule(at_once=more)

    def pending(self, head: int) -> bool:
        """Whether a client does not yet have what stands before this position, or the snapshots that it waits for."""
        with self.lock:
            return any(s.join is not None or s.position < head for s in self.subscriptions.values())

    def owes(self, outlet: Outlet) -> bool:
        """Whether the outlet is still to be given snapshots, or has to take those that it was given."""
        if outlet.unsent() > self.settings.client_buffer:
            return True
        with self.lock:
            return any(s.join is not None and key[0] is outlet for key, s in self.subscriptions.items())

    def _can_take(self, subscription: Subscription) -> bool:
        """Whether its client has room. One that has none for too long is closed. The lock is held."""
        history, limit = self.history, self.settings.client_buffer
        if subscription.position < history.tail:
            self._too_slow(subscription)
            return False
        unsent = subscription.outlet.unsent()
        if unsent <= (limit // 2 if subscription.behind else limit):
            return True
        subscription.behind = True
        live = max(subscription.position, subscription.live_from)
        if history.total - history.before(live) > self.settings.behind_bytes:
            self._too_slow(subscription)
        return False

    def _too_slow(self, subscription: Subscription) -> None:
        outlet = subscription.outlet
        keys = [k for k in self.subscriptions if k[0] is outlet]
        if not keys:
            return  # another subscription of the same client was too slow first
        for key in keys:
            del self.subscriptions[key]
        self.closed_slow += 1
        outlet.close(CloseCode.TOO_SLOW, "this client reads too slowly; reconnect with its cursor")

    def _caught_up(self, subscription: Subscription) -> None:
        subscription.behind = False
        if subscription.next_filter is not None:
            manager = self.observer.manager
            with manager.lock if manager is not None else nullcontext(), self.lock:
                self._change(subscription, subscription.next_filter)

    def _give(self, members: list[Subscription], selector: Selector, position: int) -> None:
        """The next portion for clients with equal filters at one place."""
        with self.lock:
            window = self.history.window(position, PORTION)
        max_events, max_bytes, wants = self.settings.batch_events, self.settings.batch_bytes, selector.wants
        batch: list[bytes] = []
        size = given = end = 0
        for end, entry in enumerate(window, 1):
            if not (selector.all or wants(entry.place)):
                continue
            batch.append(entry.data)
            size += len(entry.data)
            if len(batch) >= max_events or size >= max_bytes:
                self._send(members, batch, position + end)
                given += size
                batch, size = [], 0
                if given >= PORTION_BYTES:
                    break
        if batch:
            self._send(members, batch, position + end)
        for subscription in members:
            subscription.position = position + end
        self._told(members, window[:end], silent=not (given or batch))

    def _give_merged(self, subscription: Subscription) -> None:
        """A larger portion for one that fell behind, its chunks merged, as one whole."""
        with self.lock:
            window = self.history.window(subscription.position, 2 * PORTION)
        wanted = [entry.data for entry in window if subscription.selector.wants(entry.place)]
        events, _, _ = compact([decode_unchecked(data) for data in wanted])
        subscription.position += len(window)
        if events:
            data = [encoded(event) for event in events if isinstance(event, StreamEvent)]
            self._send([subscription], data, subscription.position)
        self._told([subscription], window, silent=not events)

    def _told(self, members: Sequence[Subscription], window: list[Entry], *, silent: bool = False) -> None:
        """Note the cursor that the members know. One that a filter kept silent for long is told it alone."""
        if not window:
            return
        now = window[-1].before + len(window[-1].data)
        overdue = [s for s in members if silent and now - s.told > self.history.limit // 8]
        if overdue:
            self._send(overdue, [], overdue[0].position)
        for subscription in overdue if silent else members:
            subscription.told = now

    def _send(self, members: Sequence[Subscription], events: list[bytes], position: int) -> None:
        """One batch to each; those with equal ids share its bytes."""
        transmit = self._transmit
        if transmit is None:
            return
        groups: dict[tuple[bool, str, int | None], list[Outlet]] = {}
        for subscription in members:
            outlet = subscription.outlet
            key = (outlet.plain, "" if outlet.plain else subscription.id, subscription.max_message)
            groups.setdefault(key, []).append(outlet)
        framed = any(not plain for plain, _, _ in groups)
        joined = b",".join(events) if framed else b""
        cursor = self.history.cursor(position)
        for (plain, name, limit), outlets in groups.items():
            if plain:
                transmit(outlets, *(events if limit is None else [fitted(e, limit) for e in events]))
            elif limit is None or len(joined) + FRAME_BYTES <= limit:
                transmit(outlets, batch_frame(name, cursor, joined))
            else:
                parts = in_parts(events, limit - FRAME_BYTES)
                for i, part in enumerate(parts, 1):
                    transmit(outlets, batch_frame(name, cursor, b",".join(part), i, len(parts)))
        self.sent_batches += 1
