"""Leaves out what a client has already, when a server sends it again from a record. Pure.

A cursor names a place in the record that is a little before the client's own place (recorded.py), and the record merges chunks
by itself. So after a return through the record a client may be sent once more what it has: whole events, and chunks of which it
has the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.lanes import end_status
from rollcast.serve.seen import without_beginning

__all__ = ["Repetitions"]

T = StreamEventType
Key = tuple[str, str]  # source, run_id
NEVER = 1 << 62
UNORDERED = (
    "the server merged this text with later text before its connection was lost, and sent it out of order"
)


class Repetitions:
    """How far a client is in each open generation, and what of the events that come it has already."""

    def __init__(self) -> None:
        # By run and chain: the step of the latest generation, and how many characters of it came.
        self._reached: dict[Key, dict[str, tuple[int, int]]] = {}
        self._before: dict[Key, int] = {}
        self._ended: Callable[[Key], bool] = lambda _: False
        self._returned = False

    def returned(self, last: Mapping[Key, int], ended: Callable[[Key], bool]) -> None:
        """The client comes back to a cursor.

        Args:
            last: the `seq` of the last event of each open run that it has.
            ended: whether it has the end of a run on a source.
        """
        self._before, self._ended, self._returned = dict(last), ended, True

    def new(self, events: list[StreamEvent]) -> list[StreamEvent]:
        """The events without what the client has."""
        if self._returned:
            events = [kept for event in events if (kept := self._new(event)) is not None]
        for event in events:
            self._note(event)
        return events

    def _new(self, event: StreamEvent) -> StreamEvent | None:
        key = (event.source, event.run_id)
        before = self._before.get(key)
        if before is None:
            return None if self._ended(key) else event
        kind = event.event_type
        if kind is T.LLM_GENERATION_CHUNK:
            if event.data.get("from_seq", event.seq) > before:
                return event
            return self._rest_of(event, key, before)
        if kind is T.GAP:
            return self._gap_after(event, before)
        if kind is T.CHAIN_SNAPSHOT and self._tells_more(event, key, before):
            return event
        return event if event.seq > before else None

    def _tells_more(self, snapshot: StreamEvent, key: Key, before: int) -> bool:
        """Whether a snapshot that was recorded has text that the client lacks: nobody watched when it was made (docs/hub.md)."""
        if snapshot.data["as_of"] >= before:
            return True
        content, step = snapshot.data["content"], snapshot.step or 0
        known, end = self._reached.get(key, {}).get(snapshot.chain_id, (step, 0))
        come = 0 if content is None else snapshot.data.get("content_omitted", 0) + len(content)
        return step > known or (step == known and come > end)

    @staticmethod
    def _gap_after(gap: StreamEvent, before: int) -> StreamEvent | None:
        """What of a gap the client did not get in another way. It may have more of a run than the record of a process that died."""
        since, until = gap.data["from_seq"], gap.data["to_seq"]
        if since > before:
            return gap
        if until is not None and until <= before and "run_status" not in gap.data:
            return None
        until = None if until is None else max(until, before + 1)
        data = gap.data | {"from_seq": before + 1, "to_seq": until}
        return msgspec.structs.replace(gap, seq=max(gap.seq, before + 1), data=data)

    def _rest_of(self, chunk: StreamEvent, key: Key, before: int) -> StreamEvent | None:
        """What of a chunk the client does not have. It has some of it, or all, or it was given what came after it."""
        offset, content, step = chunk.data["offset"], chunk.data["content"], chunk.step or 0
        known, end = self._reached.get(key, {}).get(chunk.chain_id, (step, 0))
        if step < known or (step == known and offset + len(content) <= end):
            return None
        if chunk.seq <= before:
            told = {"from_seq": chunk.data.get("from_seq", chunk.seq), "to_seq": chunk.seq}
            why: dict[str, Any] = {"dropped": {T.LLM_GENERATION_CHUNK.value: 1}, "reason": UNORDERED}
            return msgspec.structs.replace(
                chunk, event_type=T.GAP, chain_id="", group_id=None, step=None, data=told | why
            )
        if step > known or offset >= end:
            return chunk
        return without_beginning(chunk, end, before + 1)

    def _note(self, event: StreamEvent) -> None:
        kind, data = event.event_type, event.data
        if kind is T.LLM_GENERATION_CHUNK:
            of_run = self._reached.setdefault((event.source, event.run_id), {})
            of_run[event.chain_id] = (event.step or 0, data.get("offset", 0) + len(data.get("content", "")))
        elif kind is T.CHAIN_SNAPSHOT:
            content = data.get("content")
            come = NEVER if content is None else data.get("content_omitted", 0) + len(content)
            of_run = self._reached.setdefault((event.source, event.run_id), {})
            of_run[event.chain_id] = (event.step or 0, come)
        elif kind is T.LLM_GENERATION_END:
            of_run = self._reached.setdefault((event.source, event.run_id), {})
            of_run[event.chain_id] = (event.step or 0, NEVER)
        elif end_status(event) is not None:
            self._reached.pop((event.source, event.run_id), None)
            self._before.pop((event.source, event.run_id), None)
