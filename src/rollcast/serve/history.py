"""The latest encoded events, bounded by bytes, and positions among them.

A position counts every event since the history began, kept or not, so a cursor also covers events that a filter left out.
"""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import msgspec

from rollcast.errors import DecodeError
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.codec import decode_unchecked, encode_described, encode_lines, one_line_json
from rollcast.records.event import ExtendedEvent
from rollcast.records.jsonable import SHALLOW_BYTES, as_json, may_nest_deeply, nests_deeply
from rollcast.records.lanes import Lane
from rollcast.records.secrets import Masker
from rollcast.stream.waiting import EncodableChunk, Relayed, event_of

__all__ = ["WITHIN", "Entry", "History", "Place", "Selector", "Selectors"]

T = StreamEventType
CHUNK = T.LLM_GENERATION_CHUNK
ENTRY_BYTES = 160  # memory of an entry besides its JSON
ENCODED_AT_ONCE = 64  # events; this many are in memory twice for a moment
WITHIN = ".within"  # ends a cursor in the middle of snapshots
MAX_PLACES = 65536
MAX_VERDICTS = 4096  # for one filter; clients may have many filters
EVERYTHING = EventFilter()
Lines = Sequence[bytes | None]  # the JSON of each event; None: it is not known
_ESCAPE = re.compile(rb"\\[u/]")  # a search for one byte, until it is there


def _one_copy(name: Any) -> Any:
    """The name as the one copy of it that is kept however many events have it; what is no plain text stays as it is."""
    return sys.intern(name) if type(name) is str else name


class Place(NamedTuple):
    """The fields that filters look at."""

    event_type: StreamEventType
    chain_id: str
    group_id: str | None
    run_id: str
    source: str = ""

    @property
    def lane(self) -> Lane:
        """The run and the source."""
        return Lane(self.run_id, self.source)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One event.

    Attributes:
        data: its JSON.
        place: the fields that filters look at.
        seq, from_seq: its own `seq`, and that of the first event that was merged into it.
        merged_from: the same, of what was merged in this process: its own `seq` if it came as it is.
        before: how many bytes came before it since the history began.
    """

    data: bytes
    place: Place
    seq: int
    from_seq: int
    merged_from: int
    before: int


class Selector:
    """A filter that remembers whether events from a place pass."""

    __slots__ = ("_by_type", "_verdicts", "all", "filter")

    def __init__(self, filter: EventFilter) -> None:
        self.filter = filter
        self.all = filter == EVERYTHING
        self._by_type: dict[StreamEventType, bool] | None = {} if _names_only_types(filter) else None
        self._verdicts: dict[Place, bool] = {}

    def wants(self, place: Place) -> bool:
        """Whether such an event passes."""
        if self._by_type is not None:  # a sixth of what it takes to look a place up
            return self.may_want(place.event_type)
        verdict = self._verdicts.get(place)
        if verdict is None:
            if len(self._verdicts) >= MAX_VERDICTS:
                self._verdicts.clear()
            verdict = self._verdicts[place] = self._judge(place)
        return verdict

    def may_want(self, kind: StreamEventType) -> bool:
        """Whether events of this type pass; True also if that depends on where they come from."""
        by_type = self._by_type
        if by_type is None:
            return True
        verdict = by_type.get(kind)
        if verdict is None:
            if len(by_type) >= MAX_VERDICTS:
                by_type.clear()
            verdict = by_type[kind] = self._judge(Place(kind, "", None, ""))
        return verdict

    def _judge(self, place: Place) -> bool:
        if place.event_type is T.GAP:  # whatever types the filter names: nothing is lost silently
            return self.filter.wants_gap(place.run_id, place.source)
        if place.event_type is T.CHAIN_SNAPSHOT:
            return self.filter.wants_snapshot(place.chain_id, place.group_id, place.run_id, place.source)
        return self.filter.wants(*place)


def _first_seq(chunk: Relayed) -> Any:
    """The `seq` of the first of the chunks that were merged into this one; its own if it does not say, or cannot be right."""
    seq = chunk.seq
    first = chunk.from_seq if isinstance(chunk, EncodableChunk) else chunk.data.get("from_seq")
    return first if type(first) is int and 0 <= first <= seq else seq


def _names_only_types(filter: EventFilter) -> bool:
    """Whether it is the same for all runs, chains and groups."""
    return type(filter) is EventFilter and all(
        each.runs is each.chains is each.groups is each.sources is None for each in filter.alternatives
    )


class Selectors:
    """One selector for each filter, so that subscriptions with equal filters share one."""

    def __init__(self) -> None:
        self._by_filter: dict[EventFilter, Selector] = {}

    def __len__(self) -> int:
        return len(self._by_filter)

    def of(self, filter: EventFilter, users: Collection[HasSelector]) -> Selector:
        """The filter's selector; those without a user are forgotten now and then."""
        selector = self._by_filter.get(filter)
        if selector is None:
            if len(self._by_filter) > 2 * len(users) + 64:
                self._by_filter = {user.selector.filter: user.selector for user in users}
            selector = self._by_filter[filter] = Selector(filter)
        return selector


