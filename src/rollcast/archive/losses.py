"""What could not be recorded, counted by run, so that a `gap` can stand for it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

import msgspec

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.view_fields import object_of

__all__ = ["Losses"]

T = StreamEventType


class _Span(msgspec.Struct):
    from_seq: int
    to_seq: int
    types: Counter[str]
    reason: str = ""


class Losses:
    """Events of each run from one `seq` to another, and how many there were of each type."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], _Span] = {}

    def __bool__(self) -> bool:
        return bool(self._runs)

    @property
    def count(self) -> int:
        """Of events."""
        return sum(span.types.total() for span in self._runs.values())

    def add(self, events: Iterable[StreamEvent], reason: str = "") -> None:
        """Count the events in."""
        for event in events:
            key = (event.source, event.run_id)
            data, types = object_of(event.data), Counter[str]()
            first, last = data.get("from_seq"), event.seq
            if event.event_type is T.GAP:
                dropped, to_seq = object_of(data.get("dropped")), data.get("to_seq")
                types.update({kind: n for kind, n in dropped.items() if isinstance(n, int)})
                last = max(last, to_seq if isinstance(to_seq, int) else -1)
            elif event.event_type is not T.CHAIN_SNAPSHOT:
                types[event.event_type.value] = 1
            self._join(key, _Span(first if isinstance(first, int) else event.seq, last, types, reason))

    def join(self, other: Losses, reason: str) -> None:
        """What the other counted is lost too."""
        for key, span in other._runs.items():
            self._join(key, msgspec.structs.replace(span, types=Counter(span.types), reason=reason))

    def _join(self, key: tuple[str, str], span: _Span) -> None:
        known = self._runs.get(key)
        if known is None:
            self._runs[key] = span
            return
        known.from_seq = min(known.from_seq, span.from_seq)
        known.to_seq = max(known.to_seq, span.to_seq)
        known.types.update(span.types)
        known.reason = known.reason or span.reason

    def forget(self, run_id: str) -> None:
        """Count nothing of this run."""
        for key in [key for key in self._runs if key[1] == run_id]:
            del self._runs[key]

    def clear(self) -> None:
        """Count nothing."""
        self._runs.clear()

    def gaps(self) -> list[StreamEvent]:
        """One `gap` for each run."""
        now = time.time()
        gaps = []
        for (source, run_id), span in self._runs.items():
            data = {
                "from_seq": span.from_seq,
                "to_seq": span.to_seq,
                "dropped": dict(span.types),
                "reason": span.reason,
            }
            gaps.append(StreamEvent(T.GAP, "", now, data, run_id=run_id, source=source))
        return gaps
