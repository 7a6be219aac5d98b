"""A bounded queue of events for somebody who may fall behind.

`put` never waits. Where the reader falls behind, `compact` merges neighbouring chunks; where even that exceeds the limit,
the queue is given up: a count by type stands for it until the reader comes back, and then it gets one `gap` a run and a
snapshot of every open chain. Whoever owns a queue guards it with a lock.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, Literal, TypeGuard

import msgspec

from rollcast.records import StreamEvent, StreamEventType

__all__ = ["Control", "EventQueue", "Item", "chunk_size", "compact", "event_size"]

CHUNK = StreamEventType.LLM_GENERATION_CHUNK
GENERATION_END = StreamEventType.LLM_GENERATION_END

_SEQUENCES = (list, tuple)

CONTROL_SIZE = 240  # bytes of memory
COMPACT_AT = 2048  # queued events; from here on a slow reader's chunks merge


class Control(msgspec.Struct, frozen=True):
    """Something in the queue that is no event: a hook to call, or a promise to keep when everything before it is done."""

    kind: Literal["run_opened", "run_closed", "chain_closed", "barrier"]
    run_id: str = ""
    chain_id: str = ""
    done: Future[None] | None = None


Item = StreamEvent | Control


def event_size(event: StreamEvent) -> int:
    """Bytes of memory that the event keeps alive, near enough to bound a queue by."""
    data = event.data
    if event.event_type is CHUNK:
        return chunk_size(data.get("content", ""), data.get("token_ids"))
    return 480 + _weight(data, 8)


def chunk_size(content: str, token_ids: list[int] | None) -> int:
    """`event_size` of a chunk."""
    return 480 + sys.getsizeof(content) + (200 + 64 * len(token_ids) if token_ids else 0)


def _weight(value: Any, depth: int) -> int:
    size = sys.getsizeof(value)
    if depth == 0 or isinstance(value, str):
        return size
    if isinstance(value, dict):
        for name, item in value.items():
            size += sys.getsizeof(name) + _weight(item, depth - 1)
    elif isinstance(value, _SEQUENCES):
        for item in value:
            size += _weight(item, depth - 1)
    return size


def merged_chunks(events: list[StreamEvent]) -> StreamEvent:
    """Neighbouring chunks of one generation as one, at the place of the last."""
    first, last = events[0], events[-1]
    data: dict[str, Any] = {
        "content": "".join([e.data["content"] for e in events]),
        "offset": first.data["offset"],
    }
    for name in ("token_ids", "logprobs"):
        if all(name in e.data for e in events):
            data[name] = [value for e in events for value in e.data[name]]
    data["from_seq"] = first.data.get("from_seq", first.seq)
    return msgspec.structs.replace(last, data=data)


def compact(queue: list[Item]) -> tuple[list[Item], int, int]:
    """The queue with neighbouring chunks of each generation merged, and how many events and bytes that saved.

    Chunks are neighbours where no other event of their chain and no barrier stands between them; the merged one stands
    at the last one's place, so `seq` still rises.
    """
    runs_of_chunks: dict[
        tuple[str, str], tuple[int | None, list[int]]
    ] = {}  # with the step of the generation
    groups: list[list[int]] = []
    for i, item in enumerate(queue):
        if isinstance(item, Control):
            if item.kind == "chain_closed":
                runs_of_chunks.pop((item.run_id, item.chain_id), None)
            elif item.kind == "barrier":  # who waits for it may have snapshots of what stands before it
                runs_of_chunks.clear()
            continue
        key = (item.run_id, item.chain_id)
        if item.event_type is StreamEventType.GAP:
            runs_of_chunks.clear()
        elif item.event_type is not CHUNK:
            runs_of_chunks.pop(key, None)
        elif key in runs_of_chunks and runs_of_chunks[key][0] == item.step:
            runs_of_chunks[key][1].append(i)
        else:  # the first, or the first of the next generation where a filter leaves out what is between
            runs_of_chunks[key] = (item.step, [i])
            groups.append(runs_of_chunks[key][1])
    merged: dict[int, StreamEvent] = {}
    gone: set[int] = set()
    freed = 0
    for group in groups:
        if len(group) > 1:
            chunks: list[StreamEvent] = [queue[i] for i in group]  # type: ignore[misc]  # chunks all
            merged[group[-1]] = whole = merged_chunks(chunks)
            gone.update(group[:-1])
            freed += sum(map(event_size, chunks)) - event_size(whole)
    return [merged.get(i, item) for i, item in enumerate(queue) if i not in gone], len(gone), freed


def without_ended_generations(queue: list[Item]) -> tuple[list[Item], list[StreamEvent]]:
    """The queue without the chunks of generations whose end stands in it too (the end has the whole text), and those."""
    ended: set[tuple[str, str, int | None]] = set()
    kept: list[Item] = []
    told: list[StreamEvent] = []
    for item in reversed(queue):
        if isinstance(item, StreamEvent):
            key = (item.run_id, item.chain_id, item.step)
            if item.event_type is GENERATION_END:
                ended.add(key)
            elif item.event_type is CHUNK and key in ended:
                told.append(item)
                continue
        kept.append(item)
    return kept[::-1], told


class _Lost:
    """What one run's events were that this observer did not get."""

    __slots__ = ("by_type", "from_seq", "to_seq")

    def __init__(self, seq: int) -> None:
        self.from_seq = self.to_seq = seq
        self.by_type: Counter[str] = Counter()

    def add(self, event: StreamEvent) -> None:
        self.from_seq = min(self.from_seq, event.data.get("from_seq", event.seq))
        self.to_seq = max(self.to_seq, event.seq)
        if event.event_type is StreamEventType.GAP:
            self.by_type.update(event.data["dropped"])
        else:
            self.by_type[event.event_type.value] += 1

    def join(self, other: _Lost) -> None:
        self.from_seq = min(self.from_seq, other.from_seq)
        self.to_seq = max(self.to_seq, other.to_seq)
        self.by_type.update(other.by_type)


