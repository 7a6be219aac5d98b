"""The messages of requests: what a chain shows of them, and whether two say the same. Pure.

An agent sends an answer back without its reasoning, with `None` instead of an empty content, or with its arguments written in
another way, so messages are compared by what they say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from rollcast.errors import MessagesError
from rollcast.records import Message, validated_messages
from rollcast.records.jsonable import as_json, described
from rollcast.records.message import ROLES

__all__ = ["KEY_BYTES", "arguments_of", "content_text", "message_key", "shown_message"]

KEY_BYTES = 16
_MAX_URL = 512  # characters of a picture's URL that are shown


def shown_message(message: Mapping[str, Any]) -> Message:
    """A message of a request as a chain takes it: with a known role, and without the bytes of pictures.

    It never raises.
    """
    role = message.get("role")
    kept: dict[str, Any] = {"role": role if role in ROLES else "tool" if role == "function" else "user"}
    content = message.get("content")
    if isinstance(content, list | tuple):
        kept["content"] = [_shown_part(part) for part in content]
    elif isinstance(content, str) or (content is None and role == "assistant"):
        kept["content"] = content
    else:
        kept["content"] = content_text(content)
    for name in ("tool_calls", "tool_call_id", "name"):
        if message.get(name):
            kept[name] = as_json(message[name])
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(reasoning, str):
        kept["reasoning_content"] = reasoning
    try:
        return validated_messages([kept])[0]
    except MessagesError:
        return {"role": kept["role"], "content": content_text(as_json(content)) or described(content)}


def _shown_part(part: Any) -> dict[str, Any]:
    if not isinstance(part, Mapping) or "type" not in part:
        return {"type": "text", "text": content_text([part])}
    shown = dict(as_json(dict(part)))
    for name, value in shown.items():
        inner = value.get("url", value.get("data")) if isinstance(value, dict) else None
        if isinstance(inner, str) and len(inner) > _MAX_URL:
            field = "url" if "url" in value else "data"
            shown[name] = value | {field: f"{inner[:64]}… ({len(inner):,} characters)"}
    return shown


def arguments_of(text: str) -> dict[str, Any] | str:
    """A call's arguments as an object, or the text itself if it is not one."""
    try:
        found = msgspec.json.decode(text) if text.strip() else {}
    except (msgspec.DecodeError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def message_key(message: Mapping[str, Any]) -> bytes:
    """16 bytes that are equal for messages that say the same."""
    role = message.get("role")
    text = content_text(message.get("content")).strip()
    if role == "assistant":
        text = text.rpartition("</think>")[2].strip()  # templates and agents leave out earlier reasoning
    said = [
        "system" if role == "developer" else role,
        text,
        _calls(message.get("tool_calls")) or _calls([{"function": message.get("function_call")}]),
        message.get("tool_call_id"),
    ]
    return hashlib.blake2b(msgspec.json.encode(as_json(said), order="sorted"), digest_size=KEY_BYTES).digest()


def content_text(content: Any) -> str:
    """The text of a message's content, which may be a list of parts; a part that is not text is shown as JSON."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        return "" if content is None else _json(content)
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        texts.append(text if isinstance(text, str) else _json(part))
    return "".join(texts)


def _calls(calls: Any) -> list[Any]:
    found = []
    for call in calls if isinstance(calls, list | tuple) else ():
        if not isinstance(call, Mapping):
            continue
        function = call.get("function", call.get("custom"))
        if isinstance(function, Mapping):
            arguments = function.get("arguments", function.get("input"))
            found.append([call.get("id"), function.get("name"), _canonical(arguments)])
    return found


def _canonical(arguments: Any) -> Any:
    """Arguments as the object that they stand for, so that spaces and the order of keys make no difference."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments.strip()


def _json(value: Any) -> str:
    return msgspec.json.encode(as_json(value), order="sorted").decode()
