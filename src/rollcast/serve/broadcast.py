"""Distributes one observer's events to many clients, without sockets: what each subscription gets, and when.

    manager ──on_batch──▶ history ──flush──▶ batches ──▶ clients

A client is a position in the history. A client that cannot take more stays at its position, which costs no memory; when it
can again, the chunks that it missed are merged. Clients with equal filters at one position share the bytes of a batch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from rollcast.aio import call_in, running_loop
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.lanes import Lane
from rollcast.records.secrets import masker_of
from rollcast.serve.anew import gaps_between
from rollcast.serve.clients import Clients
from rollcast.serve.feeds import Endings, RecordFeeds
from rollcast.serve.history import WITHIN, History, Selector, Selectors
from rollcast.serve.joins import Joins
from rollcast.serve.ledger import RunLedger
from rollcast.serve.losses import Losses, Return, losses, way_back
from rollcast.serve.on_disk import RecordFolder, RecordOnDisk
from rollcast.serve.opening import Left, Opening
from rollcast.serve.protocol import Subscribed, encode_frame
from rollcast.serve.settings import ServerSettings
from rollcast.serve.subscription import Feed, Outlet, Replay, Sender, Subscription, Transmit
from rollcast.serve.tail import PORTION, LiveTail
from rollcast.serve.upstream import Upstream
from rollcast.serve.worker import Shortener, Worker
from rollcast.stream.observer import EncodingObserver, StreamObserver
from rollcast.stream.waiting import Encodable, EncodableChunk, Relayed

__all__ = ["Broadcaster", "Outlet", "ServerObserver", "Subscription"]

logger = logging.getLogger("rollcast.serve")

T = StreamEventType
CHUNK, GAP = T.LLM_GENERATION_CHUNK, T.GAP  # looked up for every token
TELLING = frozenset((CHUNK, GAP, T.RUN_START, T.RUN_END))  # what `_look_at` looks at
CHANGED_GAP = "the filter was changed before all snapshots had been sent, and the server began anew"


class ServerObserver(EncodingObserver):
    """The one observer of a server: `server.get_observer()`.

    Attributes:
        companions: observers that are added to a manager together with this one. After a change call `manager.refresh`.
    """

    companions: tuple[StreamObserver, ...] = ()

    def __init__(self, broadcaster: Broadcaster) -> None:
        self.filter = broadcaster.upstream.wanted()
        self._broadcaster = broadcaster

    @property
    def name(self) -> str:
        """The observer's name in warnings, errors and statistics."""
        return "WebSocketStreamingServer"

    @property
    def upstream(self) -> Upstream:
        """What the server's clients want."""
        return self._broadcaster.upstream

    def leaves(self) -> dict[StreamObserver, EventFilter]:
        """This observer and its companions, each with its filter."""
        return {self: self.filter} | {each: each.filter for each in self.companions}

    async def on_encodable(self, events: Sequence[Encodable]) -> None:
        self._broadcaster.take(events)

    async def on_passage(self, events: Sequence[Relayed], lines: Sequence[bytes | None]) -> None:
        self._broadcaster.take(events, lines)


