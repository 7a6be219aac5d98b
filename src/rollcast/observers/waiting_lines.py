"""Lines that wait to be written, and what could not be: counted, so that a `gap` line can stand for it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol

from rollcast.records import StreamEvent, StreamEventType, encode_lines
from rollcast.records.codec import encode_described
from rollcast.text import escape_surrogates

__all__ = ["LineSink", "WaitingLines"]

T = StreamEventType
CHUNK = T.LLM_GENERATION_CHUNK  # T.… is slow, once an event
_log = logging.getLogger(__name__)
_count_log = logging.getLogger(f"{__name__}.count")  # silenced by whoever says it in other words
_RUNS = 1024  # open ones whose lines are accounted for, the latest

_type_of, _run_of = attrgetter("event_type"), attrgetter("run_id")

Key = tuple[str, str]  # source and run id


class LineSink(Protocol):
    """Where lines go; `name` is what people call it."""

    name: str

    def write(self, data: bytes) -> tuple[int, OSError | None]:
        """Append lines. How many of them are there whole, and what kept the others out."""
        ...

    def what_became_of_it(self) -> str | None:
        """Why what was written is not there any more; None if it is."""
        ...

    def close(self) -> None:
        """Let go, until the next write."""
        ...


@dataclass
class _Span:
    """Events of one run, from one `seq` to another, and how many there were of each type."""

    from_seq: int
    to_seq: int
    types: Counter[str] = field(default_factory=Counter)
    reason: str = ""

    def join(self, other: _Span) -> None:
        self.from_seq = min(self.from_seq, other.from_seq)
        self.to_seq = max(self.to_seq, other.to_seq)
        self.types.update(other.types)


class WaitingLines:
    """What waits to be written, and what could not be. Knows nothing of the observer, so that it can outlive it.

    Its methods may be called from any thread.

    Args:
        sink: where lines go.
        flush_bytes: from which on they are `full`.
    """

    def __init__(self, sink: LineSink, flush_bytes: int) -> None:
        self.incomplete: str | None = None  # why the sink lacks events
        self._sink = sink
        self._flush_bytes = flush_bytes
        self._events: list[StreamEvent] = []
        self._chunks: list[bytes] = []
        self._size = 0
        self._lost: dict[Key, _Span] = {}
        self._past: dict[Key, _Span] = {}  # of the runs that are open: what came before what waits
        self._dropped = Counter[str]()
        self._failing = False
        self._told = 0  # how many lost events were told of
        self._lock = threading.RLock()
        self._pid = os.getpid()

    @property
    def full(self) -> bool:
        """Enough waits to be written."""
        return self._size >= self._flush_bytes

    def add(self, events: list[StreamEvent]) -> None:
        """Have the events wait."""
        try:
            data = encode_lines(events)
        except Exception:  # noqa: BLE001  user-made data: whatever its encoding raises, the other events are written
            data = b"".join([encode_described(event) + b"\n" for event in events])
        self._leave_parents_lines()
        with self._lock:
            self._events += events
            self._chunks.append(data)
            self._size += len(data)

    def flush(self) -> OSError | None:
        """Write what waits. Returns the failure if it is the first since a success."""
        self._leave_parents_lines()
        with self._lock:
            if not self._events and not self._lost:
                return None
            self._look_after_the_past()
            gaps = [_gap(key, lost) for key, lost in self._lost.items()]
            keys = list(self._lost)
            written, error = self._sink.write(encode_lines(gaps) + b"".join(self._chunks))
            for key in keys[:written]:
                del self._lost[key]
            if error is not None:
                self._lose(self._events[max(written - len(gaps), 0) :], error)
            self._account()
            self._clear()
            first = error is not None and not self._failing
            self._failing = error is not None
            return error if first else None

    def run_closed(self, run_id: str) -> None:
        """Nothing more comes of the run: what was written of it is where it is."""
        with self._lock:
            for key in [key for key in self._past if key[1] == run_id]:
                del self._past[key]

    def close(self) -> None:
        """Write what waits, as far as that goes, and let go of the file."""
        error = self.flush()
        with self._lock:
            if error is not None or self._lost:
                dropped = sum((lost.types for lost in self._lost.values()), Counter[str]())
                if dropped.total() != self._told:
                    self._told = dropped.total()
                    by_type = {str(kind): n for kind, n in dropped.items()}
                    _count_log.warning("%d events could not be written: %s", self._told, by_type)
            self._sink.close()

    # -- the lock is held ----------------------------------------------------------------------------------------------

    def _look_after_the_past(self) -> None:
        """If the file was taken away, a gap stands for what it had of the runs that are open."""
        became = self._sink.what_became_of_it()
        if became is None:
            return
        reason = f"the file was {became} while it was written; events from before may be missing from it"
        _log.warning("%s was %s while it was written; it is begun anew", self._sink.name, became)
        self.incomplete = f"it was {became} while it was written"
        for key, past in self._past.items():
            lost = self._lost.get(key)  # is part of that past
            why = reason if lost is None else f"{reason}; {lost.reason}"
            self._lost[key] = _Span(past.from_seq, past.to_seq, Counter(past.types), why)

    def _lose(self, events: list[StreamEvent], error: OSError) -> None:
        why = error.strerror or str(error)
        for key, span in _spans(events):
            self._dropped.update(span.types)
            if key in self._lost:
                self._lost[key].join(span)
            else:
                span.reason = f"the file could not be written: {why}"
                self._lost[key] = span
        if events:
            self.incomplete = f"{self._dropped.total():,} events could not be written: {why}"

    def _account(self) -> None:
        """What was written or lost is past; what is past of a run that has ended need not be known."""
        for key, span in _spans(self._events):
            past = self._past.get(key)
            if T.RUN_END in span.types:
                self._past.pop(key, None)
            elif past is None:
                self._past[key] = span
                if len(self._past) > _RUNS:
                    del self._past[next(iter(self._past))]
            else:
                past.join(span)

    def _clear(self) -> None:
        self._events, self._chunks, self._size = [], [], 0

    def _leave_parents_lines(self) -> None:
        """A forked child drops what waits: its parent has it too, and writes it."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.RLock()  # a thread that is not here may hold the parent's
            self._lost.clear()
            self._past.clear()
            self._clear()


