"""Encoded events in the order in which they came, as many as a number of bytes holds, and places among them.

A position counts every event since the history began, held or not, so a cursor covers what a filter left out too.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import NamedTuple, Protocol

import msgspec

from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.codec import encode_described

__all__ = ["Entry", "History", "Place", "Selector", "Selectors"]

T = StreamEventType
ENTRY_BYTES = 160  # what an entry weighs beside its JSON
MAX_PLACES = 65536
MAX_VERDICTS = 4096  # of one filter; clients may bring many filters
EVERYTHING = EventFilter()


class Place(NamedTuple):
    """What filters look at."""

    event_type: StreamEventType
    chain_id: str
    group_id: str | None
    run_id: str


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One event.

    Attributes:
        data: its JSON.
        place: what filters look at.
        seq, from_seq: its own; of the first event that was merged into it.
        before: bytes that came before it, since the history began.
    """

    data: bytes
    place: Place
    seq: int
    from_seq: int
    before: int


class Selector:
    """A filter with a memory: whether events of a place pass."""

    __slots__ = ("_verdicts", "all", "filter")

    def __init__(self, filter: EventFilter) -> None:
        self.filter = filter
        self.all = filter == EVERYTHING
        self._verdicts: dict[Place, bool] = {}

    def wants(self, place: Place) -> bool:
        """Whether such an event passes."""
        verdict = self._verdicts.get(place)
        if verdict is None:
            if len(self._verdicts) >= MAX_VERDICTS:
                self._verdicts.clear()
            verdict = self._verdicts[place] = self._judge(place)
        return verdict

    def _judge(self, place: Place) -> bool:
        if place.event_type is T.GAP:  # whatever the filter says of types: nothing is lost silently
            return self.filter.wants_gap(place.run_id)
        if place.event_type is T.CHAIN_SNAPSHOT:
            return self.filter.wants_snapshot(place.chain_id, place.group_id, place.run_id)
        return self.filter.wants(*place)


class Selectors:
    """One selector for each filter, so that subscriptions with equal filters are found to be alike."""

    def __init__(self) -> None:
        self._by_filter: dict[EventFilter, Selector] = {}

    def __len__(self) -> int:
        return len(self._by_filter)

    def of(self, filter: EventFilter, users: Collection[HasSelector]) -> Selector:
        """The filter's; those that no user has any more are forgotten now and then."""
        selector = self._by_filter.get(filter)
        if selector is None:
            if len(self._by_filter) > 2 * len(users) + 64:
                self._by_filter = {user.selector.filter: user.selector for user in users}
            selector = self._by_filter[filter] = Selector(filter)
        return selector


class HasSelector(Protocol):
    """Somebody who wants something."""

    selector: Selector


class History:
    """A ring of events, bounded by bytes. Whoever owns it guards it.

    Args:
        limit: bytes of memory that the entries may take.

    Attributes:
        head: the position of the next event.
        tail: the position of the oldest event that is held.
        total: bytes that came since the history began.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.head = self.tail = self.total = 0
        self._name = secrets.token_hex(6)
        self._entries: list[Entry] = []
        self._first = 0  # index of the oldest that is held; those before it wait to be cut off
        self._places: dict[Place, Place] = {}

    @property
    def bytes(self) -> int:
        """Of memory that the entries take."""
        return self.total - self.before(self.tail)

    def append(self, event: StreamEvent) -> Entry:
        """Keep the event, and let go of the oldest ones that no longer fit."""
        place = Place(event.event_type, event.chain_id, event.group_id, event.run_id)
        place = self._places.setdefault(place, place)
        if len(self._places) > MAX_PLACES:
            self._places.clear()
        data = encoded(event)
        merged = event.event_type is T.LLM_GENERATION_CHUNK and "from_seq" in event.data
        entry = Entry(data, place, event.seq, event.data["from_seq"] if merged else event.seq, self.total)
        self._entries.append(entry)
        self.head += 1
        self.total += len(data) + ENTRY_BYTES
        if self.total - self._entries[self._first].before > self.limit:
            self._evict()
        return entry

    def _evict(self) -> None:
        first, entries = self._first, self._entries
        while first < len(entries) - 1 and self.total - entries[first].before > self.limit:
            first += 1
        self._drop(first)

    def _drop(self, first: int) -> None:
        self.tail += first - self._first
        self._first = first
        if first > 1024 and first > len(self._entries) // 8:
            del self._entries[:first]
            self._first = 0

    def forget_before(self, position: int) -> None:
        """Let go of what stands before the position."""
        if position > self.tail:
            self._drop(self._first + min(position, self.head) - self.tail)

    def window(self, position: int, count: int) -> list[Entry]:
        """At most `count` entries from the position on, which must be held or be the head."""
        start = self._first + position - self.tail
        return self._entries[start : start + count]

    def before(self, position: int) -> int:
        """Bytes that came before the position, which must be held or be the head."""
        if position >= self.head:
            return self.total
        return self._entries[self._first + position - self.tail].before

    def cursor(self, position: int) -> str:
        """The name of a position; opaque to clients."""
        return f"{self._name}.{position}"

    def cursor_within(self, position: int) -> str:
        """A cursor for one who has had some of the snapshots that lead to this position: nobody can go on from there."""
        return f"{self._name}.{position}.within"

    def since(self, since: str) -> int | None:
        """The position that a client names by `start` or a cursor; None if it is not there, and for `live`."""
        if since == "live":
            return None
        if since == "start":
            return 0 if self.tail == 0 else None
        return self.position(since)

    def position(self, cursor: str) -> int | None:
        """The position that a cursor names; None if it is of another history, or no longer held."""
        name, _, number = cursor.partition(".")
        if name != self._name or not number.isascii() or not number.isdecimal() or len(number) > 18:
            return None
        position = int(number)
        return position if self.tail <= position <= self.head else None


def encoded(event: StreamEvent) -> bytes:
    """The event's JSON; what JSON cannot hold in its data is described by type and size."""
    return encode_described(event)
