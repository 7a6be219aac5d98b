"""What could not be recorded, counted by run and source, so that a `gap` can stand for it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import msgspec

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.view_fields import object_of

__all__ = ["Losses"]

T = StreamEventType


class _Span(msgspec.Struct):
    from_seq: int
    to_seq: int
    types: dict[str, int]
    reason: str = ""

    def add_gap(self, data: dict[str, Any]) -> None:
        """What a gap stands for."""
        first, last = data.get("from_seq"), data.get("to_seq")
        self.from_seq = min(self.from_seq, first) if isinstance(first, int) else self.from_seq
        self.to_seq = max(self.to_seq, last) if isinstance(last, int) else self.to_seq
        self.add_types(object_of(data.get("dropped")))

    def add_types(self, types: dict[str, Any]) -> None:
        """So many more events of each type."""
        for kind, count in types.items():
            if isinstance(count, int):
                self.types[kind] = self.types.get(kind, 0) + count


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

    def add(self, events: Iterable[StreamEvent], reason: str = "") -> None:
        """Count the events in."""
        span, of = None, ("", "")
        for event in events:
            kind, seq = event.event_type, event.seq
            if span is None or event.run_id != of[1] or event.source != of[0]:
                of = (event.source, event.run_id)
                span = self._runs.get(of)
                if span is None:
                    span = self._runs[of] = _Span(seq, seq, {}, reason)
            if seq > span.to_seq:  # noqa: PLR1730  (a third of what `max` costs)
                span.to_seq = seq
            if kind is T.GAP:
                span.add_gap(object_of(event.data))
            elif kind is not T.CHAIN_SNAPSHOT:
                span.types[kind] = span.types.get(kind, 0) + 1
                data: Any = event.data
                first = data.get("from_seq", seq) if data.__class__ is dict else seq
                if first.__class__ is int and first < span.from_seq:
                    span.from_seq = first

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