def _spans(events: list[StreamEvent]) -> Iterator[tuple[Key, _Span]]:
    """The events by their runs."""
    if not events:
        return
    runs_of_events = [*map(_run_of, events)]
    if runs_of_events.count(runs_of_events[0]) == len(events):  # the common case; a set would hash each
        yield (events[0].source, events[0].run_id), _span(events)
        return
    runs: dict[Key, list[StreamEvent]] = {}
    for event in events:
        runs.setdefault((event.source, event.run_id), []).append(event)
    for key, of_run in runs.items():
        yield key, _span(of_run)


def _span(events: list[StreamEvent]) -> _Span:
    """Events of one run."""
    first, last = events[0], events[-1]
    span = _Span(_seq(first, "from_seq"), last.seq, _types(events))
    gaps = span.types.pop(T.GAP, 0)
    for event in events if gaps else ():
        if event.event_type == T.GAP:  # it stands for others
            span.types.update(_counts(event))
            span.from_seq = min(span.from_seq, _seq(event, "from_seq"))
            span.to_seq = max(span.to_seq, event.seq, _seq(event, "to_seq"))
    return span


def _types(events: list[StreamEvent]) -> Counter[str]:
    """How many there are of each type. Most are chunks, and an enum's hash is slow."""
    kinds = [*map(_type_of, events)]
    chunks = kinds.count(CHUNK)
    types = (
        Counter[str](kind for kind in kinds if kind is not CHUNK) if chunks < len(kinds) else Counter[str]()
    )
    if chunks:
        types[CHUNK] = chunks
    return types


def _seq(event: StreamEvent, name: str) -> int:
    """`from_seq` or `to_seq` of the events for which it stands, merged chunks or a gap; else its own."""
    found = event.data.get(name)
    return found if isinstance(found, int) else event.seq


def _counts(event: StreamEvent) -> dict[str, int]:
    dropped = event.data.get("dropped")
    if not isinstance(dropped, dict):  # made by hand
        return {}
    return {str(kind): n for kind, n in dropped.items() if isinstance(n, int)}


def _gap(key: Key, lost: _Span) -> StreamEvent:
    source, run_id = map(escape_surrogates, key)
    data = {
        "from_seq": lost.from_seq,
        "to_seq": lost.to_seq,
        "dropped": {escape_surrogates(str(kind)): n for kind, n in lost.types.items()},
        "reason": lost.reason,
    }
    return StreamEvent(T.GAP, "", time.time(), data, run_id=run_id, source=source)
