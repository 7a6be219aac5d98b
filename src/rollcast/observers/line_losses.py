"""Counts of events that a log lacks, by run, so that a `gap` line can stand for them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from rollcast.records import StreamEvent, StreamEventType
from rollcast.stream.waiting import Encodable, EncodableChunk
from rollcast.text import escape_surrogates

__all__ = ["LineLosses", "Lost"]

T = StreamEventType
CHUNK = T.LLM_GENERATION_CHUNK  # looking up T.… for every event is slow
_RUNS = 1024  # how many open runs are accounted for, the latest ones

_type_of, _run_of = attrgetter("event_type"), attrgetter("run_id")

Key = tuple[str, str]  # source and run id


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


Lost = list[tuple[Key, _Span]]


class LineLosses:
    """What a log was given of each open run, and what it lacks. Its owner guards it with a lock.

    Attributes:
        incomplete: why the log lacks events; None if it has them all.
        lost: what it lacks, by source and run.
    """

    def __init__(self) -> None:
        self.incomplete: str | None = None
        self.lost: dict[Key, _Span] = {}
        self._past: dict[Key, _Span] = {}  # by open run: what came before the waiting events
        self._dropped = Counter[str]()

    def take(self) -> tuple[Lost, list[StreamEvent]]:
        """What is lost, which then counts as written, and the gaps that stand for it."""
        lost = list(self.lost.items())
        self.lost.clear()
        return lost, [_gap(key, span) for key, span in lost]

    def past_is_gone(self, became: str) -> None:
        """The file is gone: let a gap stand for what it had of the open runs."""
        reason = f"the file was {became} while it was written; events from before may be missing from it"
        self.incomplete = f"it was {became} while it was written"
        for key, past in self._past.items():
            lost = self.lost.get(key)  # a part of that past
            why = reason if lost is None else f"{reason}; {lost.reason}"
            self.lost[key] = _Span(past.from_seq, past.to_seq, Counter(past.types), why)

    def lose(self, events: list[Encodable], error: OSError) -> None:
        """Count events that this error kept out of the log."""
        why = error.strerror or str(error)
        for key, span in _spans(events):
            self._dropped.update(span.types)
            if key in self.lost:
                self.lost[key].join(span)
            else:
                span.reason = f"the file could not be written: {why}"
                self.lost[key] = span
        if events:
            self.incomplete = f"{self._dropped.total():,} events could not be written: {why}"

    def lose_again(self, spans: Lost) -> None:
        """Keep spans as lost whose gaps could not be written either."""
        for key, span in spans:
            later = self.lost.get(key)
            if later is not None:
                span.join(later)
            self.lost[key] = span

    def account(self, events: list[Encodable]) -> None:
        """Add events that were written or lost to the past of their runs; forget the past of runs that have ended."""
        for key, span in _spans(events):
            past = self._past.get(key)
            if T.RUN_END in span.types:
                self._past.pop(key, None)
            elif past is None:
                self._past[key] = span
                if len(self._past) > _RUNS:
                    del self._past[next(iter(self._past))]
            else:
                past.join(span)

    def unwritten(self, waiting: list[Encodable]) -> Counter[str]:
        """What is lost and these events, by type; a gap counts as the events that it stands for."""
        spans = [span for _, span in _spans(waiting)]
        return sum((span.types for span in [*self.lost.values(), *spans]), Counter[str]())

    def run_closed(self, run_id: str) -> None:
        """Forget what was written of a run, since nothing more comes of it."""
        for key in [key for key in self._past if key[1] == run_id]:
            del self._past[key]

    def clear(self) -> None:
        """Forget everything but why the log is incomplete."""
        self.lost.clear()
        self._past.clear()


def _spans(events: list[Encodable]) -> Iterator[tuple[Key, _Span]]:
    """The events grouped by run."""
    if not events:
        return
    runs_of_events = [*map(_run_of, events)]
    if runs_of_events.count(runs_of_events[0]) == len(events):  # the common case; a set would hash each
        yield (events[0].source, events[0].run_id), _span(events)
        return
    runs: dict[Key, list[Encodable]] = {}
    for event in events:
        runs.setdefault((event.source, event.run_id), []).append(event)
    for key, of_run in runs.items():
        yield key, _span(of_run)


def _span(events: list[Encodable]) -> _Span:
    """The span of one run's events."""
    first, last = events[0], events[-1]
    span = _Span(_seq(first, "from_seq"), last.seq, _types(events))
    gaps = span.types.pop(T.GAP, 0)
    for event in events if gaps else ():
        if event.event_type == T.GAP:  # it stands for other events
            span.types.update(_counts(event))
            span.from_seq = min(span.from_seq, _seq(event, "from_seq"))
            span.to_seq = max(span.to_seq, event.seq, _seq(event, "to_seq"))
    return span


def _types(events: list[Encodable]) -> Counter[str]:
    """How many events there are of each type. Most are chunks, and hashing an enum is slow."""
    kinds = [*map(_type_of, events)]
    chunks = kinds.count(CHUNK)
    types = (
        Counter[str](kind for kind in kinds if kind is not CHUNK) if chunks < len(kinds) else Counter[str]()
    )
    if chunks:
        types[CHUNK] = chunks
    return types


def _seq(event: Encodable, name: str) -> int:
    """`from_seq` or `to_seq` if the event stands for others, as merged chunks and gaps do; otherwise its own `seq`."""
    if isinstance(event, EncodableChunk):  # it is not merged
        return event.seq
    found = event.data.get(name)
    return found if isinstance(found, int) else event.seq


def _counts(event: Encodable) -> dict[str, int]:
    dropped = None if isinstance(event, EncodableChunk) else event.data.get("dropped")
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
