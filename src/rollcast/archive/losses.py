"""What could not be recorded, counted by run and source, so that a `gap` can stand for it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.view_fields import object_of
from rollcast.stream.waiting import EncodableChunk, Relayed

__all__ = ["Losses"]

T = StreamEventType
CHUNK = T.LLM_GENERATION_CHUNK


class _Span(msgspec.Struct):
    from_seq: int
    to_seq: int
    types: dict[str, int]
    reason: str = ""

    def add(self, events: list[Relayed]) -> None:
        """Count events in. Those for which a `gap` stands count, and a snapshot does not."""
        self.to_seq = max(self.to_seq, *[event.seq for event in events])
        kinds = Counter([event.event_type for event in events])
        if kinds.pop(T.GAP, 0):
            for event in events:
                if event.event_type is T.GAP:
                    self.add_gap(object_of(event.data))
        kinds.pop(T.CHAIN_SNAPSHOT, 0)
        self.add_types(kinds)
        firsts = [_first_seq(event) for event in events if event.event_type in kinds]
        self.from_seq = min([self.from_seq, *firsts])

    def add_gap(self, data: dict[str, Any]) -> None:
        """What a gap stands for."""
        first, last = data.get("from_seq"), data.get("to_seq")
        self.from_seq = min(self.from_seq, first) if isinstance(first, int) else self.from_seq
        self.to_seq = max(self.to_seq, last) if isinstance(last, int) else self.to_seq
        self.add_types(object_of(data.get("dropped")))

    def add_types(self, types: Mapping[Any, Any]) -> None:
        """So many more events of each type."""
        for kind, count in types.items():
            if isinstance(count, int):
                self.types[kind] = self.types.get(kind, 0) + count


def _first_seq(event: Relayed) -> int:
    """From which `seq` on it tells what happened."""
    if event.event_type is CHUNK or not event.event_type.known:
        found: Any = (
            event.from_seq if isinstance(event, EncodableChunk) else object_of(event.data).get("from_seq")
        )
        if found.__class__ is int:
            return found
    return event.seq


def _by_run(events: list[Relayed]) -> dict[tuple[str, str], list[Relayed]]:
    """The events of each source and run; most blocks are of one."""
    keys = {(event.source, event.run_id) for event in events}
    if len(keys) == 1:
        return {keys.pop(): events}
    by_run: dict[tuple[str, str], list[Relayed]] = {}
    for event in events:
        by_run.setdefault((event.source, event.run_id), []).append(event)
    return by_run


class Losses:
    """Events of each run and source from one `seq` to another, and how many there were of each type."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], _Span] = {}

    def __bool__(self) -> bool:
        return bool(self._runs)

    @property
    def count(self) -> int:
        """Of events."""
        return sum(sum(span.types.values()) for span in self._runs.values())

    def add(self, events: list[Relayed], reason: str = "") -> None:
        """Count the events in."""
        for key, of_run in _by_run(events).items():
            span = self._runs.get(key)
            if span is None:
                first = of_run[0].seq
                span = self._runs[key] = _Span(first, first, {}, reason)
            span.add(of_run)

    def join(self, other: Losses, reason: str) -> None:
        """What the other counted is lost too."""
        for key, span in other._runs.items():
            self._join(key, msgspec.structs.replace(span, types=dict(span.types), reason=reason))

    def _join(self, key: tuple[str, str], span: _Span) -> None:
        known = self._runs.get(key)
        if known is None:
            self._runs[key] = span
            return
        known.from_seq = min(known.from_seq, span.from_seq)
        known.to_seq = max(known.to_seq, span.to_seq)
        known.add_types(span.types)
        known.reason = known.reason or span.reason

    def forget(self, run_id: str, source: str) -> None:
        """Count nothing of this run on this source."""
        self._runs.pop((source, run_id), None)

    def clear(self) -> None:
        """Count nothing."""
        self._runs.clear()

    def gaps(self) -> list[StreamEvent]:
        """One `gap` for each run and source."""
        now = time.time()
        gaps = []
        for (source, run_id), span in self._runs.items():
            data = {
                "from_seq": span.from_seq,
                "to_seq": span.to_seq,
                "dropped": {str(kind): count for kind, count in span.types.items()},
                "reason": span.reason,
            }
            gaps.append(StreamEvent(T.GAP, "", now, data, seq=span.to_seq, run_id=run_id, source=source))
        return gaps
