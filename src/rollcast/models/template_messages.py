"""Puts messages into the form that a chat template takes: one at a time, and the conversation as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rollcast.errors import MessagesError
from rollcast.models.template_probe import MISSING, Takes, part
from rollcast.records.message import Message, given_keys

__all__ = [
    "Adaptation",
    "in_parts",
    "joined_systems",
    "merged_system",
    "named_results",
    "prepared",
    "short_call_ids",
]

Adaptation = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]

_TEXT_TYPES = ("text", "input_text", "output_text")
_SYSTEM = ("system", "developer")


# -- one message -------------------------------------------------------------------------------------------------------


def prepared(
    message: Mapping[str, Any], index: int, takes: Takes, tools: Sequence[Any], *, own: bool
) -> Message:
    """A message as the template reads it.

    Args:
        message: a message of the conversation.
        index: its place there.
        takes: how the template takes messages.
        tools: tools whose schemas tell which nulls in a call's arguments were meant.
        own: the model sampled it, so its calls have no null that it did not write.

    Raises:
        MessagesError: it has a part that is not text.
    """
    role = message["role"]
    if message.get("content").__class__ is str and role != "developer" and None not in message.values():
        calls = message.get("tool_calls")
        if calls is None or (own and message["content"] and all(map(_has_object, calls))):
            return message  # type: ignore[return-value]  # every template takes most messages as they are
    changed = given_keys(message)
    if role == "developer" and not takes.developer:
        role = changed["role"] = "system"
    content = changed.get("content")
    if isinstance(content, list | tuple):
        parts = [_text_part(each, index, message["role"]) for each in content]
        contents = takes.contents.get(role)
        changed["content"] = parts if contents is None else contents.of_parts(parts)
    if calls := changed.get("tool_calls"):
        changed["tool_calls"] = [_prepared_call(call, takes.arguments, tools, own=own) for call in calls]
    if role == "assistant" and not changed.get("content"):
        _set_empty(changed, takes)
    return changed  # type: ignore[return-value]  # a message, with what its API adds


def _has_object(call: Any) -> bool:
    function = call.get("function") if call.__class__ is dict else None
    return function.__class__ is dict and function.get("arguments").__class__ is dict


def _text_part(each: Any, index: int, role: str) -> dict[str, Any]:
    kind, text = (each.get("type"), each.get("text")) if isinstance(each, Mapping) else (None, None)
    if kind not in _TEXT_TYPES or not isinstance(text, str):
        raise MessagesError(
            f"the content of the {role} message messages[{index}] has a part of type {kind!r}; the model reads only text: "
            "leave it out, or say in words what it shows"
        )
    return {**each, "type": "text"}


def _set_empty(message: dict[str, Any], takes: Takes) -> None:
    content = message.get("content", MISSING)
    if isinstance(content, list):
        return
    empty = takes.empty[content] if message.get("tool_calls") else ""
    if empty == MISSING:
        message.pop("content", None)
    else:
        message["content"] = empty


def _prepared_call(call: Any, form: str, tools: Sequence[Any], *, own: bool) -> Any:
    """The call with its arguments as an object, which is read from text if need be, without nulls that a table filled in."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}  # some APIs write no arguments like this
    elif isinstance(arguments, Mapping) and not own:
        arguments = _without_filled_in(arguments, _parameters(function.get("name"), tools))
    elif isinstance(arguments, str) and form == "object":
        try:
            read = json.loads(arguments)
        except ValueError:
            return call  # a demonstration of a malformed call: the template writes it as it is
        arguments = read if isinstance(read, dict) else arguments
    changed = {**function, "arguments": arguments}
    return {**call, "function": changed} if "function" in call else changed


def _parameters(name: Any, tools: Sequence[Any]) -> Any:
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == name:
            return function.get("parameters")
    return None