class Broadcaster:
    """Holds the history and the subscriptions, and sends events from one to the other.

    `take` may be called from any thread, everything else only in the event loop that `attach` names.
    """

    def __init__(self, settings: ServerSettings, on_disk: RecordOnDisk | RecordFolder | None = None) -> None:
        self.settings = settings
        self.keeps = settings.history_bytes > 0
        self.masker = masker_of(settings.masker)
        self.history = History(max(settings.history_bytes, settings.behind_bytes), self.masker)
        self.ledger = RunLedger()
        self.lock = threading.RLock()
        self.clients = Clients(self.history, self.lock, settings)
        self.subscriptions = self.clients.subscriptions
        self.upstream = Upstream(self.lock, self.subscriptions, keeps=self.keeps)
        self.observer = self.upstream.observer = ServerObserver(self)
        self.sender = Sender()
        self._selectors = Selectors()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer = _Timer(self.flush, settings.batch_s)
        self._waiting = False  # a client has no room
        self._flushed = (0, 0)  # head and total of the last flush
        self._worker = Worker()
        self._shortener = Shortener(
            self._worker, partial(self._timer.set, at_once=True), self.clients.not_shortened
        )
        self._tail = LiveTail(self.history, self.lock, settings, self.sender, self._shortener)
        self._joins = Joins(
            self.history, self.ledger, self.upstream.gone_locked, self.lock, self.subscriptions, self.sender, self._worker, self.observer,
            close=self.clients.too_slow, failed=self.clients.failed, done=self._joined, wait=self._wait_for_room,
        )  # fmt: skip
        self.feeds = RecordFeeds(
            self.observer, self.history, self.ledger, self.lock, settings, self.sender,
            Endings(self._answer, self._begin_without_record, self._go_live, self._begin_after_record), on_disk,
        )  # fmt: skip

    # -- the event loop ----------------------------------------------------------------------------------------------

    def attach(self, loop: asyncio.AbstractEventLoop, transmit: Transmit) -> None:
        """Serve from this loop."""
        with self.lock:
            self.sender.transmit = transmit
            self._loop = self.observer.loop = self._joins.loop = self._timer.loop = loop
            self._worker.attach(loop)
        if self.observer.manager is not None:
            self.observer.manager.refresh(self.observer)

    def detach(self) -> None:
        """Stop serving; events are still kept."""
        with self.lock:
            self._loop = self.observer.loop = self.sender.transmit = None
            for key in list(self.subscriptions):
                self.clients.forget(key)
            self._joins.detach()
            self._timer.cancel()
            self._timer.loop = None
            self.feeds.detach()
            self._worker.detach()
            self._shortener.clear()
        self.upstream.narrow()

    # -- events come in ------------------------------------------------------------------------------------------------

    def take(self, events: Sequence[Relayed], lines: Sequence[bytes | None] | None = None) -> None:
        """Keep the events and make sure that they are sent; `lines`: see `History.extend`."""
        self.feeds.find()
        made = [event for event in events if isinstance(event, StreamEvent)]
        first_chunk = 0 in [event.data.offset for event in events if isinstance(event, EncodableChunk)]
        with self.lock:
            position, entries = self.history.head, self.history.extend(events, lines)
            for event in made:
                if event.event_type in TELLING:
                    first_chunk = self._look_at(event) or first_chunk
            self.ledger.note(made, entries, position)
            self.feeds.came()
            loop = self._loop
            head, total = self._flushed
            full = (
                self.history.head - head >= self.settings.batch_events
                or self.history.total - total >= self.settings.batch_bytes
            )
        if loop is None:
            return
        if loop is running_loop():
            self._timer.set(at_once=first_chunk or full)
            return
        if not call_in(loop, partial(self._timer.set, at_once=first_chunk or full)):  # the server has stopped
            logger.debug("the server's event loop is closed; the events are kept")

    def _look_at(self, event: StreamEvent) -> bool:
        """Note what the event says of its run. Returns whether it is the first chunk of a generation."""
        kind = event.event_type
        if kind is CHUNK:
            return bool(event.data.get("offset") == 0)
        # A gap with a status stands for the end of a relayed run.
        if kind is not GAP or "run_status" in event.data:
            self.upstream.runs.note(event)
        return False

    # -- subscriptions -------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        outlet: Outlet,
        id: str,
        filter: EventFilter,
        since: str = "live",
        *,
        max_message: int | None = None,
        parts: bool = False,
        replay: Replay | None = None,
        snapshots: bool = False,
        of_run: str | None = None,
    ) -> tuple[bool, str | None] | None:
        """Send the outlet what the filter wants, starting at `live`, at `start` or at a cursor.

        With a `replay` the record is replayed, which there must be. In the middle of a record it begins
        with `snapshots` if that is said. Of a folder of records, `of_run` says which.

        No message has more than `max_message` bytes. If the client understands `parts`, its first snapshots are one batch in
        several parts; otherwise they are several batches.

        Returns:
            Whether everything since then is still there, and the cursor to come back to, or None if snapshots come first. None
            if what is asked for is only in a record: the client is answered when the record has been found.
        """
        self.feeds.find()
        with self.upstream.locks():
            selector = self._selectors.of(filter, self.subscriptions.values())
            subscription = Subscription(outlet, id, selector, self.history.head, max_message, parts=parts)
            subscription.since = since
            subscription.snapshots, subscription.of_run = snapshots, of_run
            self.subscriptions[outlet, id] = subscription
            self.upstream.narrow()
            if self.keeps:
                back = way_back(self.history, self.ledger, selector, since)
            else:
                back = Return(since=self.history.named(since) or 0)
            wants_record = replay is not None or (back.position is None and since != "live")
            wants_record = wants_record or self.feeds.is_on_disk
            if wants_record and self.feeds.begin(subscription, since, replay):
                return None
            return self._begin(subscription, back)

    def _begin(self, subscription: Subscription, back: Return) -> tuple[bool, str | None]:
        """Begin with the history or with snapshots; the same as `subscribe` returns. Both locks are held."""
        position, selector = back.position, subscription.selector
        here = subscription.position = self.history.head if position is None else position
        subscription.live_from = subscription.owed_until = self.history.head
        subscription.told = self.history.before(here)
        if position is None:
            # Without parts, it has used what it got of earlier snapshots.
            within = subscription.since.endswith(WITHIN) and not subscription.parts
            self._joins.begin(subscription, None, least=self.history.head if within else back.since)
            if self.keeps and subscription.since != "live":
                as_of = subscription.join.opening.as_of if subscription.join else {}
                to_come = self.history.first_of_runs(subscription.position)
                subscription.losses = losses(self.ledger, selector, back, as_of, to_come)
                if subscription.join is not None:
                    subscription.join.told = True
        else:
            self._timer.set(at_once=True)
        cursor = None if subscription.join else self.history.cursor(here)
        return position is not None or subscription.since == "live", cursor

    # -- subscriptions that are given a record -------------------------------------------------------------------------

    def _answer(self, subscription: Subscription, cursor: str | None, *, recovered: bool = True) -> None:
        if self.sender.transmit is not None:
            answer = Subscribed(subscription.id, recovered, cursor, *(subscription.losses or ()))
            self.sender.transmit([subscription.outlet], encode_frame(answer))

    def _begin_without_record(self, subscription: Subscription) -> None:
        """Answer a client whose place is in no record."""
        with self.upstream.locks():
            back = way_back(self.history, self.ledger, subscription.selector, subscription.since)
            recovered, cursor = self._begin(subscription, back)
        self._answer(subscription, cursor, recovered=recovered)

    def _go_live(self, subscription: Subscription, position: int) -> bool:
        """Give the history from the position on to a client that has been given the record up to there."""
        with self.lock:
            if position < self.history.tail:
                return False
            subscription.feed = None
            subscription.position = position
            subscription.live_from = subscription.owed_until = self.history.head
            subscription.told = self.history.before(position)
        self._joined(subscription)
        return True

    def _begin_after_record(
        self, subscription: Subscription, as_of: Mapping[Lane, int], position: int, reason: str
    ) -> None:
        """Begin with snapshots, after a `gap` for each run of which the record did not give what came meanwhile.

        Args:
            subscription: that begins.
            as_of: how far the runs were that it was given.
            position: in the history, before what it was not given.
            reason: why it is not given more.
        """
        with self.upstream.locks():
            behind = {
                lane: seq
                for lane, seq in as_of.items()
                if (run := self.ledger.run(lane)) and run.last_seq > seq
            }
            left = Opening(subscription.selector, None, position, self.history.total)
            left.renew((), behind)
            subscription.position = subscription.live_from = subscription.owed_until = self.history.head
            subscription.told = self.history.total
            self._joins.begin(subscription, None, left=Left(left, 1, reason), least=self.history.head)
            if subscription.join is None:  # the manager is closed, so nothing is open
                now = Opening(subscription.selector, None, self.history.head, self.history.total)
                gaps = gaps_between(self.ledger, subscription.selector, left, now, reason)
                self.sender.send([subscription], gaps, self.history.cursor(self.history.head))

    def _change_feed(
        self, subscription: Subscription, feed: Feed, filter: EventFilter
    ) -> tuple[bool, str | None] | None:
        """Change the filter of a subscription that is given a record, once it has caught up.

        A replay, and a record on the disk, which does not lead to the live tail, go on with the new filter at once.
        """
        if subscription.pace is None and not self.feeds.is_on_disk:
            subscription.next_filter = filter
            return True, None
        subscription.selector = self._selectors.of(filter, self.subscriptions.values())
        self.feeds.restart(subscription, feed.place, snapshots=subscription.snapshots)
        return None

    def losses(self, outlet: Outlet, id: str) -> Losses | None:
        """What the client missed, if it asked for a place that is gone and this is known."""
        subscription = self.clients.subscription(outlet, id)
        return None if subscription is None else subscription.losses

    def update(
        self, outlet: Outlet, id: str, filter: EventFilter, of_run: str | None = None
    ) -> tuple[bool, str | None] | None:
        """Change the filter of a subscription, which there must be; chains that come into view start with snapshots.

        Returns the same as `subscribe`.
        """
        with self.upstream.locks():
            subscription = self.subscriptions[outlet, id]
            if self.feeds.folder is not None and of_run not in (
                None,
                subscription.of_run,
            ):  # of another record
                subscription.of_run = of_run
                subscription.selector = self._selectors.of(filter, self.subscriptions.values())
                self.feeds.begin(subscription, "live")
                return None
            if subscription.feed is not None:
                return self._change_feed(subscription, subscription.feed, filter)
            join = subscription.join
            if join is None or not join.begun:
                late = join is None and self.history.head - subscription.position > PORTION
            else:
                late = join.opening.before is not None
            if late:
                subscription.next_filter = filter  # once it has caught up
                self.upstream.narrow()
            else:
                self._change(subscription, filter)
            return True, None if subscription.join else self.history.cursor(subscription.position)

    def _change(self, subscription: Subscription, filter: EventFilter) -> None:
        """Change the filter now. Both locks are held."""
        join = subscription.join
        before: Selector | None = subscription.selector
        subscription.selector = self._selectors.of(filter, self.subscriptions.values())
        subscription.next_filter = None
        self.upstream.narrow()
        if join is not None and join.begun:
            self._joins.begin_anew(subscription, CHANGED_GAP)
            return
        if join is not None:  # nothing of it was sent
            before, subscription.join = join.opening.before, None
            subscription.position = join.opening.start
        self._joins.begin(subscription, before, least=subscription.position)

    def unsubscribe(self, outlet: Outlet, id: str | None = None) -> None:
        """End one of the outlet's subscriptions, or all if None."""
        with self.lock:
            keys = [(outlet, id)] if id is not None else self.clients.keys_of(outlet)
            for key in keys:
                self.clients.forget(key)
        self.upstream.narrow()

    # -- events go out -------------------------------------------------------------------------------------------------

    def room(self) -> None:
        """Called in the event loop when a connection has room again."""
        if self._waiting:
            self._timer.set(at_once=True)

    def _wait_for_room(self) -> None:
        self._waiting = True
        self._timer.set(at_once=False)

    def _joined(self, subscription: Subscription) -> None:
        """Called when a subscription has been given its snapshots."""
        if subscription.position < self.history.head:
            self._timer.set(at_once=True)
        else:
            self._change_now(subscription)

    def flush(self) -> None:
        """Send every subscription its next portion, as far as its client can take more.

        1. Group the subscriptions whose clients can take more by position and filter.
        2. Send each group the same bytes.
        3. Send merged events to each client that fell behind and can take more again.
        4. Run again at once if a client has more to get, or after `batch_s` if one waits for room.
        """
        self._timer.cancel()
        groups: dict[tuple[Selector, int, int | None], list[Subscription]] = {}
        selector: Selector | None = None
        position, room, members = -1, None, list[Subscription]()
        late: list[Subscription] = []
        joining: list[Subscription] = []
        changing: list[Subscription] = []
        waiting = more = False
        with self.lock:
            history = self.history
            head, self._flushed = history.head, (history.head, history.total)
            limit = self.settings.client_buffer
            for subscription in list(self.subscriptions.values()):
                if subscription.join is not None:
                    joining.append(subscription)
                    continue
                if subscription.position == head or subscription.feed is not None:
                    continue
                fits = subscription.position >= history.tail and subscription.outlet.unsent() <= limit
                if not (fits and not subscription.behind) and not self.clients.can_take(subscription):
                    waiting = True
                    continue
                if subscription.next_filter is not None:
                    changing.append(subscription)
                if subscription.behind and subscription.position >= subscription.live_from:
                    late.append(subscription)
                    continue
                if (
                    subscription.selector is not selector
                    or subscription.position != position
                    or subscription.room != room
                ):
                    selector, position, room = subscription.selector, subscription.position, subscription.room
                    members = groups.setdefault((selector, position, room), [])
                members.append(subscription)  # most are at the same position as the one before
        for (selector, position, room), members in groups.items():
            more |= self._tail.give(members, selector, position, room, head)
        for subscription in late:
            more |= self._tail.give_merged(subscription, head)
        for subscription in changing:
            if subscription.position >= head:
                self._change_now(subscription)
        self._waiting = self._joins.feed(joining) or waiting
        if not self.keeps:
            with self.lock:
                self.history.forget_before(
                    min((s.position for s in self.subscriptions.values()), default=head)
                )
        if more or self._waiting:
            self._timer.set(at_once=more)

    def _change_now(self, subscription: Subscription) -> None:
        """Change the filter of a subscription that has caught up, if it waits for that."""
        if subscription.next_filter is not None:
            with self.upstream.locks():
                self._change(subscription, subscription.next_filter)


class _Timer:
    """Calls back in the loop's next turn or after some time, whichever was set and comes first."""

    def __init__(self, callback: Callable[[], object], after_s: float) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._callback = callback
        self._after_s = after_s
        self._handle: asyncio.Handle | None = None
        self._at_once = False

    def set(self, *, at_once: bool) -> None:
        """Call back in the loop's next turn if `at_once`, otherwise after the time."""
        if self.loop is None or self._at_once:
            return
        if at_once:
            self.cancel()
            self._at_once = True
            self._handle = self.loop.call_soon(self._callback)
        elif self._handle is None:
            self._handle = self.loop.call_later(self._after_s, self._callback)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._at_once = None, False
