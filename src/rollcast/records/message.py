"""Chat messages in the shape that the OpenAI API and every chat template share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

import msgspec

from rollcast.errors import MessagesError

__all__ = ["Message", "Role", "ToolCall", "safe_text", "validated_messages"]

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


class Message(TypedDict):
    """One message. `content` is text, or a list of parts where a backend understands parts.

    An assistant's `reasoning_content` is what it thought before it spoke; `content` does not contain it.
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
        arguments: the object, or the raw text where it is not a valid object.
        error: why the call is malformed, in words for the model; None where it is well-formed.
    """

    call_id: str
    tool_name: str
    arguments: dict[str, Any] | str
    error: str | None = None


def safe_text(text: str) -> str:
    """The text with lone surrogates, which no encoding takes, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def validated_messages(messages: Any, where: str = "start_messages") -> list[Message]:
    """A copy of the messages, each with a known role and content.

    Raises:
        MessagesError: there are none, or one has another shape; `where` names the place.
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
    text_alone = isinstance(content, str) or (content is None and message["role"] == "assistant")
    if not text_alone and not _is_parts(content):
        raise MessagesError(f"{where} has content {_short(content)}; expected a string")
    try:
        msgspec.json.encode(message)
    except (TypeError, ValueError, RecursionError) as error:
        raise MessagesError(
            f"{where} cannot be written as JSON: {error}; expected text, numbers, lists and dicts"
        ) from None
    return dict(message)  # type: ignore[return-value]  # checked above, field by field


def _is_parts(content: Any) -> bool:
    return isinstance(content, Sequence) and all(
        isinstance(part, Mapping) and "type" in part for part in content
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
