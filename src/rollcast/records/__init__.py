"""The pure data contracts: events, filters, their encoding and grammar; messages and trajectories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollcast.lazy import lazy_names

if TYPE_CHECKING:
    from rollcast.records.codec import decode, encode, encode_lines, json_schema
    from rollcast.records.event import PAYLOADS, StreamEvent, StreamEventType
    from rollcast.records.filter import EventFilter
    from rollcast.records.grammar import GrammarChecker, check_events
    from rollcast.records.message import Message, ToolCall, prompt_hash, validated_messages
    from rollcast.records.trajectory import OutsideMessage, Segment, StepReward, ToolRecord, Trajectory, Turn

__all__ = [
    "PAYLOADS",
    "EventFilter",
    "GrammarChecker",
    "Message",
    "OutsideMessage",
    "Segment",
    "StepReward",
    "StreamEvent",
    "StreamEventType",
    "ToolCall",
    "ToolRecord",
    "Trajectory",
    "Turn",
    "check_events",
    "decode",
    "encode",
    "encode_lines",
    "json_schema",
    "prompt_hash",
    "validated_messages",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "rollcast.records.codec": "decode encode encode_lines json_schema",
        "rollcast.records.event": "PAYLOADS StreamEvent StreamEventType",
        "rollcast.records.filter": "EventFilter",
        "rollcast.records.grammar": "GrammarChecker check_events",
        "rollcast.records.message": "Message ToolCall prompt_hash validated_messages",
        "rollcast.records.trajectory": "OutsideMessage Segment StepReward ToolRecord Trajectory Turn",
    },
)
