"""What a hub leaves out of what a producer publishes, until a `gap` stands for it. Pure."""

from __future__ import annotations

import msgspec

from rollcast.records import StreamEvent, StreamEventType

__all__ = ["Holes", "gap"]


class Holes:
    """What is left out in one `publish`, by run. Neighbouring events that are left out make one `gap`.

    Args:
        source: whose events they are.

    Attributes:
        waiting: by run, the `gap` to send before its next event.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self.waiting: dict[str, StreamEvent] = {}

    def add(self, event: StreamEvent, last_seq: int, reason: str, *, at: int | None = None) -> StreamEvent:
        """Leave out an event.

        Args:
            event: the one to leave out; or the one before which something is missing.
            last_seq: the last `seq` of the run before it. It is used if the event's own is no higher, since no other event is missing.
            reason: why.
            at: the `seq` of what is missing; None: the event's own.

        Returns:
            The `gap` so far.
        """
        seq = max(event.seq if at is None else at, last_seq, 0)
        counts = {str(event.event_type): 1} if at is None and event.event_type.known else {}
        return self._join(event.run_id, seq, seq, counts, reason)

    def span(self, event: StreamEvent, first: int, reason: str) -> StreamEvent:
        """Leave out everything from this `seq` up to the event."""
        return self._join(event.run_id, first, event.seq - 1, {}, reason)

    def before(self, run_id: str) -> list[StreamEvent]:
        """The `gap` to send before the next event of the run; empty if nothing was left out."""
        hole = self.waiting.pop(run_id, None)
        return [] if hole is None else [hole]

    def rest(self) -> list[StreamEvent]:
        """The gaps of the runs of which no event followed."""
        holes, self.waiting = list(self.waiting.values()), {}
        return holes

    def _join(self, run_id: str, first: int, last: int, counts: dict[str, int], reason: str) -> StreamEvent:
        known = self.waiting.get(run_id)
        if known is not None:
            data = known.data
            first, last = min(first, data["from_seq"]), max(last, data["to_seq"])
            reason = data["reason"]
            before = data["dropped"]
            # The types of what a span left out are not known.
            whole = bool(before) and bool(counts)
            counts = (
                {kind: before.get(kind, 0) + counts.get(kind, 0) for kind in before | counts} if whole else {}
            )
        hole = self.waiting[run_id] = gap(self._source, run_id, first, last, counts, reason)
        return hole


def gap(
    source: str, run_id: str, first: int, last: int, dropped: dict[str, int], reason: str, **rest: str
) -> StreamEvent:
    """A `gap` event for what is missing from one `seq` to another; `dropped` is empty if the types are not known."""
    event = StreamEvent.now(
        StreamEventType.GAP, "", from_seq=first, to_seq=last, dropped=dropped, reason=reason, **rest
    )
    return msgspec.structs.replace(event, seq=last, run_id=run_id, source=source)
