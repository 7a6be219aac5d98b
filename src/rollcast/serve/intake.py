"""The queue of a reader that takes its events a portion at a time, and asks chains what they did in between.

    a run ──starts and ends──▶ a queue ──a moment later, or when somebody asks──▶ `take`
      └────notes that chains did something──▶ `ask` ──what they add up to──▶ `take_answer`

An observer with a pump is woken for every few events, which costs more than what the table does with them. Here they gather for a
moment, since nobody sees a row sooner than a quarter of a second after it has changed.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from rollcast.aio import call_in
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.bounded import whole
from rollcast.stream.asked import AskedChains, ChainSoFar
from rollcast.stream.delivery import Delivery, ObserverStatistics
from rollcast.stream.fanout import Fanout
from rollcast.stream.observer import PulledObserver

__all__ = ["Intake"]

T = StreamEventType

EVENTS_AT_ONCE = 256  # events that are taken before others get their turn
GATHER_S = 0.1  # how long events gather


class Intake(PulledObserver):
    """An observer that asks. Set `loop` before it is added to a manager; use it in that loop.

    Attributes:
        closed: whether it no longer gets events: it was taken off its manager. What it got before is still taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self._fanout: Fanout | None = None
        self._delivery: Delivery | None = None
        self._asked: AskedChains | None = None
        self._held: list[StreamEvent] = []  # taken from the queue, and not yet looked at
        self._due = False  # the loop is about to take what waits

    @abstractmethod
    def take(self, event: StreamEvent) -> None:
        """Take one event."""

    @abstractmethod
    def take_answer(self, key: tuple[str, str], so_far: ChainSoFar) -> bool:
        """Take what a chain, named by its run's id and its own, adds up to. False if its start has not come."""

    # -- the manager's side: the lock is held --------------------------------------------------------------------------

    def attach_locked(self, fanout: Fanout, name: str, filter: EventFilter) -> None:
        """See `PulledObserver.attach_locked`. `loop` has to be set."""
        self.lock = fanout.lock
        delivery = fanout.delivery(name, filter)
        delivery.pulled, delivery.tokens = True, self.chunk_interest
        delivery.limit = max(delivery.limit, self.queue_limit_bytes)
        delivery.asked = self._asked = AskedChains(fanout.lock)
        delivery.on_wake = self._wake_locked
        self._fanout, self._delivery = fanout, delivery
        fanout.add(delivery)

    def set_filter_locked(self, filter: EventFilter) -> None:
        """See `PulledObserver.set_filter_locked`."""
        assert self._fanout is not None
        assert self._delivery is not None
        self._fanout.set_filter(self._delivery, filter)

    def detach_locked(self) -> None:
        """See `PulledObserver.detach_locked`. Another instance is needed when the observer is added again."""
        assert self._fanout is not None
        assert self._delivery is not None
        self.closed = True
        self._fanout.remove(self._delivery)

    def statistics_locked(self) -> ObserverStatistics:
        """See `PulledObserver.statistics_locked`."""
        assert self._delivery is not None
        return self._delivery.statistics()

    def _wake_locked(self) -> None:
        """Something waits: take it in a moment, together with what comes until then."""
        loop = self.loop
        if not self._due and loop is not None:
            self._due = call_in(loop, loop.call_later, GATHER_S, self._take_later)

    # -- what came -----------------------------------------------------------------------------------------------------

    async def on_event(self, event: StreamEvent) -> None:
        """Take an event that somebody gives to this observer."""
        self.take(event)

    async def on_batch(self, events: list[StreamEvent]) -> None:
        """Take events that somebody gives to this observer."""
        for event in events:
            self.take(event)

    async def catch_up(self) -> None:
        """Take everything that was emitted before, in portions."""
        for _ in range(2):  # what was taken from the queue, and then what waits there
            while self._take_some():  # noqa: ASYNC110  (it waits for nothing, and lets others have their turn)
                await asyncio.sleep(0)

    def _take_later(self) -> None:
        self._due = False
        if self._take_some() and self.loop is not None:
            self._due = True
            self.loop.call_soon(self._take_later)

    def _take_some(self) -> bool:
        """Take some of the events that wait. Returns whether more of them were taken from the queue."""
        delivery = self._delivery
        if delivery is None:
            return False
        if not self._held:
            with delivery.lock:
                self._held = [item for item in delivery.take_locked() if isinstance(item, StreamEvent)]
                delivery.leave_locked()
        portion = self._held[:EVENTS_AT_ONCE]
        del self._held[:EVENTS_AT_ONCE]
        delivery.delivered += len(portion)
        for event in portion:
            self.take(event)
            if event.event_type is T.RUN_END or event.event_type is T.GAP:
                self._forget_ends(event)
        return bool(self._held)

    # -- what is asked -------------------------------------------------------------------------------------------------

    @property
    def to_ask(self) -> int:
        """How many chains have done something that was not asked: see `ask`."""
        return 0 if self._asked is None else len(self._asked)

    def ask(self, most: int | None = None) -> None:
        """Ask open chains that have done something since they were asked last what they add up to: all, or at most so many."""
        asked = self._asked
        for chain in asked.take(most) if asked is not None else ():
            assert asked is not None
            so_far = asked.ask(chain)
            if so_far is not None and not self.take_answer(chain.key, so_far):  # None: its end is on its way
                asked.ask_again(chain)

    def asked_at_the_end(self, end: StreamEvent) -> ChainSoFar | None:
        """What the chain added up to whose `chain_end` this is; None if each of its events came."""
        return None if self._asked is None else self._asked.at_the_end(end.run_id, end.chain_id)

    def _forget_ends(self, event: StreamEvent) -> None:
        """After a `run_end` no chain of it ends, and no end comes for which a `gap` stands; of other sources no chain was asked."""
        assert self._asked is not None
        assert self._fanout is not None
        if event.source != self._fanout.source:
            return
        until = None if event.event_type is T.RUN_END else whole(event.data.get("to_seq"))
        self._asked.forget_ends(event.run_id, until)
