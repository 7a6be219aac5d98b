"""Puts tokens that follow each other into one chunk, without losing anything of them. Pure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from typing import Any

from rollcast.records import StreamEvent, StreamEventType
from rollcast.stream.waiting import ChunkData, Encodable, EncodableChunk, PackedValue, packed
from rollcast.text import well_formed

__all__ = ["tokens_together"]

logger = logging.getLogger("rollcast.stream")

CHUNK, GAP = StreamEventType.LLM_GENERATION_CHUNK, StreamEventType.GAP
MOST_TOKENS = 128  # in one chunk
MOST_CHARS = 4096
LONGEST_S = 60.0  # from a token to the next one
_PLAIN = frozenset(("content", "offset", "token_ids", "logprobs"))


def tokens_together(events: Sequence[Encodable]) -> list[Encodable]:
    """The events, in which the tokens of a generation that no other event of the chain separates are one chunk, in the place of the last.

    Nothing is lost: the chunk has the id, the log-probability, the arrival (`dt_ms`) and the length of the text (`lengths`) of each
    token, and `from_seq`. Chunks that have not exactly one token id stay as they are.

    Args:
        events: in order, of any runs. If somebody made one of them of other types than those of its fields, they are given as they are.
    """
    try:
        return _together(events)
    except Exception:  # whatever a user's own value raises, the events are published
        logger.debug("tokens were not put together", exc_info=True)
        return [*events]


def _together(events: Sequence[Encodable]) -> list[Encodable]:
    kept: list[Encodable | None] = [*events]
    open_now: dict[
        tuple[str, str], list[int]
    ] = {}  # by run and chain, the places of tokens that belong together
    for place, event in enumerate(events):
        token = _token(event) if event.event_type is CHUNK else None
        if token is not None:
            key = (token.run_id, token.chain_id)
            kept[place] = token
            places = open_now.get(key)
            if places is not None and _continues(kept, places, token):
                places.append(place)
                continue
            if places is not None:
                _join(kept, places)
            open_now[key] = [place]
        elif event.event_type is GAP:
            for places in open_now.values():
                _join(kept, places)
            open_now.clear()
        elif (places := open_now.pop((event.run_id, event.chain_id), None)) is not None:
            _join(kept, places)
    for places in open_now.values():
        _join(kept, places)
    return [event for event in kept if event is not None]


def _token(chunk: Encodable) -> EncodableChunk | None:
    """The chunk if it is a single token and nothing else, as one that need only be encoded; otherwise None."""
    data: Any = chunk.data
    if isinstance(chunk, EncodableChunk):
        return chunk if data.token_ids.__class__ is PackedValue and _is_plain(data.logprobs) else None
    ids, logprobs = data.get("token_ids"), data.get("logprobs")
    if not data.keys() <= _PLAIN or type(chunk) is not StreamEvent or type(ids) is not list or len(ids) != 1:
        return None
    if type(data.get("content")) is not str or type(data.get("offset")) is not int or type(ids[0]) is not int:
        return None  # made by hand
    plain = ChunkData(data["content"], data["offset"], packed(ids, int), packed(logprobs, float))
    if not _is_plain(plain.logprobs):
        return None
    return EncodableChunk(
        CHUNK, chunk.chain_id, chunk.timestamp, plain, chunk.step, chunk.depth, chunk.seq, chunk.run_id, chunk.group_id, chunk.source
    )  # fmt: skip


def _is_plain(logprobs: Any) -> bool:
    """Whether there is no log-probability, or exactly one, and that a finite number."""
    return logprobs is None or (logprobs.__class__ is PackedValue and isfinite(logprobs.value))


def _continues(kept: list[Encodable | None], places: list[int], chunk: EncodableChunk) -> bool:
    """Whether the chunk may join those in these places: it continues their text, has the same fields, and does not make a large event."""
    first, before = kept[places[0]], kept[places[-1]]
    assert isinstance(first, EncodableChunk)
    assert isinstance(before, EncodableChunk)
    data, earlier = chunk.data, before.data
    return (
        data.offset == earlier.offset + len(earlier.content)
        and chunk.step == before.step
        and chunk.seq > before.seq
        and 0.0 <= chunk.timestamp - before.timestamp < LONGEST_S
        and data.logprobs.__class__ is earlier.logprobs.__class__
        and len(places) < MOST_TOKENS
        and data.offset + len(data.content) - first.data.offset <= MOST_CHARS
    )


def _join(kept: list[Encodable | None], places: list[int]) -> None:
    """Merge the chunks in these places into the last of them; the others become None.

    Halves of a character, which a model server may give one by one, stay apart: JSON has no halves, so the whole would be a text of another
    length.
    """
    if len(places) > 1:
        joined = _joined([chunk for place in places if isinstance(chunk := kept[place], EncodableChunk)])
        if well_formed(joined.data.content) is not joined.data.content:
            return
        for place in places[:-1]:
            kept[place] = None
        kept[places[-1]] = joined


def _joined(chunks: list[EncodableChunk]) -> EncodableChunk:
    """One chunk for several that follow each other."""
    last, parts = chunks[-1], [chunk.data for chunk in chunks]
    arrivals = [chunk.timestamp for chunk in chunks]
    data = ChunkData(
        "".join([part.content for part in parts]),
        parts[0].offset,
        _values([part.token_ids for part in parts]),
        None if parts[0].logprobs is None else _values([part.logprobs for part in parts]),
        [round((b - a) * 1e6) / 1000 for a, b in pairwise(arrivals)],
        [len(part.content) for part in parts],
        chunks[0].seq,
    )
    return EncodableChunk(
        CHUNK, last.chain_id, last.timestamp, data, last.step, last.depth, last.seq, last.run_id, last.group_id, last.source
    )  # fmt: skip


def _values(packed_values: list[Any]) -> list[Any]:
    return [each.value for each in packed_values]
