"""A chain that is produced elsewhere, kept as it came until somebody asks how it stands.

Most chains of a large fleet are looked at by nobody: their events are kept as the bytes that came, which take a third of the memory
of a `ChainView` and next to no time. When there are more than a few of them, they are folded into a view, and more are kept beside it.
"""

from __future__ import annotations

import sys

from rollcast.records import StreamEvent, StreamEventType, encode
from rollcast.records.codec import decode_unchecked
from rollcast.records.view import ChainView
from rollcast.stream.waiting import ChunkData, EncodableChunk, event_of

__all__ = ["FoldedChain"]

T = StreamEventType
CHUNK, GENERATION_END = T.LLM_GENERATION_CHUNK, T.LLM_GENERATION_END
FOLD_BYTES = 32 << 10  # of events, before a view is made of them
FOLD_CHARS = 32 << 10  # of an open generation
_PLAIN = frozenset(("content", "offset", "token_ids", "logprobs"))
_CLEAR = frozenset((T.LLM_GENERATION_START, GENERATION_END))  # nothing else is open then
_PARTIAL = frozenset((CHUNK, T.TOOL_OBSERVATION, T.CHAIN_SNAPSHOT))


class FoldedChain:
    """A chain, as a late observer must know it.

    Attributes:
        group_id, source: of its first event.
        has_part: whether it may have something open that more is known of than single events tell.
    """

    __slots__ = ("_chunks", "_end", "_lines", "_size", "_view", "group_id", "has_part", "source")

    def __init__(self, event: StreamEvent) -> None:
        self.group_id = (
            None if event.group_id is None else sys.intern(event.group_id)
        )  # many chains have the same
        self.source = sys.intern(event.source)
        self.has_part = False
        self._view: ChainView | None = None
        self._lines: list[bytes] = []
        self._size = 0
        # Of the open generation; each continues the one before.
        self._chunks: list[StreamEvent | EncodableChunk] | None = None
        self._end = 0  # characters of that generation so far

    def note(self, event: StreamEvent, line: bytes | None) -> None:
        """Take the next event; `line`: its JSON, if somebody has it. Without it the view is made at once."""
        if line is None:
            self._fold().apply(event)
            self.has_part = True
            return
        if event.event_type is CHUNK and self._note_chunk(event):
            return
        if self._chunks is not None:
            if event.event_type is not GENERATION_END or event.step != self._chunks[-1].step:
                self._lines.append(encode(_joined(self._chunks)))
            self._chunks = None  # otherwise the end repeats their text
        self.has_part = event.event_type in _PARTIAL or (self.has_part and event.event_type not in _CLEAR)
        if event.source and event.source != self.source:
            self.source = sys.intern(event.source)
        self._lines.append(line)
        self._size += len(line)
        if self._size > FOLD_BYTES:
            self._fold()

    def is_next_token(self, chunk: EncodableChunk) -> bool:
        """Whether the chunk, which was read from JSON, continues the open generation, or begins it. If so, it is kept."""
        chunks, data = self._chunks, chunk.data
        if chunks is None:
            self._chunks = [chunk]
        elif data.offset == self._end and chunk.step == chunks[-1].step:
            chunks.append(chunk)
            if len(chunks) >= 64:
                self._chunks = [_joined(chunks)]
        else:
            return False
        self._end = data.offset + len(data.content)
        self.has_part = True
        if self._end > FOLD_CHARS:
            self._fold()
        return True

    def _note_chunk(self, event: StreamEvent) -> bool:
        """Keep a token beside the others of its generation. False if it does not continue them."""
        data, chunks = event.data, self._chunks
        offset = data["offset"]
        if not data.keys() <= _PLAIN:
            return False
        if chunks is None:
            self._chunks = [event]
        elif offset == self._end and event.step == chunks[-1].step:
            chunks.append(event)
            if len(chunks) >= 64:
                self._chunks = [_joined(chunks)]
        else:
            return False
        self._end = offset + len(data["content"])
        self.has_part = True
        if self._end > FOLD_CHARS:
            self._fold()
        return True

    def _fold(self) -> ChainView:
        """Make the view of all that came, and keep nothing beside it."""
        self._view = self._applied(self._view or ChainView())
        self._lines, self._size, self._chunks = [], 0, None
        return self._view

    def view(self) -> ChainView:
        """How the chain stands. Do not change it, and do not keep it."""
        return self._applied(ChainView()) if self._view is None else self._fold()

    def _applied(self, view: ChainView) -> ChainView:
        for line in self._lines:
            view.apply(decode_unchecked(line))
        if self._chunks is not None:
            view.apply(_joined(self._chunks))
        return view


def _joined(chunks: list[StreamEvent | EncodableChunk]) -> StreamEvent:
    """One chunk for several that follow each other, at the place of the last."""
    first, last = chunks[0], chunks[-1]
    if first is last:
        return event_of(first)
    texts: list[str] = []
    ids: list[int] = []
    for chunk in chunks:
        data = chunk.data
        if isinstance(data, ChunkData):
            texts.append(data.content)
            ids += data.token_ids or ()
        else:
            texts.append(data["content"])
            ids += data.get("token_ids", ())
    offset = first.data.offset if isinstance(first.data, ChunkData) else first.data["offset"]
    data = {"content": "".join(texts), "offset": offset, "token_ids": ids}
    return StreamEvent(
        CHUNK, last.chain_id, last.timestamp, data, last.step, last.depth, last.seq, last.run_id, last.group_id, last.source
    )  # fmt: skip
