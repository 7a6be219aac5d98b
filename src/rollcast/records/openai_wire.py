"""What clients and servers of an engine that speaks OpenAI share: requests, streams, pieces, and answers put together. Pure.

reader, answer = SseReader(), Answer("chat")
for payload in reader.feed(data):
    for piece in pieces_of(payload):
        answer.add(piece)
answer.whole()
"""

from __future__ import annotations

from rollcast.records.openai_answer import Answer, BodyShape, CallParts, ToolCallText
from rollcast.records.openai_piece import (
    MISSING_LOGPROB,
    CallDelta,
    Piece,
    VersionSpan,
    generation_reason,
    piece_of,
    pieces_of,
    whole_answer_pieces,
)
from rollcast.records.openai_request import RequestKind, WireRequest, kind_of, request_of
from rollcast.records.sse import SseReader

__all__ = [
    "MISSING_LOGPROB",
    "Answer",
    "BodyShape",
    "CallDelta",
    "CallParts",
    "Piece",
    "RequestKind",
    "SseReader",
    "ToolCallText",
    "VersionSpan",
    "WireRequest",
    "generation_reason",
    "kind_of",
    "piece_of",
    "pieces_of",
    "request_of",
    "whole_answer_pieces",
]