class HasSelector(Protocol):
    """A user of a selector."""

    selector: Selector


class History:
    """A ring of events, bounded by bytes. Its owner guards it with a lock.

    Args:
        limit: how many bytes of memory the entries may take.
        masker: of secrets in what comes from outside; None masks nothing.

    Attributes:
        head: the position of the next event.
        tail: the position of the oldest event that is kept.
        total: how many bytes came since the history began.
        recorded: gives what a cursor for a position says of a record, if there is one.
    """

    def __init__(self, limit: int, masker: Masker | None = None) -> None:
        self.limit = limit
        self.recorded: Callable[[int], str] = lambda _: ""
        self.masker = masker
        self.head = self.tail = self.total = 0
        self._name = secrets.token_hex(6)
        self._entries: list[Entry] = []
        self._first = 0  # index of the oldest kept entry; those before it will be cut off
        # Looked up by a plain tuple, which takes a third of what it takes to make a place.
        self._places: dict[tuple[StreamEventType, str, str | None, str, str], Place] = {}
        # By type, and for all types together that this version does not know: no such event stands at this position or behind.
        self._latest: dict[StreamEventType | None, int] = {}

    @property
    def bytes(self) -> int:
        """How many bytes of memory the entries take."""
        return self.total - self.before(self.tail)

    def append(self, event: StreamEvent) -> Entry:
        """Keep the event, and drop the oldest ones that no longer fit."""
        return self.extend([event])[0]

    def extend(self, events: Sequence[Relayed], read: Lines | None = None) -> list[Entry]:
        """Keep the events, and drop the oldest ones that no longer fit.

        Args:
            events: the events.
            read: the JSON that each was read from; None for one that was made here, or for all.
        """
        lines = _all_encoded(events) if read is None else _all_as_read(events, read)
        kinds = [event.event_type for event in events]
        if self.masker is not None:
            lines = _all_masked(events, kinds, lines, self.masker)
        all_read = read is not None and None not in read
        known, place_of = self._places, self._place_of
        places = [
            known.get((kind, event.chain_id, event.group_id, event.run_id, event.source)) or place_of(event)
            for kind, event in zip(kinds, events, strict=True)
        ]
        seqs = [event.seq for event in events]
        firsts = [
            _first_seq(event) if kind is CHUNK else event.seq
            for kind, event in zip(kinds, events, strict=True)
        ]
        if read is None or all_read:
            here = firsts if read is None else seqs
        else:
            here = [
                first if line is None else seq for first, seq, line in zip(firsts, seqs, read, strict=True)
            ]
        befores = [*accumulate([len(line) + ENTRY_BYTES for line in lines], initial=self.total)]
        self.total = befores.pop()
        entries = [*map(Entry, lines, places, seqs, firsts, here, befores)]
        self._entries += entries
        self.head += len(entries)
        for kind in set(kinds):
            self._latest[kind if kind.known else None] = self.head
        if len(known) > MAX_PLACES:
            known.clear()
        if entries and self.total - self._entries[self._first].before > self.limit:
            self._evict()
        return entries

    def _place_of(self, event: Relayed) -> Place:
        """The one copy of the event's place, with the one copy of each name in it: a chain has several, as many as its events have types."""
        place = Place(
            event.event_type,
            _one_copy(event.chain_id),
            _one_copy(event.group_id),
            _one_copy(event.run_id),
            _one_copy(event.source),
        )
        return self._places.setdefault(place, place)

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
        """Drop the events before the position."""
        if position > self.tail:
            self._drop(self._first + min(position, self.head) - self.tail)

    def window(self, position: int, count: int) -> list[Entry]:
        """At most `count` entries from the position on, which must be kept or be the head."""
        start = self._first + position - self.tail
        return self._entries[start : start + count]

    def has_wanted(self, selector: Selector, position: int) -> bool:
        """Whether an event from the position on may pass. If not, none does, and nobody needs to look at each."""
        return any(
            head > position and (kind is None or selector.may_want(kind))
            for kind, head in self._latest.items()
        )

    def first_of_runs(self, position: int) -> dict[Lane, int]:
        """The `seq` of the first event of each run and source from the position on, which must be held or be the head."""
        first: dict[Lane, int] = {}
        for entry in self.window(position, self.head - position):
            first.setdefault(entry.place.lane, entry.from_seq)
        return first

    def before(self, position: int) -> int:
        """How many bytes came before the position, which must be kept or be the head."""
        if position >= self.head:
            return self.total
        return self._entries[self._first + position - self.tail].before

    def cursor(self, position: int) -> str:
        """The name of a position; opaque to clients."""
        return f"{self._name}.{position}{self.recorded(position)}"

    def cursor_within(self, position: int) -> str:
        """A cursor for a client that has only some of the snapshots for this position; it cannot be continued from."""
        return f"{self._name}.{position}{WITHIN}"

    def position(self, cursor: str) -> int | None:
        """The position that a cursor names; None if it belongs to another history or is no longer kept."""
        position = None if cursor.endswith(WITHIN) else self.named(cursor)
        return position if position is not None and self.tail <= position else None

    def named(self, cursor: str) -> int | None:
        """The position that a cursor names, kept or not; None if it belongs to another history."""
        name, number, *place = (cursor.removesuffix(WITHIN) + ".").split(".")
        if len(place) not in (1, 3, 4):  # a place in a record may follow (recorded.py)
            return None
        if name != self._name or not number.isascii() or not number.isdecimal() or len(number) > 18:
            return None
        position = int(number)
        return position if position <= self.head else None


