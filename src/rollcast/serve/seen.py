"""What a client has of the events that follow a checkpoint, as a few characters of its cursor. Pure.

A cursor names a place in the record that is a little before the client's own place (recorded.py). If what lies between is of one
run on one source and not much, the cursor says how far the client is there, so that none of it is sent again: not to a client that begins with the
cursor of another one either, which cannot tell what it has.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.codec import decode_unchecked, encode
from rollcast.records.lanes import Lane
from rollcast.serve.history import Entry

__all__ = ["MOST_EVENTS", "Seen", "without_beginning"]

CHUNK = StreamEventType.LLM_GENERATION_CHUNK
MOST_EVENTS = 256  # between a checkpoint and a cursor that says how far the client is
MOST_CHAINS = 16


class _Text(msgspec.Struct):
    content: str
    offset: int


class _Chunk(msgspec.Struct):
    data: _Text


_chunk_decoder = msgspec.json.Decoder(_Chunk)


class Seen(NamedTuple):
    """How far a client is in the one run that went on since the checkpoint, on the one source that emitted events of it.

    Attributes:
        run: a checksum of the run's id and its source.
        seq: that of the last event.
        ends: by the checksum of a chain's id, how many characters of its open generation came, if any did since the checkpoint.
    """

    run: str
    seq: int
    ends: dict[str, int]

    @classmethod
    def of(cls, entries: Sequence[Entry], following: Sequence[Entry]) -> Seen | None:
        """From what came since the checkpoint. None if it is nothing, much, of several runs or sources, or out of order.

        Args:
            entries: what came, up to the client's place.
            following: what the client does not have yet.
        """
        if not 0 < len(entries) <= MOST_EVENTS:
            return None
        lane = entries[0].place.lane
        chunks: dict[str, Entry] = {}
        for entry in entries:
            place = entry.place
            if place.run_id != lane.run_id or place.source != lane.source or entry.merged_from != entry.seq:
                return None
            if place.event_type is CHUNK:
                chunks[place.chain_id] = entry
            else:
                chunks.pop(place.chain_id, None)  # the generation has ended; another may follow
        last = entries[-1].seq
        if len(chunks) > MOST_CHAINS or any(e.merged_from <= last < e.seq for e in following):
            return None
        try:
            texts = {chain_id: _chunk_decoder.decode(entry.data).data for chain_id, entry in chunks.items()}
        except msgspec.DecodeError:  # somebody made it by hand
            return None
        ends = {_sum(chain_id): text.offset + len(text.content) for chain_id, text in texts.items()}
        return cls(_lane_sum(lane), last, ends)

    @classmethod
    def read(cls, text: str) -> Seen | None:
        """What `str` wrote; None if it is something else."""
        try:
            run, seq, *chains = text.split("-")
            ends = (chain.split("_") for chain in chains[:MOST_CHAINS])
            return cls(run, int(seq), {name: int(end) for name, end in ends})
        except ValueError:
            return None

    def __str__(self) -> str:
        return "-".join([self.run, str(self.seq), *(f"{name}_{end}" for name, end in self.ends.items())])

    def rest_of(
        self, data: bytes, event_type: str, lane: Lane, chain_id: str, seq: int, from_seq: int
    ) -> bytes | None:
        """What of a recorded event the client does not have; None if it has it all."""
        if from_seq > self.seq or _lane_sum(lane) != self.run:
            return data
        if seq <= self.seq:
            return None
        end = self.ends.get(_sum(chain_id))
        if event_type != CHUNK or end is None:
            return data
        chunk = decode_unchecked(data)
        offset = chunk.data["offset"]
        if not offset < end < offset + len(chunk.data["content"]):
            return data
        return encode(without_beginning(chunk, end, self.seq + 1))


def without_beginning(chunk: StreamEvent, end: int, from_seq: int) -> StreamEvent:
    """The chunk from this character of its generation on.

    If it does not tell which tokens the text before has, the lists of tokens are left out; the generation's end has them.
    """
    left_out = end - chunk.data["offset"]
    data = {name: value for name, value in chunk.data.items() if name not in _LISTS}
    data |= _tokens_behind(chunk.data, left_out)
    data |= {"content": data["content"][left_out:], "offset": end, "from_seq": from_seq}
    return msgspec.structs.replace(chunk, data=data)


_LISTS = ("token_ids", "logprobs", "dt_ms", "lengths", "reasoning")


def _tokens_behind(data: dict[str, Any], chars: int) -> dict[str, Any]:
    """The lists of the tokens behind so many characters; empty if it is not known where those begin."""
    lists = {name: value for name in _LISTS if isinstance(value := data.get(name), list)}
    lengths = lists.get("lengths", [])
    if not all(type(length) is int for length in lengths):
        return {}
    ends = [*accumulate(lengths, initial=0)]
    if (
        chars not in ends
        or ends[-1] != len(data["content"])
        or len(lists.get("token_ids", ())) != len(lengths)
    ):
        return {}
    first = ends.index(chars)
    return {
        name: values[first:]
        for name, values in lists.items()
        if len(values) == len(lengths) - (name == "dt_ms")
    }


def _lane_sum(lane: Lane) -> str:
    return _sum(f"{lane.run_id}@{lane.source}" if lane.source else lane.run_id)


def _sum(name: str) -> str:
    return f"{zlib.crc32(name.encode()):08x}"
