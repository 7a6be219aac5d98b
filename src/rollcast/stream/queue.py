"""A bounded queue of events for a reader that may fall behind.

`put_nowait` never waits. When the reader falls behind, `compact` merges neighbouring chunks. If the queue is still over the
limit, everything that waits is dropped and counted by type until the reader comes back: it then gets one `gap` for each run and
a snapshot of every open chain. A queue's owner guards it with a lock.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import chain
from math import isfinite
from operator import sub
from types import NoneType
from typing import Any, Literal, TypeGuard, final

import msgspec

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.lanes import Lane
from rollcast.stream.waiting import (
    PASSAGE_EVENTS,
    EncodableChunk,
    Event,
    PackedValue,
    Passage,
    Relayed,
    WaitingChunk,
    encodable,
    event_of,
    merged_waiting,
)

__all__ = [
    "Control",
    "EventQueue",
    "Item",
    "Single",
    "chunk_size",
    "compact",
    "event_size",
    "events_of",
    "merged_chunks",
    "single",
]

from_iterable = chain.from_iterable

CHUNK = StreamEventType.LLM_GENERATION_CHUNK
GENERATION_END = StreamEventType.LLM_GENERATION_END

_SEQUENCES = (list, tuple)
_COUNTED = frozenset({"content", "offset", "token_ids", "logprobs", "from_seq"})  # `chunk_size` counts these

CONTROL_SIZE = 240  # bytes of memory
COMPACT_AT = 2048  # queued events; from this many on, a slow reader's chunks merge,
BYTES_EACH = 4096  # or with one event for so many bytes of its limit: if a reader may fall far behind, merging once costs less than ten times


@final
class Control(msgspec.Struct, frozen=True):
    """An item that is not an event: a hook to call, or a promise to fulfil after everything before it was handed over."""

    kind: Literal["run_opened", "run_closed", "chain_closed", "barrier"]
    run_id: str = ""
    chain_id: str = ""
    done: Future[None] | None = None


Single = Event | Control
Item = Single | Passage


def event_size(event: Event | Relayed) -> int:
    """Roughly how many bytes of memory the event keeps alive; good enough to bound a queue."""
    if isinstance(event, WaitingChunk):
        ids = event.token_ids
        return chunk_size(event.content, (ids,) if isinstance(ids, int) else ids)
    event = event_of(event)
    data = event.data
    if event.event_type is CHUNK:
        size = chunk_size(data.get("content", ""), data.get("token_ids"))
        return size + sum(_weight(value, 8) for name, value in data.items() if name not in _COUNTED)
    return 480 + _weight(data, 8)


def chunk_size(content: str, token_ids: Sequence[int] | None) -> int:
    """`event_size` of a chunk. A `WaitingChunk` counts as much as its event will."""
    return (
        480 + content.__sizeof__() + (200 + 64 * len(token_ids) if token_ids else 0)
    )  # getsizeof costs five times as much


def _weight(value: Any, depth: int) -> int:
    size = sys.getsizeof(value)
    kind = value.__class__
    if kind is dict and depth:
        for name, item in value.items():
            of = item.__class__
            if (
                of is str
            ):  # like most values; for text `__sizeof__` equals `getsizeof`, and takes a fifth of the time
                size += item.__sizeof__()
            elif of not in _PLAIN:
                size += _weight(item, depth - 1)
            else:
                size += _PLAIN_SIZE
            size += name.__sizeof__()
    elif kind in _SEQUENCES and depth:
        for item in value:
            size += _PLAIN_SIZE if item.__class__ in _PLAIN else _weight(item, depth - 1)
    return size


_PLAIN = frozenset({int, float, bool, type(None)})
_PLAIN_SIZE = 28  # bytes of a number; few share one object


def merged_chunks(chunks: list[Event], *, timed: bool = False, lengths: bool = False) -> Event:
    """Merge neighbouring chunks of one generation into one, at the place of the last. Unknown fields keep their latest value.

    With `timed` it has `dt_ms` also if no chunk has it, provided that each has at most one token. With `lengths` it says how many
    characters each token gave, provided that each chunk has one token or says so itself.
    """
    waiting = [chunk for chunk in chunks if type(chunk) is WaitingChunk]
    if len(waiting) == len(chunks) and not timed and not lengths:
        return merged_waiting(waiting)
    encodable = [chunk for chunk in chunks if type(chunk) is EncodableChunk]
    if (
        len(encodable) == len(chunks)
        and (joined := _joined_data(encodable, timed=timed, lengths=lengths)) is not None
    ):
        return msgspec.structs.replace(encodable[-1].event(), data=joined)
    events = [event_of(chunk) for chunk in chunks]
    first, last = events[0], events[-1]
    parts = [e.data for e in events]
    names = set().union(*parts)
    data: dict[str, Any] = {"content": "".join([p["content"] for p in parts]), "offset": parts[0]["offset"]}
    for name in ("token_ids", "logprobs"):
        if name in names and all(name in p or not _has_tokens(p) for p in parts):
            data[name] = [value for p in parts for value in p.get(name, ())]
    if "reasoning" in names:
        data["reasoning"] = "".join([p.get("reasoning", "") for p in parts])
    times = _joined_times(events) if (timed and "token_ids" in data) or "dt_ms" in names else None
    if times or (times is not None and "dt_ms" in names):
        data["dt_ms"] = times
    if (lengths or "lengths" in names) and "token_ids" in data and (joined_lengths := _joined_lengths(parts)):
        data["lengths"] = joined_lengths
    for name in sorted(names - _MERGED, key=str):
        data[name] = next(p[name] for p in reversed(parts) if name in p)
    data["from_seq"] = parts[0].get("from_seq", first.seq)
    return msgspec.structs.replace(last, data=data)


def _joined_data(chunks: list[EncodableChunk], *, timed: bool, lengths: bool) -> dict[str, Any] | None:
    """The `data` that `merged_chunks` gives for chunks that all have ids, or all have none; None for any others, and for merged ones.

    No event and no dict is made of the single chunks, so a token costs a third of what it costs there.
    """
    parts = [chunk.data for chunk in chunks]
    if {part.from_seq for part in parts} != {msgspec.UNSET}:
        return None
    data: dict[str, Any] = {"content": "".join([p.content for p in parts]), "offset": parts[0].offset}
    counts: list[int] = []  # of the tokens of each chunk
    for name in ("token_ids", "logprobs"):
        of_each: list[Any] = (
            [p.token_ids for p in parts] if name == "token_ids" else [p.logprobs for p in parts]
        )
        kinds = set(map(type, of_each))
        if NoneType in kinds:
            if len(kinds) > 1:
                return None
            continue
        if kinds == {PackedValue}:
            data[name] = [v.value for v in of_each]
            counts = counts or [1] * len(of_each)
        else:
            values: list[Any] = [(v.value,) if v.__class__ is PackedValue else v for v in of_each]
            data[name] = [*from_iterable(values)]
            counts = counts or [*map(len, values)]
    if timed and "token_ids" in data and counts and max(counts) <= 1:
        if min(counts) == 1:
            arrivals = [chunk.timestamp * 1000 for chunk in chunks]
        else:
            arrivals = [chunk.timestamp * 1000 for chunk, count in zip(chunks, counts, strict=True) if count]
        # Rounding to a whole number costs a third of rounding to three digits.
        apart = map(sub, arrivals[1:], arrivals)
        with suppress(OverflowError):  # a timestamp is far too large
            if times := [round(ms * 1000) / 1000 if ms > 0 else 0.0 for ms in apart]:
                data["dt_ms"] = times
    if lengths and counts and min(counts) == max(counts) == 1:
        data["lengths"] = [len(p.content) for p in parts]
    data["from_seq"] = chunks[0].seq
    return data


_MERGED = frozenset(
    {"content", "offset", "token_ids", "logprobs", "reasoning", "dt_ms", "lengths", "from_seq"}
)


def _has_tokens(data: dict[str, Any]) -> bool:
    """Whether a chunk has tokens that its lists would hold. A chunk with only reasoning has none."""
    return bool(data["content"] or data.get("token_ids"))


def _joined_lengths(parts: list[dict[str, Any]]) -> list[int] | None:
    """How many characters of text each token gave, over all chunks; None if one chunk does not say."""
    joined: list[int] = []
    for part in parts:
        ids, content, own = part.get("token_ids", ()), part["content"], part.get("lengths")
        if isinstance(own, list) and len(own) == len(ids):
            joined += own
        elif len(ids) == 1:
            joined.append(len(content))
        elif ids or content:
            return None
    return joined


def _joined_times(events: list[StreamEvent]) -> list[float] | None:
    """Milliseconds from each token to the next one, over all chunks; None if one chunk lacks them.

    A chunk's timestamp is that of its last token, so its first token came `sum(dt_ms)` before.
    """
    joined: list[float] = []
    arrived: float | None = None  # when the last token so far did, in milliseconds
    for e in events:
        count, times = len(e.data.get("token_ids", ())), e.data.get("dt_ms", [])
        if not isinstance(times, list) or len(times) != max(count - 1, 0):
            return None
        if count == 0:
            continue
        if arrived is not None:
            apart = max(e.timestamp * 1000 - sum(times) - arrived, 0.0)
            if not isfinite(apart):  # a timestamp is far too large, or not a number
                return None
            joined.append(round(apart, 3))
        joined += times
        arrived = e.timestamp * 1000
    return joined


def compact(queue: Sequence[Single], *, timed: bool = False) -> tuple[list[Single], int, int]:
    """The queue with neighbouring chunks of each generation merged, and how many events and bytes that saved.

    `timed` is that of `merged_chunks`.

    Chunks are neighbours if no other event of their chain, no gap and no barrier is between them; the merged chunk takes
    the place of the last one, so `seq` still rises.
    """
    last_chunks: dict[
        str, dict[str, int]
    ] = {}  # by run and chain: the index of the last chunk, which another may join
    before: dict[int, int] = {}  # from the index of a chunk to that of the chunk before it that it joins
    for i, item in enumerate(queue):
        if type(item) is Control:
            if item.kind == "chain_closed":
                last_chunks.get(item.run_id, {}).pop(item.chain_id, None)
            elif item.kind == "barrier":  # its owner may have snapshots that cover what comes before it
                last_chunks.clear()
            continue
        if item.event_type is StreamEventType.GAP:
            last_chunks.clear()
            continue
        of_run = last_chunks.setdefault(item.run_id, {})
        if item.event_type is not CHUNK:
            of_run.pop(item.chain_id, None)
            continue
        last = of_run.get(item.chain_id)
        if (
            last is not None and _step(queue[last]) == item.step
        ):  # otherwise it is the next generation, if a filter leaves out the events between
            before[i] = last
        of_run[item.chain_id] = i
    gone = set(before.values())
    merged: dict[int, Event] = {}
    freed = 0
    for i in before:
        if i not in gone:
            chunks = _chunks_up_to(i, before, queue)
            merged[i] = whole = merged_chunks(chunks, timed=timed)
            freed += sum(map(event_size, chunks)) - event_size(whole)
    return [merged.get(i, item) for i, item in enumerate(queue) if i not in gone], len(gone), freed


def _step(chunk: Single) -> int | None:
    return None if isinstance(chunk, Control) else chunk.step


def _chunks_up_to(i: int, before: dict[int, int], queue: Sequence[Single]) -> list[Event]:
    """The chunk at `i` and those that it joins, in order."""
    places = [i]
    while (i := before.get(i, -1)) >= 0:
        places.append(i)
    return [queue[place] for place in reversed(places)]  # type: ignore[misc]  # all are chunks


def without_ended_generations(queue: list[Single]) -> tuple[list[Single], list[Event]]:
    """The queue without the chunks of generations whose end is also queued, since it has the whole text; and those chunks."""
    ended: set[tuple[str, str, int | None]] = set()
    kept: list[Single] = []
    superseded: list[Event] = []
    for item in reversed(queue):
        if not isinstance(item, Control):
            key = (item.run_id, item.chain_id, item.step)
            if item.event_type is GENERATION_END:
                ended.add(key)
            elif item.event_type is CHUNK and key in ended:
                superseded.append(item)
                continue
        kept.append(item)
    return kept[::-1], superseded


class _Loss:
    """The events of one run and source that the reader did not get."""

    __slots__ = ("by_type", "from_seq", "to_seq")

    def __init__(self, seq: int) -> None:
        self.from_seq = self.to_seq = seq
        self.by_type: Counter[str] = Counter()

    def add(self, event: Event) -> None:
        if isinstance(event, WaitingChunk):
            data, from_seq = {}, event.from_seq
        else:
            data = {} if isinstance(event, EncodableChunk) else event.data
            from_seq = event.from_seq if isinstance(event, EncodableChunk) else data.get("from_seq")
        self.from_seq = min(self.from_seq, event.seq if from_seq is None else from_seq)
        self.to_seq = max(self.to_seq, event.seq)
        if event.event_type is StreamEventType.GAP:
            self.by_type.update(data["dropped"])
        else:
            self.by_type[event.event_type.value] += 1

    def join(self, other: _Loss) -> None:
        self.from_seq = min(self.from_seq, other.from_seq)
        self.to_seq = max(self.to_seq, other.to_seq)
        self.by_type.update(other.by_type)


_Losses = dict[Lane, _Loss]


def _note(lost: _Losses, event: Event) -> None:
    lane = Lane(event.run_id, event.source)
    if lane not in lost:
        lost[lane] = _Loss(event.seq)
    lost[lane].add(event)


def _join(lost: _Losses, others: _Losses) -> None:
    for lane, other in others.items():
        if lane in lost:
            lost[lane].join(other)
        else:
            lost[lane] = other


class EventQueue:
    """Events that wait for one reader, and the counts of those that it will not get.

    Args:
        reader: the reader's name, for the `reason` of a `gap`.
        limit: how many bytes of memory the waiting events may take.
        lossless: whether nothing is merged or dropped, and `full` says that the producer must wait.
    """

    __slots__ = (
        "_compact_at",
        "_full_at",
        "_limit",
        "_lost",
        "_part",
        "_superseded",
        "_superseded_taken",
        "awake",
        "bytes",
        "dropped",
        "full",
        "items",
        "lossless",
        "merged",
        "mixed",
        "reader",
    )

    def __init__(self, reader: str, limit: int, *, lossless: bool = False) -> None:
        self.reader = reader
        self._part = 1  # how much of the limit may wait before `_shrink` is called: all of it, or half
        self.limit = limit
        self.lossless = lossless
        self.full = False
        self.awake = False  # the reader is working, or has been woken
        self.merged = self.dropped = 0
        self.items: list[Item] = []
        self.mixed = False  # the items may include controls, or chunks whose events are not made yet
        self.bytes = 0
        self._compact_at = self._least_to_compact
        self._lost: _Losses = {}
        self._superseded: _Losses = {}  # chunks dropped because a queued end repeats their text
        self._superseded_taken: _Losses = {}  # the same, for the ends that were taken last

    @property
    def limit(self) -> int:
        """How many bytes of memory the waiting events may take."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._full_at = limit // self._part

    @property
    def _least_to_compact(self) -> int:
        return max(COMPACT_AT, self._limit // BYTES_EACH)

    @property
    def timed(self) -> bool:
        """Whether merged chunks tell when each of their tokens came."""
        return False

    def wake(self) -> None:
        """Called when something waits and the reader is not awake."""
        self.awake = True

    def became_full(self) -> None:
        """Called when a lossless queue reaches its limit."""

    def put_nowait(self, event: Event, size: int) -> None:
        """Queue an event of this many bytes."""
        self.put_in_each((self,), event, size)

    @staticmethod
    def put_in_each(queues: Iterable[EventQueue], event: Event, size: int) -> None:
        """Do `put_nowait` for each queue, without a call for each: this is on the path of every token."""
        for queue in queues:
            if queue._lost:  # noqa: SLF001  (this class's own, as below)
                queue._lose_unless_end(event, size)  # noqa: SLF001
                continue
            items = queue.items
            items.append(event)
            queue.bytes = total = queue.bytes + size
            if total > queue._full_at or len(items) >= queue._compact_at:  # noqa: SLF001
                queue._shrink()  # noqa: SLF001
            if not queue.awake:
                queue.wake()

    def put_all(self, events: list[Event], size: int) -> None:
        """Queue events that together have this many bytes."""
        if self._lost:
            for event in events:
                self._lose_unless_end(event, size // len(events))
            return
        self.items += events
        self.bytes += size
        if self.bytes > self._full_at or len(self.items) >= self._compact_at:
            self._shrink()
        if not self.awake:
            self.wake()

    def put_passage(self, events: list[Relayed], lines: list[bytes | None], size: int) -> None:
        """Do `put_all` for a lossless reader that takes a `Passage`; `lines`: the JSON of each event, None for one made here."""
        if self._lost:
            self.put_all(list[Event](encodable(events)), size)
            return
        last = self.items[-1] if self.items else None
        if type(last) is Passage and len(last.events) + len(events) <= PASSAGE_EVENTS:
            last.events += events
            last.lines += lines
            last.size += size
        else:
            self.items.append(Passage([*events], [*lines], size))
            self.mixed = True
        self.bytes += size
        if self.bytes > self._full_at:
            self._shrink()
        if not self.awake:
            self.wake()

    def put_control(self, control: Control) -> None:
        """Queue a hook. A `chain_closed` counts against the limit; after a loss it is left out, since snapshots follow."""
        if control.kind == "chain_closed":
            if self._lost:
                return
            self.bytes += CONTROL_SIZE
            if self.bytes > self._full_at and not self.lossless:
                self._shrink()
        self.put_uncounted([control])

    def put_uncounted(self, items: list[Item]) -> None:
        """Queue items that do not count against the limit: snapshots (bounded by the open chains) and controls."""
        if self._lost:  # newer snapshots follow the gap
            items = [item for item in items if isinstance(item, Control)]
        if not items:
            return
        self.items += items
        self.mixed = True
        if not self.awake:
            self.wake()

    def take_nowait(self, snapshots: Iterable[StreamEvent]) -> list[Item]:
        """Take everything that waits, oldest first. If events were dropped, gaps and these `snapshots` come first."""
        items, self.items = self.items, []
        self.mixed = False
        least = self._least_to_compact
        if len(items) < least:  # otherwise too many may still wait, mostly chunks of different chains
            self._compact_at = least
        if self._lost:
            opened = [item for item in items if _opens(item)]  # a run's gap comes after its opening
            items = [*opened, *self._gaps(), *snapshots, *(item for item in items if not _opens(item))]
            self._lost = {}
        if self._superseded or self._superseded_taken:
            self._superseded_taken, self._superseded = self._superseded, {}
        self.bytes = 0
        return items

    def put_back(self, items: list[Item]) -> None:
        """Put items that were taken but not read back in front; if events were dropped since, the gap covers these too."""
        if self._lost:
            singles = single(items)
            for item in singles:
                if _counts(item) and not _ends(item):
                    self._lose(item)
            items = [item for item in singles if isinstance(item, Control) or _ends(item)]
            self._lose_superseded(self._superseded_taken)
        else:
            _join(self._superseded, self._superseded_taken)
        self._superseded_taken = {}
        self.items[:0] = items
        self.mixed = True
        self.bytes = sum(
            item.size if isinstance(item, Passage) else event_size(item) if _counts(item) else 0
            for item in self.items
        )

    def _shrink(self) -> None:
        if self.lossless:
            if self.bytes > self.limit and not self.full:
                self.full = True
                self.became_full()
            return
        singles, saved, freed = compact(single(self.items), timed=self.timed)
        self.merged += saved
        self.bytes -= freed
        if self.bytes > 0.75 * self.limit:
            singles, superseded = without_ended_generations(singles)
            self.merged += len(superseded)
            self.bytes -= sum(map(event_size, superseded))
            for chunk in superseded:
                _note(self._superseded, chunk)
        self.items = [*singles]
        if self.bytes > 0.75 * self.limit:
            self._give_up()
        self._compact_at = max(self._least_to_compact, 2 * len(self.items))

    def shrink_sooner(self) -> None:
        """Have `_shrink` called once half of what may wait does, until `shrink_as_usual`."""
        self._part, self._full_at, self._compact_at = 2, self._limit // 2, self._least_to_compact // 2

    def shrink_as_usual(self) -> None:
        """Have `_shrink` called once more waits than may."""
        self._part, self._full_at = 1, self._limit
        self._compact_at = max(self._least_to_compact, self._compact_at)

    def lose_all(self) -> None:
        """Drop what waits as if the limit had been exceeded; a `gap` will stand for it."""
        self._give_up()

    def _give_up(self) -> None:
        """Drop what waits, and only count events until the reader comes back."""
        items, self.items = single(self.items), []
        self._lose_superseded(self._superseded)
        self._superseded = {}
        self.bytes = 0
        for item in items:
            if isinstance(item, Control):
                if item.kind != "chain_closed":
                    self.items.append(item)
            elif _counts(item):
                self._lose_unless_end(item, event_size(item))

    def _lose_unless_end(self, event: Event, size: int) -> None:
        """Count the event as lost, unless it is a `run_end` that fits: it is small, and nothing later would show it."""
        if _ends(event) and self.bytes + size <= self.limit:
            self.items.append(event)
            self.bytes += size
        else:
            self._lose(event)

    def _lose(self, event: Event) -> None:
        _note(self._lost, event)
        self.dropped += 1

    def _lose_superseded(self, superseded: _Losses) -> None:
        """Count superseded chunks as dropped instead of merged, since the ends that repeated their text are lost."""
        count = sum(sum(loss.by_type.values()) for loss in superseded.values())
        self.merged -= count
        self.dropped += count
        _join(self._lost, superseded)

    def _gaps(self) -> list[StreamEvent]:
        now = time.time()
        return [
            StreamEvent(
                StreamEventType.GAP,
                "",
                now,
                {
                    "from_seq": lost.from_seq,
                    "to_seq": lost.to_seq,
                    "dropped": dict(lost.by_type),
                    "reason": f"{self.reader} fell behind by more than {self.limit} bytes",
                },
                seq=lost.to_seq,
                run_id=lane.run_id,
                source=lane.source,
            )
            for lane, lost in self._lost.items()
        ]

    @property
    def waiting(self) -> list[Event | Relayed]:
        """The waiting events, as they wait."""
        return events_of(self.items)


def events_of(items: Iterable[Item]) -> list[Event | Relayed]:
    """The events among the items, also those in passages, as they wait: none is made."""
    events: list[Event | Relayed] = []
    for item in items:
        if isinstance(item, Passage):
            events += item.events
        elif not isinstance(item, Control):
            events.append(item)
    return events


def single(items: Iterable[Item]) -> list[Single]:
    """The items, with the events of each passage in its place."""
    single: list[Single] = []
    for item in items:
        if isinstance(item, Passage):
            single += encodable(item.events)
        else:
            single.append(item)
    return single


def _opens(item: Item) -> bool:
    return isinstance(item, Control) and item.kind == "run_opened"


def _ends(item: Item) -> bool:
    return isinstance(item, StreamEvent) and item.event_type is StreamEventType.RUN_END


def _counts(item: Single) -> TypeGuard[Event]:
    """Whether the item counts against the limit."""
    return not isinstance(item, Control) and item.event_type is not StreamEventType.CHAIN_SNAPSHOT