def _all_encoded(events: Sequence[Relayed]) -> list[bytes]:
    """`encoded` of each event, many at once."""
    if len(events) == 1:
        return [encoded(events[0])]
    data: list[bytes] = []
    for i in range(0, len(events), ENCODED_AT_ONCE):
        some = list(events[i : i + ENCODED_AT_ONCE])
        lines: list[bytes] = []
        with suppress(Exception):  # user-made data may contain, and raise, anything
            lines = encode_lines(some).split(b"\n")[:-1]
        if len(lines) == len(some):
            data += [
                line
                if len(line) < SHALLOW_BYTES or isinstance(event, EncodableChunk)  # it cannot nest
                else _shallow(event_of(event), line)
                for event, line in zip(some, lines, strict=True)
            ]
        else:
            data += map(encoded, some)
    return data


def _all_as_read(events: Sequence[Relayed], read: Lines) -> list[bytes]:
    """The JSON that each event was read from; encoded anew if it cannot be passed on as it is."""
    lines = [encoded(event) if line is None else line for event, line in zip(events, read, strict=True)]
    if _is_foreign(b"".join(lines)):  # one look at all costs a tenth of one at each
        pairs = zip(events, lines, strict=True)
        lines = [encoded(event) if _is_foreign(line) else line for event, line in pairs]
    for at in [at for at, line in enumerate(lines) if len(line) >= SHALLOW_BYTES]:
        event = events[at]
        if not isinstance(event, EncodableChunk) and may_nest_deeply(lines[at]):  # a token cannot
            lines[at] = _shallow(event_of(event), lines[at])
    return lines


def _is_foreign(data: bytes) -> bool:
    """Whether the JSON has what ours never has, or seldom.

    That is a line break between fields, or a character that some readers take for one; or an escape that could hide a secret from the masker.
    """
    broken = b"\n" in data or b"\r" in data or one_line_json(data) is not data
    return broken or _ESCAPE.search(data) is not None


def _all_masked(
    events: Sequence[Relayed], kinds: Sequence[StreamEventType], lines: list[bytes], masker: Masker
) -> list[bytes]:
    """`masked` of each event but the tokens: what an agent's model wrote came from no outside."""
    foreign = {kind for kind in set(kinds) if masker.concerns(kind)}
    concerned = [i for i, kind in enumerate(kinds) if kind in foreign]
    if not concerned or not masker.may_hold(b"\n".join([lines[i] for i in concerned])):
        return lines  # mostly; one look at all costs half as much as one at each
    for i in concerned:
        if masker.may_hold(lines[i]):
            event = event_of(events[i])
            lines[i] = masked(event, encoded(event), masker)  # what was read may say a field twice
    return lines


def masked(event: StreamEvent, data: bytes, masker: Masker) -> bytes:
    """The event's JSON without the secrets in what came from outside."""
    if not masker.concerns(event.event_type) or not masker.may_hold(data):
        return data
    try:
        told = decode_unchecked(
            data
        )  # as a client has it: no object of somebody's, and not nested too deeply
    except DecodeError:  # somebody made it by hand, and it is none that a client could read
        told = event
    shown = masker.event(told)
    return data if shown is told else encoded(shown)


def encoded(item: Relayed) -> bytes:
    """The event's JSON; values that JSON cannot hold, or that nest too deeply for its readers, are described by type and size."""
    event = event_of(item)
    return _shallow(event, encode_described(event))


def _shallow(event: StreamEvent, data: bytes) -> bytes:
    """The event's JSON `data`, unless it nests so deeply that the server or a client might not be able to decode it.

    Events of this process never do (`as_json`); a relayed one may.
    """
    if not may_nest_deeply(data):
        return data
    beyond = event.beyond if isinstance(event, ExtendedEvent) else {}
    if not nests_deeply(event.data) and not nests_deeply(beyond):
        return data
    fields = {"data": as_json(event.data)} | ({"beyond": as_json(beyond)} if beyond else {})
    return encode_described(msgspec.structs.replace(event, **fields))
