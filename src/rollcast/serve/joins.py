"""Begins subscriptions: sends snapshots of the open chains in parts, then the live tail, without a gap or a repetition.

    fanout.cut ──▶ Opening ──a part at a time, made by the worker──▶ clients that have room ──▶ the live tail

Subscriptions with equal filters that begin at about the same time share an opening, and those at the same part share its
bytes. If a client is so slow that the history has dropped what came meanwhile, it begins anew with a `gap`; if that does not
help, it is closed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

from rollcast.aio import call_in
from rollcast.serve.anew import gaps_between, in_messages
from rollcast.serve.history import History, Selector
from rollcast.serve.ledger import RunLedger
from rollcast.serve.opening import Join, Left, Opening, Part
from rollcast.serve.subscription import Outlet, Sender, Subscription
from rollcast.serve.worker import Worker
from rollcast.stream import StreamObserver

__all__ = ["TOO_SLOW_TO_BEGIN", "Joins"]

logger = logging.getLogger("rollcast.serve")

LOW_WATER = 64 << 10  # a client with more unsent bytes is given no further part
SHARED_AGE = 1 << 20  # others may share an opening until this many bytes came after it
MAX_OPENINGS = 4  # at a time; with more, older ones are shared too
MAX_RESTARTS = 2
TOO_SLOW_TO_BEGIN = (
    "this client reads too slowly for the snapshots of all that is open; narrow its filter, or reconnect"
)
TOO_SLOW_GAP = "snapshots were read too slowly: the server no longer had what came meanwhile, and began anew"


class Place(NamedTuple):
    """A part of an opening, for clients with this much room in a message."""

    opening: Opening
    first: int  # the index of its first event
    room: int | None


class Joins:
    """The subscriptions that are being given snapshots, and how far each is.

    It is used in the event loop that `Broadcaster.attach` names. `begin` needs the manager's lock and the broadcaster's.

    Args:
        history: the server's history.
        ledger: how far runs got, if that is remembered.
        gone: the runs that have ended unheard, of which some events may be on their way still.
        lock: guards the history and the subscriptions.
        subscriptions: all subscriptions.
        sender: sends parts.
        worker: makes parts.
        observer: the server's observer.
        close: ends a client that is too slow, with a message.
        failed: ends the clients of these subscriptions, whose snapshots could not be encoded.
        done: called with each subscription that has been given its snapshots.
        wait: called if a client has no room now.
    """

    def __init__(
        self,
        history: History,
        ledger: RunLedger,
        gone: Callable[[], Collection[str]],
        lock: threading.RLock,
        subscriptions: dict[tuple[Outlet, str], Subscription],
        sender: Sender,
        worker: Worker,
        observer: StreamObserver,
        *,
        close: Callable[[Subscription, str], object],
        failed: Callable[[list[Subscription]], object],
        done: Callable[[Subscription], object],
        wait: Callable[[], object],
    ) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._history = history
        self._ledger = ledger
        self._gone = gone
        self._lock = lock
        self._subscriptions = subscriptions
        self._sender = sender
        self._worker = worker
        self._observer = observer
        self._close = close
        self._failed = failed
        self._done = done
        self._wait = wait
        self._making: dict[Place, list[tuple[Subscription, Join]]] = {}  # what waits for the parts being made
        self._busy: set[Outlet] = set()  # outlets that a part is being made for

    def detach(self) -> None:
        """Stop giving snapshots."""
        self.loop = None
        self._making.clear()
        self._busy.clear()

    # -- a moment is chosen ----------------------------------------------------------------------------------------------

    def begin(
        self,
        subscription: Subscription,
        before: Selector | None,
        restarts: int = 0,
        left: Left | None = None,
        least: int = 0,
    ) -> None:
        """Choose the moment, and give the subscription its snapshots when the history has everything that was emitted before.

        Args:
            subscription: that begins.
            before: what it wanted until now; None: nothing.
            restarts: as in `Join`.
            left: as in `Join`.
            least: the place in the history that the moment must not be before: the client has what came until then.
        """
        if self._observer.manager is None or self.loop is None:
            return
        opening = self._shared(subscription.selector, least) if before is None else None
        if opening is None:
            history = self._history
            opening = Opening(
                subscription.selector, before, subscription.position, history.total, history.masker
            )
            subscription.join = Join(opening, restarts, left)
            self._cut(opening)
            return
        subscription.join = Join(opening, restarts, left)
        subscription.position = opening.start
        if opening.position is not None:
            self.loop.call_soon(self._feed_or_wait, [subscription])  # after the answer to `subscribe`

    def _shared(self, selector: Selector, least: int) -> Opening | None:
        """One that others begin with, if it is young; with many openings about, an older one."""
        history = self._history
        alive = {s.join.opening for s in self._subscriptions.values() if s.join is not None}
        age = SHARED_AGE if len(alive) < MAX_OPENINGS else history.limit // 2
        fits = [
            opening
            for opening in alive
            if opening.before is None
            and opening.selector is selector
            and opening.start >= max(history.tail, least)
            and history.total - opening.total <= age
        ]
        return max(fits, key=lambda opening: opening.total, default=None)

    def _cut(self, opening: Opening) -> None:
        """Take the opening's snapshots. Both locks are held."""
        manager, loop = self._observer.manager, self.loop
        if manager is None or loop is None:
            return
        seen = None if opening.before is None else opening.before.filter
        cut = manager.fanout.cut(
            opening.selector.filter, besides=seen, reader=manager.delivery_of(self._observer)
        )
        opening.renew(cut.snapshots, cut.as_of)
        if cut.arrived is None:
            loop.call_soon(self._arrive, opening)  # after the answer to `subscribe`
        else:
            cut.arrived.add_done_callback(partial(self._arrived, loop, opening))

    def _arrived(self, loop: asyncio.AbstractEventLoop, opening: Opening, _: Future[None]) -> None:
        if not call_in(loop, self._arrive, opening):  # the server has stopped
            logger.debug("the server's event loop is closed; a client's snapshots are not sent")

    def _arrive(self, opening: Opening) -> None:
        """Called when the history has everything that was emitted before the snapshots."""
        manager = self._observer.manager
        with manager.lock if manager is not None else nullcontext(), self._lock:
            members = [s for s in self._subscriptions.values() if s.join and s.join.opening is opening]
            if not members or opening.position is not None:
                return
            history = self._history
            lost = opening.start < history.tail
            if not lost:
                opening.arrive(history.window(opening.start, history.head), self._gone())
        if lost:
            for subscription in members:
                self._close(subscription, TOO_SLOW_TO_BEGIN)
        else:
            self._feed_or_wait(members)

    # -- parts go out --------------------------------------------------------------------------------------------------

    def feed(self, members: Iterable[Subscription]) -> bool:
        """Give each subscription with room its next part, or start making it. Returns whether one has no room."""
        waiting = False
        ready: dict[Place, list[tuple[Subscription, Join]]] = {}
        for subscription in members:
            join = subscription.join
            if join is None or join.making or join.opening.position is None:
                continue
            if join.opening.position < self._history.tail:
                self._restart(subscription, join)
                continue
            if join.left is not None:
                self._tell_gap(subscription, join, join.left)
            if subscription.outlet in self._busy or subscription.outlet.unsent() > LOW_WATER:
                waiting = True
            else:
                place = Place(join.opening, join.index, subscription.room)
                ready.setdefault(place, []).append((subscription, join))
                join.making = True
                self._busy.add(subscription.outlet)
        for place, group in ready.items():
            part = self._part(place, group)
            if part is not None:
                self._give(place, group, part)
        return waiting

    def _feed_or_wait(self, members: Iterable[Subscription]) -> None:
        if self.feed(members):
            self._wait()

    def _part(self, place: Place, waiting: list[tuple[Subscription, Join]]) -> Part | None:
        """The part, if it exists or is quickly made; otherwise None, and the worker makes it for those that wait."""
        opening, first, room = place
        part = opening.kept((first, room))
        if part is None and opening.is_small(first, room):
            try:
                return opening.part(first, room)
            except Exception:  # whatever it is, those that wait are told, and the log has it
                logger.exception("the server could not encode events for its clients")
                self._fail(waiting)
                return None
        if part is None:
            if place not in self._making:
                self._making[place] = []
                self._worker.do(
                    partial(opening.part, first, room),
                    partial(self._made, place),
                    partial(self._not_made, place),
                )
            self._making[place] += waiting
        return part

    def _made(self, place: Place, part: Part) -> None:
        """Called when the worker has made a part."""
        place.opening.keep((place.first, place.room), part)
        waiting = self._making.pop(place, [])
        if waiting:
            self._give(place, waiting, part)

    def _not_made(self, place: Place) -> None:
        """Called when the worker has failed to make a part."""
        self._fail(self._making.pop(place, []))

    def _fail(self, waiting: list[tuple[Subscription, Join]]) -> None:
        """End those that wait for a part that could not be made, since they cannot go on."""
        self._busy.difference_update(s.outlet for s, _ in waiting)
        self._failed([s for s, join in waiting if s.join is join and self._is_current(s)])

    def _give(self, place: Place, waiting: list[tuple[Subscription, Join]], part: Part) -> None:
        """Send a part to the subscriptions that still want it."""
        opening = place.opening
        self._busy.difference_update(s.outlet for s, _ in waiting)
        members = [s for s, join in waiting if s.join is join and self._is_current(s)]
        position, history = opening.position, self._history
        if not members or position is None:
            return
        last = part.next >= len(opening)
        if not last:
            self._part(Place(opening, part.next, place.room), [])  # is made before they ask for it
        cursor = history.cursor(position) if last else history.cursor_within(opening.start)
        for knows in (True, False):
            self._send([s for s in members if s.parts is knows], part, cursor, numbered=knows)
        if last:
            for subscription in members:
                self._finish(subscription, position)
        elif self.loop is not None:
            self.loop.call_soon(self._feed_or_wait, members)

    def _is_current(self, subscription: Subscription) -> bool:
        return self._subscriptions.get((subscription.outlet, subscription.id)) is subscription

    def _send(self, members: list[Subscription], part: Part, cursor: str, *, numbered: bool) -> None:
        for subscription in members:
            join = subscription.join
            assert join is not None
            number, parts = join.sent + 1, join.parts(part.next)
            join.index, join.sent, join.making = part.next, number, False
        if members:  # all are at the same part, so the numbers are the same
            self._sender.send(members, part.events, cursor, *((number, parts) if numbered else ()))

    def _finish(self, subscription: Subscription, position: int) -> None:
        with self._lock:
            subscription.join = None
            subscription.position = subscription.live_from = position
            subscription.owed_until = self._history.head
            subscription.told = self._history.before(max(position, self._history.tail))
        self._done(subscription)

    def _restart(self, subscription: Subscription, join: Join) -> None:
        """Begin with new snapshots and a `gap`, since the history no longer has what came after the old ones."""
        if join.restarts >= MAX_RESTARTS or join.opening.before is not None:
            self._close(subscription, TOO_SLOW_TO_BEGIN)
            return
        manager = self._observer.manager
        with manager.lock if manager is not None else nullcontext(), self._lock:
            if self._is_current(subscription):
                self.begin_anew(subscription, TOO_SLOW_GAP, join.restarts + 1)

    def begin_anew(self, subscription: Subscription, reason: str, restarts: int = 0) -> None:
        """Abandon the current snapshots, and begin with new ones after a `gap`. Both locks are held."""
        join = subscription.join
        subscription.position = self._history.head
        left, least = (None, 0) if join is None else (join.leave(reason), join.opening.start)
        self.begin(subscription, None, restarts, left, least)

    def _tell_gap(self, subscription: Subscription, join: Join, left: Left) -> None:
        """Send the gap, which also completes the batch of the opening that was left."""
        join.left, join.told = None, True
        with self._lock:
            gaps = gaps_between(self._ledger, subscription.selector, left.opening, join.opening, left.reason)
        cursor = self._history.cursor_within(join.opening.start)
        messages = in_messages(gaps, subscription.room)
        last = left.part + len(messages) - 1
        for part, events in enumerate(messages, left.part):
            self._sender.send([subscription], events, cursor, *((part, last) if subscription.parts else ()))
