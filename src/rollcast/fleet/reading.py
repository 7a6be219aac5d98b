"""Reads the events of a `publish` from JSON: each is checked while it is read, and most of them need no dict. Pure."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, NotRequired, Union, get_args, get_origin, get_type_hints

import msgspec

from rollcast.records import PAYLOADS, StreamEventType
from rollcast.records.event import TypedData
from rollcast.stream.waiting import CHUNK_JSON, EncodableChunk, EncodableEvent, chunk_of_line

__all__ = ["KINDS", "read_quickly"]

T = StreamEventType
# Most events of a chain are of these types. The data of each is flat, and nothing but the chain's order depends on it.
KINDS = (
    T.LLM_GENERATION_START,
    T.LLM_GENERATION_END,
    T.TOOL_CALL_START,
    T.TOOL_OBSERVATION,
    T.TOOL_CALL_END,
    T.REWARD,
    T.CHAIN_END,
)
# What is written as a whole number stays one. `decode` looks at those that are too large for this.
_NUMBER = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | float


def _data_of(kind: StreamEventType) -> type[TypedData]:
    """A struct with the fields of the type's payload, in their order. It has no others, so that none of an event gets lost."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for name, hint in get_type_hints(PAYLOADS[kind], include_extras=True).items():
        if get_origin(hint) is NotRequired:
            fields.append((name, _as_written(get_args(hint)[0]) | msgspec.UnsetType, msgspec.UNSET))
        else:
            fields.append((name, _as_written(hint)))
    return msgspec.defstruct(  # type: ignore[return-value]  # it is made of its base
        f"_Data_{kind.value}", fields, bases=(TypedData,), forbid_unknown_fields=True, kw_only=True, gc=False
    )


def _as_written(hint: Any) -> Any:
    """The type of a field for which a whole number does not become a float, so that the event has it as `decode` gives it."""
    if get_origin(hint) is list:
        (of_each,) = get_args(hint)
        return list[_as_written(of_each)]  # type: ignore[misc]  # it is a type
    if isinstance(hint, UnionType):
        return Union[tuple(map(_as_written, get_args(hint)))]  # noqa: UP007  (as below)
    return _NUMBER if hint is float else hint


def _event_of(kind: StreamEventType) -> type[EncodableEvent]:
    return msgspec.defstruct(  # type: ignore[return-value]  # it is made of its base
        f"_Event_{kind.value}",
        [("data", _data_of(kind))],
        bases=(EncodableEvent,),
        tag_field="event_type",
        tag=kind.value,
        namespace={"event_type": kind},
        gc=False,
        forbid_unknown_fields=True,
    )


_decoder = msgspec.json.Decoder(Union[tuple(map(_event_of, KINDS))])  # noqa: UP007  (the types are not known to a checker)


def read_quickly(line: bytes) -> EncodableChunk | EncodableEvent | None:
    """The event that a line of JSON describes, with its payload checked against its type.

    Returns:
        None if its type is neither that of tokens nor one of `KINDS`, if it has fields that this version does not know, or if it is no
        event; `decode` says which.
    """
    if line.startswith(CHUNK_JSON):
        return chunk_of_line(line)
    try:
        event: EncodableEvent = _decoder.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return event