def _without_filled_in(value: Any, schema: Any) -> Any:
    """Remove the nulls that were filled in.

    A `datasets.Dataset` gives the arguments of all calls in a column the same keys, so most nulls only say that another
    call has that argument. A null is kept if the schema requires the field and lets it be null.
    """
    if isinstance(value, list | tuple):
        items = schema.get("items") if isinstance(schema, Mapping) else None
        return [_without_filled_in(each, items) for each in value]
    if not isinstance(value, Mapping):
        return value
    fields: Any = schema.get("properties") if isinstance(schema, Mapping) else None
    required: Any = schema.get("required") if isinstance(schema, Mapping) else None
    kept = {}
    for key, item in value.items():
        field = fields.get(key) if isinstance(fields, Mapping) else None
        if item is not None or (key in (required or ()) and _takes_null(field)):
            kept[key] = _without_filled_in(item, field)
    return kept


def _takes_null(field: Any) -> bool:
    if not isinstance(field, Mapping):
        return False
    kinds = field.get("type")
    if kinds == "null" or field.get("nullable") or (isinstance(kinds, list | tuple) and "null" in kinds):
        return True
    if None in (field.get("enum") or ()):
        return True
    return any(_takes_null(each) for key in ("anyOf", "oneOf") for each in field.get(key) or ())


# -- a conversation ----------------------------------------------------------------------------------------------------


def joined_systems(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the system messages at the beginning, with empty lines between."""
    count = next((i for i, message in enumerate(messages) if message["role"] not in _SYSTEM), len(messages))
    texts = [_text(message) for message in messages[:count]]
    if count < 2 or None in texts:
        return messages
    return [{**messages[0], "content": "\n\n".join(map(str, texts))}, *messages[count:]]


def merged_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the system messages at the beginning before the text of the user message that follows."""
    messages = joined_systems(messages)
    if len(messages) < 2 or messages[0]["role"] not in _SYSTEM or messages[1]["role"] != "user":
        return messages
    system, user = _text(messages[0]), _text(messages[1])
    if system is None or user is None:
        return messages
    return [{**messages[1], "content": f"{system}\n\n{user}"}, *messages[2:]]


def _text(message: Mapping[str, Any]) -> str | None:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(each["text"] for each in content)
    return content if isinstance(content, str) else None


def named_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give tool results the id and the name of the call that they answer; without either, calls are answered in order."""
    changed: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            if any("id" not in call for call in message.get("tool_calls") or ()):
                calls = [{"id": f"call{index}x{i}", **call} for i, call in enumerate(message["tool_calls"])]
                message = {**message, "tool_calls": calls}  # noqa: PLW2901  (the list is not changed)
            calls = list(message.get("tool_calls") or ())
        elif message["role"] == "tool" and calls:
            given = message.get("tool_call_id")
            call = next((each for each in calls if each.get("id") == given), None) if given else calls[0]
            if call is not None:
                calls.remove(call)
                name = call.get("function", call).get("name")
                message = {"tool_call_id": call.get("id"), "name": name, **message}  # noqa: PLW2901
        changed.append(message)
    return changed


def short_call_ids(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shorten call ids to nine letters and digits; ids that have that form already stay."""
    changed = []
    for message in messages:
        ids: dict[str, Any] = {}
        if "tool_call_id" in message:
            ids["tool_call_id"] = _short(message["tool_call_id"])
        if isinstance(calls := message.get("tool_calls"), list):
            ids["tool_calls"] = [{**call, "id": _short(call.get("id"))} for call in calls]
        changed.append({**message, **ids})
    return changed


def _short(call_id: Any) -> Any:
    if not isinstance(call_id, str) or (len(call_id) == 9 and call_id.isascii() and call_id.isalnum()):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def in_parts(takes: Takes) -> Adaptation | None:
    """What turns contents into parts and arguments into text, if the template shows only those; None if it needs neither."""
    roles = takes.wants_parts
    if not roles and takes.arguments == "object":
        return None

    def adapt(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [_in_parts(message, roles, takes.arguments) for message in messages]

    return adapt


def _in_parts(message: dict[str, Any], roles: frozenset[str], form: str) -> dict[str, Any]:
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, str) and message["role"] in roles:
        message = {**message, "content": [part(content)]}
    if calls and form == "text":
        message = {**message, "tool_calls": [_with_text(call) for call in calls]}
    return message


def _with_text(call: Any) -> Any:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    written = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
    return {**call, "function": written} if "function" in call else written
