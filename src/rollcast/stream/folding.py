"""A chain that is produced elsewhere, kept as it came until somebody asks how it stands.

Most chains of a large fleet are looked at by nobody: their events are kept as the bytes that came, which take a third of the memory
of a `ChainView` and next to no time. When there are more than a few of them, they are folded into a view, and more are kept beside it.
"""

from __future__ import annotations

import sys

from rollcast.records import StreamEvent, StreamEventType, encode
from rollcast.records.codec import decode_unchecked
from rollcast.records.jsonable import SHALLOW_BYTES, may_nest_deeply, nests_deeply
from rollcast.records.view import ChainView
from rollcast.records.view_parts import count_of
from rollcast.stream.waiting import ChunkData, EncodableChunk, EncodableEvent, event_of

__all__ = ["FoldedChain"]

T = StreamEventType
CHUNK, GENERATION_END = T.LLM_GENERATION_CHUNK, T.LLM_GENERATION_END
FOLD_BYTES = 32 << 10  # of events, before a view is made of them
FOLD_CHARS = 32 << 10  # of an open generation
_PLAIN = frozenset(("content", "offset", "token_ids", "logprobs"))
GENERATION_START = T.LLM_GENERATION_START
_CLEAR = frozenset((GENERATION_START, GENERATION_END))  # nothing else is open then
_FLAT = frozenset(
    (GENERATION_END, T.TOOL_OBSERVATION, T.TOOL_CALL_END)
)  # in the fields of these nothing nests
_PARTIAL = frozenset((CHUNK, T.TOOL_OBSERVATION, T.CHAIN_SNAPSHOT))


class FoldedChain:
    """A chain, as a late observer must know it.

    Attributes:
        group_id, source: of its first event.
        has_part: whether it may have something open that more is known of than single events tell.
    """

    __slots__ = (
        "_chunks",
        "_end",
        "_lines",
        "_seq",
        "_size",
        "_step",
        "_view",
        "group_id",
        "has_part",
        "source",
    )

    def __init__(self, event: StreamEvent | EncodableEvent) -> None:
        self.group_id = (
            None if event.group_id is None else sys.intern(event.group_id)
        )  # many chains have the same
        self.source = sys.intern(event.source)
        self.has_part = False
        self._view: ChainView | None = None
        self._lines: list[bytes] = []
        self._size = 0
        # Tokens of a generation that a line, or the view, has opened; each continues the one before. None: perhaps none is open. The
        # end repeats their text, and may then stand for them; a token that opens a generation also ends what was open before it.
        self._chunks: list[StreamEvent | EncodableChunk] | None = None
        self._step: int | None = None  # that generation's
        self._end = 0  # its characters so far
        self._seq = -1  # of the latest line; others are older, or come twice

    def note(self, event: StreamEvent | EncodableEvent, line: bytes | None) -> None:
        """Take the next event; `line`: its JSON, if somebody has it. Without it the view is made at once.

        So it is if the event nests deeply: where the view is made later, so many calls may be open that it could not be read again.
        """
        if line is None or (len(line) >= SHALLOW_BYTES and _nests_deeply(event, line)):
            self._fold().apply(event_of(event))
            self._chunks, self._seq = None, max(self._seq, event.seq)
            self.has_part = True
            return
        if isinstance(event, StreamEvent) and event.event_type is CHUNK and self._note_chunk(event):
            return
        if self._chunks:
            if not self._repeated_by(event, self._chunks):
                self._lines.append(encode(_joined(self._chunks)))
                self._size += len(self._lines[-1])
            self._seq = self._chunks[-1].seq
        self._chunks = None
        self.has_part = event.event_type in _PARTIAL or (self.has_part and event.event_type not in _CLEAR)
        if event.source and event.source != self.source:
            self.source = sys.intern(event.source)
        self._lines.append(line)
        self._note_opening(event)
        self._size += len(line)
        if self._size > FOLD_BYTES:
            self._fold()

    def _repeated_by(
        self, event: StreamEvent | EncodableEvent, chunks: list[StreamEvent | EncodableChunk]
    ) -> bool:
        """Whether the event ends the open generation, and tells all that these tokens did."""
        if event.event_type is not GENERATION_END or event.step != self._step or event.seq <= chunks[-1].seq:
            return False
        if isinstance(event, EncodableEvent):  # it was checked when it was read
            return count_of(event.data.completion_tokens) is not None
        tokens = count_of(event.data.get("completion_tokens"))
        return isinstance(event.data.get("content"), str) and tokens is not None

    def _note_opening(self, event: StreamEvent | EncodableEvent) -> None:
        """Note that this line, unless it comes late or twice, has opened a generation."""
        kind, fresh = event.event_type, event.seq > self._seq
        if fresh:
            self._seq = event.seq
        if fresh and (kind is GENERATION_START or kind is CHUNK):
            self._chunks, self._step, self._end = [], event.step, 0
            if isinstance(event, StreamEvent) and kind is CHUNK:
                self._end = event.data["offset"] + len(event.data["content"])

    def is_next_token(self, chunk: EncodableChunk) -> bool:
        """Whether the chunk, which was read from JSON, continues the open generation. If so, it is kept."""
        chunks, data = self._chunks, chunk.data
        if chunks is None or data.offset != self._end or chunk.step != self._step:
            return False
        chunks.append(chunk)
        if len(chunks) >= 64:
            self._chunks = [_joined(chunks)]
        self._end += len(data.content)
        self.has_part = True
        if self._end > FOLD_CHARS:
            self._fold()
        return True

    def _note_chunk(self, event: StreamEvent) -> bool:
        """Keep a token beside the others of its generation. False if it does not continue them."""
        data, chunks = event.data, self._chunks
        if chunks is None or data["offset"] != self._end or event.step != self._step:
            return False
        if event.seq <= (chunks[-1].seq if chunks else self._seq) or not data.keys() <= _PLAIN:
            return False
        chunks.append(event)
        if len(chunks) >= 64:
            self._chunks = [_joined(chunks)]
        self._end += len(data["content"])
        self.has_part = True
        if self._end > FOLD_CHARS:
            self._fold()
        return True

    def _fold(self) -> ChainView:
        """Make the view of all that came, and keep nothing beside it."""
        self._view = self._applied(self._view or ChainView())
        self._lines, self._size = [], 0
        if self._chunks:
            self._seq, self._chunks = self._chunks[-1].seq, []
        return self._view

    def view(self) -> ChainView:
        """How the chain stands. Do not change it, and do not keep it."""
        return self._applied(ChainView()) if self._view is None else self._fold()

    def _applied(self, view: ChainView) -> ChainView:
        for line in self._lines:
            view.apply(decode_unchecked(line))
        if self._chunks:
            view.apply(_joined(self._chunks))
        return view


def _nests_deeply(event: StreamEvent | EncodableEvent, line: bytes) -> bool:
    if isinstance(event, EncodableEvent) and event.event_type in _FLAT:
        return False
    return may_nest_deeply(line) and nests_deeply(event_of(event).to_dict())


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
