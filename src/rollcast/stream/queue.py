"""A bounded queue of events for a reader that may fall behind.

`put_nowait` never waits. When the reader falls behind, `compact` merges neighbouring chunks. If even that exceeds the limit,
everything that waits is dropped and counted by type, until the reader comes back: it then gets one `gap` for each run, and a
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

__all__ = ["Control", "EventQueue", "Item", "chunk_size", "compact", "event_size", "merged_chunks"]

CHUNK = StreamEventType.LLM_GENERATION_CHUNK
GENERATION_END = StreamEventType.LLM_GENERATION_END

_SEQUENCES = (list, tuple)

CONTROL_SIZE = 240  # bytes of memory
COMPACT_AT = 2048  # queued events; from here on a slow reader's chunks merge


class Control(msgspec.Struct, frozen=True):
    """An item that is not an event: a hook to call, or a promise to fulfil once everything before it has been handed over."""

    kind: Literal["run_opened", "run_closed", "chain_closed", "barrier"]
    run_id: str = ""
    chain_id: str = ""
    done: Future[None] | None = None


Item = StreamEvent | Control


def event_size(event: StreamEvent) -> int:
    """About how many bytes of memory the event keeps alive; good enough to bound a queue."""
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

    Chunks are neighbours if no other event of their chain and no barrier stands between them; the merged one takes
    the place of the last, so `seq` still rises.
    """
    runs_of_chunks: dict[
        tuple[str, str], tuple[int | None, list[int]]
    ] = {}  # with the step of the generation
    groups: list[list[int]] = []
    for i, item in enumerate(queue):
        if isinstance(item, Control):
            if item.kind == "chain_closed":
                runs_of_chunks.pop((item.run_id, item.chain_id), None)
            elif item.kind == "barrier":  # its owner may hold snapshots that cover what stands before it
                runs_of_chunks.clear()
            continue
        key = (item.run_id, item.chain_id)
        if item.event_type is StreamEventType.GAP:
            runs_of_chunks.clear()
        elif item.event_type is not CHUNK:
            runs_of_chunks.pop(key, None)
        elif key in runs_of_chunks and runs_of_chunks[key][0] == item.step:
            runs_of_chunks[key][1].append(i)
        else:  # the first, or the first of the next generation if a filter leaves out what is between
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
    """The queue without the chunks of generations whose end is queued too (it has the whole text); and those chunks."""
    ended: set[tuple[str, str, int | None]] = set()
    kept: list[Item] = []
    superseded: list[StreamEvent] = []
    for item in reversed(queue):
        if isinstance(item, StreamEvent):
            key = (item.run_id, item.chain_id, item.step)
            if item.event_type is GENERATION_END:
                ended.add(key)
            elif item.event_type is CHUNK and key in ended:
                superseded.append(item)
                continue
        kept.append(item)
    return kept[::-1], superseded


class _Loss:
    """The events of one run that the reader did not get."""

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

    def join(self, other: _Loss) -> None:
        self.from_seq = min(self.from_seq, other.from_seq)
        self.to_seq = max(self.to_seq, other.to_seq)
        self.by_type.update(other.by_type)


_LossByRun = dict[str, _Loss]


def _note(lost: _LossByRun, event: StreamEvent) -> None:
    if event.run_id not in lost:
        lost[event.run_id] = _Loss(event.seq)
    lost[event.run_id].add(event)


def _join(lost: _LossByRun, others: _LossByRun) -> None:
    for run_id, other in others.items():
        if run_id in lost:
            lost[run_id].join(other)
        else:
            lost[run_id] = other


class EventQueue:
    """Events that wait for one reader, and counts of those that it will not get.

    Args:
        reader: the reader's name, for the `reason` of a `gap`.
        limit: bytes of memory that the waiting events may take.
        lossless: nothing is merged or dropped; `full` says that the producer must wait.
        source: as events carry it.
    """

    def __init__(self, reader: str, limit: int, *, lossless: bool = False, source: str = "") -> None:
        self.reader = reader
        self.limit = limit
        self.lossless = lossless
        self.source = source
        self.full = False
        self.awake = False  # the reader is at work, or has been woken
        self.merged = self.dropped = 0
        self.items: list[Item] = []
        self.mixed = False  # there may be controls among the events
        self.bytes = 0
        self._compact_at = COMPACT_AT
        self._lost: _LossByRun = {}
        self._superseded: _LossByRun = {}  # chunks dropped because a queued end repeats their text
        self._superseded_taken: _LossByRun = {}  # by the ends that were taken last

    def wake(self) -> None:
        """Called when something waits and the reader is not awake."""
        self.awake = True

    def became_full(self) -> None:
        """Called when a lossless queue reaches its limit."""

    def put_nowait(self, event: StreamEvent, size: int) -> None:
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
        """Queue a hook. A `chain_closed` counts against the limit; after a loss it is left out, since snapshots will follow."""
        if control.kind == "chain_closed":
            if self._lost:
                return
            self.bytes += CONTROL_SIZE
            if self.bytes > self.limit and not self.lossless:
                self._shrink()
        self.put_uncounted([control])

    def put_uncounted(self, items: list[Item]) -> None:
        """Queue what does not count against the limit: snapshots (bounded by the open chains), and controls."""
        if self._lost:  # newer snapshots will follow the gap
            items = [item for item in items if isinstance(item, Control)]
        if not items:
            return
        self.items += items
        self.mixed = True
        if not self.awake:
            self.wake()

    def take_nowait(self, snapshots: Iterable[StreamEvent]) -> list[Item]:
        """Everything that waits, oldest first. If events were dropped, gaps and these `snapshots` of the open chains come first."""
        items, self.items = self.items, []
        self.mixed = False
        if len(items) < COMPACT_AT:  # else as many may wait again, mostly chunks of different chains
            self._compact_at = COMPACT_AT
        if self._lost:
            opened = [item for item in items if _opens(item)]  # a gap of a run comes after its opening
            items = [*opened, *self._gaps(), *snapshots, *(item for item in items if not _opens(item))]
            self._lost = {}
        self._superseded_taken, self._superseded = self._superseded, {}
        self.bytes = 0
        return items

    def put_back(self, items: list[Item]) -> None:
        """Put what was taken and not read in front again; if events were dropped since, the gap covers it as well."""
        if self._lost:
            for item in items:
                if _counts(item) and not _ends(item):
                    self._lose(item)
            items = [item for item in items if isinstance(item, Control) or _ends(item)]
            self._lose_superseded(self._superseded_taken)
        else:
            _join(self._superseded, self._superseded_taken)
        self._superseded_taken = {}
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
            self.items, superseded = without_ended_generations(self.items)
            self.merged += len(superseded)
            self.bytes -= sum(map(event_size, superseded))
            for chunk in superseded:
                _note(self._superseded, chunk)
        if self.bytes > 0.75 * self.limit:
            self._give_up()
        self._compact_at = max(COMPACT_AT, 2 * len(self.items))

    def lose_all(self) -> None:
        """Drop what waits, as if the limit had been exceeded: a `gap` will stand for it."""
        self._give_up()

    def _give_up(self) -> None:
        """Drop what waits, and only count from here on, until the reader comes back."""
        items, self.items = self.items, []
        self._lose_superseded(self._superseded)
        self._superseded = {}
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

    def _lose_superseded(self, superseded: _LossByRun) -> None:
        """The ends that repeated their text are lost, so these count as dropped and no longer as merged."""
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
