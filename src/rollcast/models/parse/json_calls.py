"""Reads calls in JSON, even nearly right ones: they are accepted if there is only one way to read them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from rollcast.records.jsonable import JSON_ERRORS, nests_deeply
from rollcast.records.message import ToolCall

__all__ = ["NESTED", "REPEATED", "call_in", "json_call", "json_value", "malformed"]

NESTED = "error: nested too deeply"
REPEATED = "error: repeated argument"

_NAME = re.compile(r'"name"\s{0,8}:\s{0,8}"([^"\\]{1,64})"')
_MAIN = ("arguments", "parameters")
_OTHERS = ("args", "params", "kwargs", "input", "inputs", "tool_input", "tool_args", "action_input")
_NAMES = ("function", "tool", "tool_name", "function_name", "action")
_KINDS = frozenset({"function", "tool_call", "tool_use", "tool"})
_IDS = ("id", "call_id", "tool_call_id", "index")


class _RepeatedError(Exception):
    pass


def json_value(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is not JSON, an object in it has a key twice, or it nests so deeply that a prompt or an event could not
            show it. `args[0]` is what a malformed call has as its error.
    """
    try:
        value = msgspec.json.decode(text)
        json.loads(text, object_pairs_hook=_once, parse_int=str, parse_float=str)
    except _RepeatedError:
        raise ValueError(REPEATED) from None
    except JSON_ERRORS as error:
        raise ValueError("error: bad json") from error
    if nests_deeply(value):
        raise ValueError(NESTED)
    return value


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) < len(pairs):
        raise _RepeatedError


def json_call(call_id: str, body: str) -> ToolCall:
    """The call that a JSON object describes; malformed if it does not describe one, or can be read in two ways."""
    try:
        value = json_value(body.strip())
    except ValueError as error:
        return malformed(call_id, body, error.args[0])
    if not isinstance(value, dict):
        return malformed(call_id, body, "error: bad json")
    name, arguments = call_in(value)
    if not name:
        return malformed(call_id, body, "error: no tool name")
    if isinstance(arguments, str):
        return ToolCall(call_id, name, body, arguments)
    return ToolCall(call_id, name, arguments)


def call_in(value: dict[str, Any]) -> tuple[str, dict[str, Any] | str]:
    """The name of the tool, empty if it is missing, and its arguments or an error."""
    inner = value.get("function")
    if isinstance(inner, dict) and "name" not in value:
        beside = {key: item for key, item in value.items() if key != "function"}
        name, arguments = call_in(inner)
        if not isinstance(arguments, dict) or all(map(_is_frame, beside, beside.values())):
            return name, arguments
        if arguments:
            return name, "error: argument outside of arguments"
        return name, _arguments(beside)
    named = "name"
    if named not in value and any(key in value for key in (*_MAIN, *_OTHERS)):
        named = next((key for key in _NAMES if isinstance(value.get(key), str)), named)
    tool = value.get(named)
    if not (isinstance(tool, str) and tool):
        return "", {}
    return tool, _arguments({key: item for key, item in value.items() if key != named})


def _arguments(fields: Mapping[str, Any]) -> dict[str, Any] | str:
    """The arguments among the fields of a call, without its name."""
    under = {key: fields[key] for key in _MAIN if fields.get(key) not in (None, "")}
    given = {key: _as_object(item) for key, item in under.items()}
    if None in given.values():
        return "error: bad arguments"
    for key in _OTHERS:
        item = _as_object(fields.get(key))
        if item is not None:
            given[key] = item
    beside = {
        key: item
        for key, item in fields.items()
        if key not in given and key not in _MAIN and not _is_frame(key, item)
    }
    if not given:  # flat: an id may be an argument too
        ids = {key: item for key, item in fields.items() if key in _IDS and not _is_call_id(item)}
        return beside | ids
    first, *others = given.values()
    if any(other != first for other in others):
        return "error: arguments given twice"
    if beside:
        return "error: argument outside of arguments"
    assert first is not None
    return first


def _is_frame(key: str, item: Any) -> bool:
    """Whether a field belongs to the call and not to its arguments."""
    return key in _IDS or (key == "type" and isinstance(item, str) and item in _KINDS)


def _is_call_id(item: Any) -> bool:
    return isinstance(item, str) and item.startswith(("call", "tool"))


def _as_object(value: Any) -> dict[str, Any] | None:
    """The object, or the one that a string has as JSON; None if it is neither."""
    if isinstance(value, str):
        try:
            value = json_value(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def malformed(call_id: str, body: str, error: str) -> ToolCall:
    """Make a malformed call, with its name if that can be read."""
    named = _NAME.search(body)
    return ToolCall(call_id, named[1] if named else "", body, error)
