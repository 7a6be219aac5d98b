"""A chunk while it waits in queues: what differs from token to token, without the event.

The event, its dict and its lists are made when a reader gets them. While ten thousand chains speak, as many tokens wait: what
they take is a third of their events' memory, and Python's collector has nothing to look through.
"""

from __future__ import annotations

from typing import Any, final

import msgspec

from rollcast.records import StreamEvent, StreamEventType

__all__ = ["Event", "Place", "WaitingChunk", "event_of", "merged_waiting", "only_of"]

CHUNK = StreamEventType.LLM_GENERATION_CHUNK


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where an event was said: what all events of a chain have in common."""

    run_id: str
    chain_id: str
    group_id: str | None
    source: str


@final
class WaitingChunk(msgspec.Struct, gc=False):
    """See above. Nothing that it holds knows of queues, so the collector need not look through it.

    Attributes:
        token_ids, logprobs: as the event has them; the one value of a list of one; a tuple if chunks were merged: of numbers
            alone, the collector forgets it soon.
        from_seq: of the first, if chunks were merged.
        shared: several readers get it, all of them the same event.
        made: that event, if it has been made.
    """

    place: Place
    content: str
    offset: int
    token_ids: int | list[int] | tuple[int, ...] | None
    logprobs: float | list[float] | tuple[float, ...] | None
    step: int | None
    depth: int | None
    seq: int
    timestamp: float
    shared: bool
    from_seq: int | None = None
    made: StreamEvent | None = None

    @property
    def run_id(self) -> str:
        """Of the event."""
        return self.place.run_id

    @property
    def chain_id(self) -> str:
        """Of the event."""
        return self.place.chain_id

    @property
    def event_type(self) -> StreamEventType:
        """Of the event."""
        return CHUNK

    def event(self) -> StreamEvent:
        """The event. This is on the path of every token."""
        if self.made is not None:
            return self.made
        ids, logprobs, place = self.token_ids, self.logprobs, self.place
        data: dict[str, object] = {"content": self.content, "offset": self.offset}
        if ids is not None:
            data["token_ids"] = as_list(ids)
        if logprobs is not None:
            data["logprobs"] = as_list(logprobs)
        if self.from_seq is not None:
            data["from_seq"] = self.from_seq
        event = StreamEvent(
            CHUNK,
            place.chain_id,
            self.timestamp,
            data,
            self.step,
            self.depth,
            self.seq,
            place.run_id,
            place.group_id,
            place.source,
        )
        if self.shared:
            self.made = event
        return event


Event = StreamEvent | WaitingChunk  # as a queue has it


def only_of(values: Any, kind: type) -> Any:
    """The one value of a list of one, if it is exactly of this kind; else what was given."""
    if values.__class__ is list and len(values) == 1 and values[0].__class__ is kind:
        return values[0]
    return values


def as_list(values: Any) -> Any:
    """What `only_of` was given; what was merged, as a list."""
    if values.__class__ is int or values.__class__ is float:
        return [values]
    return list(values) if values.__class__ is tuple else values


def merged_waiting(chunks: list[WaitingChunk]) -> WaitingChunk:
    """Neighbouring chunks of one generation as one, at the place of the last; no event is made. It is in one queue alone."""
    first, last = chunks[0], chunks[-1]
    content = "".join([c.content for c in chunks])
    from_seq = first.seq if first.from_seq is None else first.from_seq
    ids, logprobs = _joined([c.token_ids for c in chunks]), _joined([c.logprobs for c in chunks])
    place, step, depth, now = last.place, last.step, last.depth, last.timestamp
    return WaitingChunk(
        place, content, first.offset, ids, logprobs, step, depth, last.seq, now, False, from_seq
    )


def _joined(of_each: list[Any]) -> tuple[Any, ...] | None:
    if None in of_each:
        return None
    return tuple([value for of_one in of_each for value in as_list(of_one)])


def event_of(item: Event) -> StreamEvent:
    """The event of what waits."""
    return item.event() if type(item) is WaitingChunk else item