_LostByRun = dict[str, _Lost]


def _note(lost: _LostByRun, event: StreamEvent) -> None:
    if event.run_id not in lost:
        lost[event.run_id] = _Lost(event.seq)
    lost[event.run_id].add(event)


def _join(lost: _LostByRun, others: _LostByRun) -> None:
    for run_id, other in others.items():
        if run_id in lost:
            lost[run_id].join(other)
        else:
            lost[run_id] = other


class EventQueue:
    """Events that wait for one reader, and what stands for those that it will not get.

    Args:
        reader: how a `gap` calls the reader.
        limit: bytes of memory that the waiting events may take.
        lossless: nothing is merged or dropped; `full` tells that the producer must wait.
        source: as events carry it.
    """

    def __init__(self, reader: str, limit: int, *, lossless: bool = False, source: str = "") -> None:
        self.reader = reader
        self.limit = limit
        self.lossless = lossless
        self.source = source
        self.full = False
        self.awake = False  # the reader is at work, or was told to look
        self.merged = self.dropped = 0
        self.items: list[Item] = []
        self.mixed = False  # controls may stand among the events
        self.bytes = 0
        self._compact_at = COMPACT_AT
        self._lost: _LostByRun = {}
        self._told: _LostByRun = {}  # chunks that went because an end that waits has their text
        self._told_taken: _LostByRun = {}  # of the ends that were taken last

    def wake(self) -> None:
        """Something waits and the reader is not awake: tell it."""
        self.awake = True

    def became_full(self) -> None:
        """A lossless queue has reached its limit."""

    def put(self, event: StreamEvent, size: int) -> None:
        """Queue an event of this many bytes. This is on the path of every token."""
        if self._lost:
            self._lose_unless_end(event, size)
            return
        items = self.items
        items.append(event)
        self.bytes = total = self.bytes + size
        if total > self.limit or len(items) >= self._compact_at:
            self._shrink()
        if not self.awake:
            self.wake()

    def put_control(self, control: Control) -> None:
        """Queue a hook. A chain's end is counted, and not told to a reader who has been given up: it gets snapshots."""
        if control.kind == "chain_closed":
            if self._lost:
                return
            self.bytes += CONTROL_SIZE
            if self.bytes > self.limit and not self.lossless:
                self._shrink()
        self.put_free([control])

    def put_free(self, items: list[Item]) -> None:
        """Queue what is not counted against the limit: snapshots (bounded by the open chains), and what asks for them."""
        if self._lost:  # newer snapshots will follow the gap
            items = [item for item in items if isinstance(item, Control)]
        self.items += items
        self.mixed = True
        if not self.awake:
            self.wake()

    def take(self, snapshots: Iterable[StreamEvent]) -> list[Item]:
        """Everything that waits, oldest first. `snapshots` of the open chains are used where events were dropped."""
        items, self.items = self.items, []
        self.mixed = False
        if len(items) < COMPACT_AT:  # else as many may wait again: each a chunk of another chain, mostly
            self._compact_at = COMPACT_AT
        if self._lost:
            opened = [
                item for item in items if _opens(item)
            ]  # nobody gets a gap of a run that he does not know
            items = [*opened, *self._gaps(), *snapshots, *(item for item in items if not _opens(item))]
            self._lost = {}
        self._told_taken, self._told = self._told, {}
        self.bytes = 0
        return items

    def put_back(self, items: list[Item]) -> None:
        """What was taken and not read stands first again; where events were dropped since, the gap covers it too."""
        if self._lost:
            for item in items:
                if _counts(item) and not _ends(item):
                    self._lose(item)
            items = [item for item in items if isinstance(item, Control) or _ends(item)]
            self._lose_told(self._told_taken)
        else:
            _join(self._told, self._told_taken)
        self._told_taken = {}
        self.items[:0] = items
        self.mixed = True
        self.bytes = sum(event_size(item) for item in self.items if _counts(item))

    def _shrink(self) -> None:
        if self.lossless:
            if self.bytes > self.limit and not self.full:
                self.full = True
                self.became_full()
            return
        self.items, saved, freed = compact(self.items)
        self.merged += saved
        self.bytes -= freed
        if self.bytes > 0.75 * self.limit:
            self.items, told = without_ended_generations(self.items)
            self.merged += len(told)
            self.bytes -= sum(map(event_size, told))
            for chunk in told:
                _note(self._told, chunk)
        if self.bytes > 0.75 * self.limit:
            self._give_up()
        self._compact_at = max(COMPACT_AT, 2 * len(self.items))

    def _give_up(self) -> None:
        """Drop what waits; from here on only count, until the reader comes back."""
        items, self.items = self.items, []
        self._lose_told(self._told)
        self._told = {}
        self.bytes = 0
        for item in items:
            if isinstance(item, Control):
                if item.kind != "chain_closed":
                    self.items.append(item)
            elif _counts(item):
                self._lose_unless_end(item, event_size(item))

    def _lose_unless_end(self, event: StreamEvent, size: int) -> None:
        """The end of a run is small, and nothing comes after it that would tell of it: it is kept if there is room."""
        if _ends(event) and self.bytes + size <= self.limit:
            self.items.append(event)
            self.bytes += size
        else:
            self._lose(event)

    def _lose(self, event: StreamEvent) -> None:
        _note(self._lost, event)
        self.dropped += 1

    def _lose_told(self, told: _LostByRun) -> None:
        """The ends that had their text are lost: they count as dropped, and no longer as merged."""
        count = sum(sum(lost.by_type.values()) for lost in told.values())
        self.merged -= count
        self.dropped += count
        _join(self._lost, told)

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
                run_id=run_id,
                source=self.source,
            )
            for run_id, lost in self._lost.items()
        ]

    @property
    def waiting(self) -> list[StreamEvent]:
        """The events that wait."""
        return [item for item in self.items if isinstance(item, StreamEvent)]


def _opens(item: Item) -> bool:
    return isinstance(item, Control) and item.kind == "run_opened"


def _ends(item: Item) -> bool:
    return isinstance(item, StreamEvent) and item.event_type is StreamEventType.RUN_END


def _counts(item: Item) -> TypeGuard[StreamEvent]:
    """Whether the item counts against the limit."""
    return isinstance(item, StreamEvent) and item.event_type is not StreamEventType.CHAIN_SNAPSHOT
