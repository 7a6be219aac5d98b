"""Encodes events, decodes and validates them, and makes the JSON Schema that describes them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import msgspec

from rollcast.errors import DecodeError
from rollcast.records.event import (
    PAYLOADS,
    ExtendedEvent,
    StreamEvent,
    StreamEventType,
    checked_event,
    event_from_dict,
    foreign_event,
)
from rollcast.records.jsonable import JSON_ERRORS, as_json

__all__ = [
    "checked_event",
    "decode",
    "decode_unchecked",
    "encode",
    "encode_described",
    "encode_lines",
    "event_from_dict",
    "json_schema",
    "one_line_json",
]


_encoder = msgspec.json.Encoder(enc_hook=as_json)
_decoder = msgspec.json.Decoder(StreamEvent)

# Characters that JSON need not escape, but that many line readers take for the end of a line, or did (JavaScript before 2019).
_ENDS_OF_LINES = [(c.encode(), f"\\u{ord(c):04x}".encode()) for c in "\u0085\u2028\u2029"]


def one_line_json(data: bytes) -> bytes:
    """The same JSON, in which only a newline ends a line for any reader."""
    if not data.isascii() and (b"\xe2\x80" in data or b"\xc2\x85" in data):  # mostly neither is there
        for char, escape in _ENDS_OF_LINES:
            data = data.replace(char, escape)
    return data


def encode(event: StreamEvent) -> bytes:
    """One event as compact JSON on one line, without a newline at its end.

    Objects that JSON lacks are written as `as_json` gives them. It raises if a key or a text cannot be written, or if lists
    nest without end.
    """
    return one_line_json(_encoder.encode(_as_written(event)))


def _as_written(event: StreamEvent) -> Any:
    """What the encoder makes the event's JSON of: the fields that this version does not know stand beside the others."""
    return event.to_dict() if event.__class__ is ExtendedEvent else event


def encode_lines(events: Sequence[Any]) -> bytes:
    """The events as JSON lines, each with a newline at its end. It raises what `encode` raises.

    Args:
        events: events, or structs with the fields of one.
    """
    if ExtendedEvent in set(map(type, events)):
        return one_line_json(_encoder.encode_lines([*map(_as_written, events)]))
    return one_line_json(_encoder.encode_lines(events))


def encode_described(event: StreamEvent) -> bytes:
    """Do the same as `encode` for any event: values that JSON cannot hold are described, so that no event is lost."""
    try:
        return encode(event)
    except Exception:  # noqa: BLE001  (the encoding of user-made data may raise anything)
        given = {name: as_json(getattr(event, name)) for name in StreamEvent.__struct_fields__}
        beyond = as_json(event.beyond) if isinstance(event, ExtendedEvent) else {}
        return one_line_json(_encoder.encode(beyond | given))


def decode(line: bytes | str) -> StreamEvent:
    """The event that a line of JSON describes, with its payload checked against its type.

    An event of an unknown type, and one with unknown fields, is read and carried (docs/events.md, *Growing*).

    Raises:
        DecodeError: the line is not JSON or not an event, or its `data` lacks a field that its type requires.
    """
    return checked_event(decode_unchecked(line))


def decode_unchecked(line: bytes | str | memoryview) -> StreamEvent:
    """As `decode`, of what is known to be an event: its payload is not looked at."""
    try:
        return _decoder.decode(line)
    except msgspec.ValidationError as error:
        try:
            value = msgspec.json.decode(line)
        except JSON_ERRORS:
            raise _no_event(error) from None
        return foreign_event(value, error)
    except JSON_ERRORS as error:
        raise _no_event(error) from None


def _no_event(error: Exception) -> DecodeError:
    return DecodeError(f"this is not an event: {error}; expected one JSON object a line as in docs/events.md")


def dedent_descriptions(definitions: dict[str, Any]) -> None:
    """Dedent what a schema says of each type, in place: it is a docstring, which Python dedents itself from 3.13 on."""
    for definition in definitions.values():
        if "description" in definition:
            definition["description"] = inspect.cleandoc(definition["description"])


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of one event, generated from the types. `schema/event.schema.json` holds it."""
    (event_ref,), components = msgspec.json.schema_components([StreamEvent], ref_template="#/$defs/{name}")
    payload_refs, payloads = msgspec.json.schema_components(
        list(PAYLOADS.values()), ref_template="#/$defs/{name}"
    )
    of_type = [
        {
            "if": {"properties": {"event_type": {"const": event_type.value}}},
            "then": {"properties": {"data": ref}},
        }
        for event_type, ref in zip(PAYLOADS, payload_refs, strict=True)
    ]
    definitions: dict[str, Any] = {**components, **payloads}
    dedent_descriptions(definitions)
    definitions["StreamEvent"].pop("additionalProperties")  # a later version may add fields: they are carried
    definitions["StreamEventType"]["enum"] = [t.value for t in StreamEventType]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Rollcast event",
        **event_ref,
        "allOf": of_type,
        "$defs": dict(sorted(definitions.items())),
    }
