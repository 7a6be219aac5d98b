"""The JSON Schema of every frame, on file for other languages. Run `python -m rollcast.serve.schema` to renew it."""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from rollcast.records.codec import dedent_descriptions
from rollcast.records.codec import json_schema as event_schema
from rollcast.serve.protocol import ClientFrame, ServerFrame

__all__ = ["frames_schema"]


def frames_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the frames of `rollcast.v1`; `#/$defs/ClientFrame` and `ServerFrame` are either side's."""
    client, server = get_args(ClientFrame), get_args(ServerFrame)
    frames = list(dict.fromkeys((*client, *server)))
    references, components = msgspec.json.schema_components(frames, ref_template="#/$defs/{name}")
    dedent_descriptions(components)
    by_frame = dict(zip(frames, references, strict=True))
    event = event_schema()
    assert components.keys() & event["$defs"].keys() <= {"StreamEvent", "StreamEventType"}
    definitions: dict[str, Any] = {**components, **event["$defs"]}
    # An event here is an event of event.schema.json, payloads included.
    definitions["StreamEvent"] = {**definitions["StreamEvent"], "allOf": event["allOf"]}
    definitions["ClientFrame"] = {"anyOf": [by_frame[frame] for frame in client]}
    definitions["ServerFrame"] = {"anyOf": [by_frame[frame] for frame in server]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Frames of rollcast.v1",
        "anyOf": [{"$ref": "#/$defs/ClientFrame"}, {"$ref": "#/$defs/ServerFrame"}],
        "$defs": dict(sorted(definitions.items())),
    }
