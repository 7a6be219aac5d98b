"""Chat messages in the form that the OpenAI API and chat templates share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

import msgspec

from rollcast.errors import MessagesError
from rollcast.records.jsonable import DEPTH_LIMIT, as_json, nests_deeply

__all__ = ["Message", "Role", "ToolCall", "given_keys", "prompt_hash", "validated_messages"]

Role = Literal["system", "user", "assistant", "tool", "developer"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool", "developer")


class Message(TypedDict):
    """One message. `content` is text, or a list of parts if the backend understands parts.

    `developer` is the name that newer APIs give to `system`. An assistant's `reasoning_content` is its reasoning before the
    answer; `content` does not contain it.
    """

    role: Role
    content: str | list[dict[str, Any]] | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model asked for.

    Attributes:
        call_id: unique within its chain.
        tool_name: as the model wrote it; it may not exist.
        arguments: the object, or the raw text if it is not a valid object.
        error: why the call is malformed, in words for the model; None if it is well-formed.
    """

    call_id: str
    tool_name: str
    arguments: dict[str, Any] | str
    error: str | None = None


def prompt_hash(messages: Sequence[Any]) -> str:
    """12 hex digits that name a prompt: the same question at every step and in every run.

    They are the first digits of SHA-256 over the messages as canonical JSON: keys sorted, no spaces, UTF-8.
    """
    return hashlib.sha256(msgspec.json.encode(as_json(list(messages)), order="sorted")).hexdigest()[:12]


def given_keys(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the message without the keys that only a table gave it: those that are None, and an empty list of calls.

    A `datasets.Dataset` gives every message, part and call in a column the keys of all of them, and fills in None. The
    content stays, since it is None in an assistant's message with calls. The arguments of calls stay too: only their
    tool's schema tells a null that was meant from one that was filled in.
    """
    given = {
        key: value for key, value in message.items() if key == "content" or not _is_filled_in(key, value)
    }
    if isinstance(content := given.get("content"), list | tuple):
        given["content"] = [_without_none(part) for part in content]
    if isinstance(calls := given.get("tool_calls"), list | tuple):
        given["tool_calls"] = [_given_call(call) for call in calls]
    return given


def _is_filled_in(key: str, value: Any) -> bool:
    return value is None or (key == "tool_calls" and isinstance(value, list | tuple) and not value)


def _without_none(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: item for key, item in value.items() if item is not None}


def _given_call(call: Any) -> Any:
    given = _without_none(call)
    if isinstance(given, dict) and "function" in given:
        given["function"] = _without_none(given["function"])
    return given


def validated_messages(messages: Any, where: str = "start_messages") -> list[Message]:
    """A copy of the messages, each with a known role and content, and without keys whose value is None.

    Raises:
        MessagesError: there are no messages, or one has another form; `where` names the place.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise MessagesError(
            f"{where} is {type(messages).__name__}; expected a list of messages "
            '[{"role": "user", "content": "…"}, …]'
        )
    copies = [_validated(message, f"{where}[{i}]") for i, message in enumerate(messages)]
    if not copies:
        raise MessagesError(f'{where} is empty; give at least one message {{"role": "user", "content": "…"}}')
    return copies


def _validated(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise MessagesError(
            f'{where} is {type(message).__name__}; expected a message {{"role": "user", "content": "…"}}'
        )
    if message.get("role") not in ROLES:
        raise MessagesError(f"{where} has role {message.get('role')!r}; expected one of {', '.join(ROLES)}")
    content = message.get("content")
    is_text = isinstance(content, str) or (content is None and message["role"] == "assistant")
    if not is_text and not _is_parts(content):
        raise MessagesError(f"{where} has content {_short(content)}; expected a string")
    try:
        msgspec.json.encode(message)
    except (TypeError, ValueError, RecursionError) as error:
        raise MessagesError(
            f"{where} cannot be written as JSON: {error}; expected text, numbers, lists and dicts"
        ) from None
    if nests_deeply(message):
        raise MessagesError(
            f"{where} nests more than {DEPTH_LIMIT} lists and dicts in each other; expected a message that a prompt can show"
        )
    return given_keys(message)  # type: ignore[return-value]  # checked above, field by field


def _is_parts(content: Any) -> bool:
    return isinstance(content, Sequence) and all(
        isinstance(part, Mapping) and "type" in part for part in content
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
