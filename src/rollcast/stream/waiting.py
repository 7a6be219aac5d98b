"""Chunks that wait in queues without their events.

A `WaitingChunk` has only the fields that differ from token to token. The event, its dict and its lists are made when a reader gets
them. While ten thousand chains generate, as many tokens wait. They take a third of the memory that their events would, and Python's
garbage collector has nothing to look through.

An `EncodableChunk` is for readers that only encode what they get, such as a log: the event is never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import msgspec
from msgspec import UNSET, UnsetType

from rollcast.records import StreamEvent, StreamEventType

__all__ = [
    "CHUNK_JSON",
    "ChunkData",
    "Encodable",
    "EncodableChunk",
    "EncodableEvent",
    "Event",
    "PackedValue",
    "Passage",
    "Place",
    "Relayed",
    "WaitingChunk",
    "chunk_of_line",
    "encodable",
    "encodable_of",
    "event_of",
    "merged_waiting",
    "only_of",
    "packed",
]

CHUNK = StreamEventType.LLM_GENERATION_CHUNK


class Place(msgspec.Struct, frozen=True, gc=False):
    """The fields that all events of a chain have in common."""

    run_id: str
    chain_id: str
    group_id: str | None
    source: str


@final
class WaitingChunk(msgspec.Struct, gc=False):
    """A chunk without its event. It refers to nothing that could refer back, so the garbage collector need not look through it.

    Attributes:
        token_ids, logprobs: the event's list; or, for a list of one, its value; or a tuple if chunks were merged, since the
            collector soon stops tracking a tuple of numbers.
        from_seq: the first chunk's, if chunks were merged.
        shared: whether several readers get it, all as the same event.
        made: that event, once it is made.
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
        """The event's."""
        return self.place.run_id

    @property
    def chain_id(self) -> str:
        """The event's."""
        return self.place.chain_id

    @property
    def source(self) -> str:
        """The event's."""
        return self.place.source

    @property
    def event_type(self) -> StreamEventType:
        """The event's."""
        return CHUNK

    def event(self) -> StreamEvent:
        """The event, made if need be. This is on the path of every token."""
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


class PackedValue(msgspec.Struct, gc=False, array_like=True):
    """A list of one number. Its JSON is that of the list, and the garbage collector need not look at it."""

    value: int | float


class ChunkData(msgspec.Struct, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """The `data` of an `EncodableChunk`: the fields and the JSON are those of the event's dict.

    Attributes:
        content, offset: the event's.
        token_ids, logprobs: the event's list; or, for a list of one, a `PackedValue`, which is only made here and never read.
        dt_ms, lengths, from_seq: the event's, if tokens were merged.
    """

    content: str
    offset: int
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    dt_ms: list[float] | UnsetType = UNSET
    lengths: list[int] | UnsetType = UNSET
    from_seq: int | UnsetType = UNSET


@final
class EncodableChunk(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A chunk for readers that only encode it: its JSON is that of its event, which need not be made.

    Its fields are those of `StreamEvent`, in the same order. It takes half the memory, and the garbage collector need not
    look through it.
    """

    event_type: StreamEventType
    chain_id: str
    timestamp: float
    data: ChunkData
    step: int | None
    depth: int | None
    seq: int
    run_id: str
    group_id: str | None
    source: str

    @property
    def from_seq(self) -> int | None:
        """The first chunk's `seq`, if chunks were merged."""
        return None if self.data.from_seq is UNSET else self.data.from_seq

    def event(self) -> StreamEvent:
        """The event, made anew."""
        data: dict[str, object] = {"content": self.data.content, "offset": self.data.offset}
        for name in ("token_ids", "logprobs"):
            values: Any = getattr(self.data, name)
            if values is not None:
                data[name] = [values.value] if values.__class__ is PackedValue else [*values]
        if self.data.from_seq is not UNSET:
            for name in ("dt_ms", "lengths", "from_seq"):
                if (value := getattr(self.data, name)) is not UNSET:
                    data[name] = [*value] if name != "from_seq" else value
        return StreamEvent(
            CHUNK, self.chain_id, self.timestamp, data, self.step, self.depth, self.seq, self.run_id, self.group_id,
            self.source,
        )  # fmt: skip


class EncodableEvent(msgspec.Struct, gc=False):
    """Any other event that was read from JSON, for readers that only pass it on: the dict of its data is made if somebody asks.

    Its fields are those of `StreamEvent`. Each type of event has a class of its own (fleet/reading.py).

    Attributes:
        event_type: of the class.
        data: a struct with the fields of the event's payload, and no others; a field that is not there is UNSET.
    """

    event_type: ClassVar[StreamEventType]

    chain_id: str
    timestamp: float
    data: Any
    step: int | None
    depth: int | None
    seq: int
    run_id: str
    group_id: str | None
    source: str

    def event(self) -> StreamEvent:
        """The event, made anew. It shares what is within its data: to copy that raises `RecursionError` if it nests too deeply."""
        data = msgspec.structs.asdict(self.data)
        if UNSET in data.values():
            data = {name: value for name, value in data.items() if value is not UNSET}
        return StreamEvent(
            self.event_type, self.chain_id, self.timestamp, data, self.step, self.depth, self.seq, self.run_id, self.group_id, self.source
        )  # fmt: skip


_decoder = msgspec.json.Decoder(EncodableChunk)
CHUNK_JSON = b'{"event_type":"llm_generation_chunk",'
_IDS, _LOGPROBS = b'"token_ids"', b'"logprobs"'  # within a text the quotes would be escaped


def chunk_of_line(line: bytes) -> EncodableChunk | None:
    """The chunk that a line of JSON describes, as `encode` writes it and with its usual fields; None for any other line."""
    if not line.startswith(CHUNK_JSON):
        return None
    try:
        chunk = _decoder.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if chunk.event_type is not CHUNK:
        return None  # the line has two types
    data = chunk.data
    if (data.token_ids is None and _IDS in line) or (data.logprobs is None and _LOGPROBS in line):
        return None  # there are none, rather than null
    if data.from_seq is UNSET:
        return chunk if data.dt_ms is data.lengths is UNSET else None
    return chunk if 0 <= data.from_seq <= chunk.seq else None


def packed(values: Any, kind: type[int | float]) -> Any:
    """A list of one value of exactly this type without the list; otherwise the argument itself."""
    if values.__class__ is list and len(values) == 1 and values[0].__class__ is kind:
        return PackedValue(*values)
    return values


Encodable = StreamEvent | EncodableChunk
Relayed = Encodable | EncodableEvent  # what a `Passage` has
PASSAGE_EVENTS = 512  # in one passage, at most, unless they came together


@final
class Passage(msgspec.Struct):
    """Events that follow each other and were read from JSON, as one item of a queue: nothing is done for each of them.

    It belongs to one queue, of a lossless reader that encodes what it gets.

    Attributes:
        events: the events, in order.
        lines: the JSON of each; None: it was made here.
        size: about how many bytes of memory they take.
    """

    events: list[Relayed]
    lines: list[bytes | None]
    size: int


Event = StreamEvent | WaitingChunk | EncodableChunk  # as it is in a queue


def only_of(values: Any, kind: type) -> Any:
    """The value in a list of one, if it is exactly of this type; otherwise the argument itself."""
    if values.__class__ is list and len(values) == 1 and values[0].__class__ is kind:
        return values[0]
    return values


def as_list(values: Any) -> Any:
    """A list like the one that `only_of` or merging was given."""
    return [values] if values.__class__ is int or values.__class__ is float else [*values]


def merged_waiting(chunks: list[WaitingChunk]) -> WaitingChunk:
    """Merge neighbouring chunks of one generation into one, at the place of the last; no event is made. It is in one queue only."""
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


_WITHOUT_EVENT = (WaitingChunk, EncodableChunk, EncodableEvent)


def event_of(item: Event | Relayed) -> StreamEvent:
    """The event itself, also for one that waits without it."""
    return item.event() if isinstance(item, _WITHOUT_EVENT) else item


def encodable(items: Sequence[Relayed]) -> Sequence[Encodable]:
    """What a reader gets that encodes what it gets: relayed events, but for tokens, are made."""
    return [item.event() if isinstance(item, EncodableEvent) else item for item in items]


def encodable_of(item: Event) -> Encodable:
    """What a reader that only encodes gets: the event is made if the item is a `WaitingChunk`."""
    return item.event() if type(item) is WaitingChunk else item
