"""What a run starts from: rows, each a conversation and the fields that its rewards and tools may use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from rollcast.errors import InputError, MessagesError
from rollcast.records import Message, validated_messages

__all__ = ["Row", "as_rows", "count", "derived_seed"]


_SYSTEM = ("system", "developer")


class Row(msgspec.Struct, frozen=True):
    """One prompt. `fields` are what stands beside its messages."""

    messages: list[Message]
    fields: dict[str, Any]


def as_rows(start_messages: Any, system_prompt: str | None = None, instructions: str = "") -> list[Row]:
    """The rows that `start_messages` gives: one conversation, or a list of rows `{"messages": […], …fields}`.

    The system prompt is put before conversations that have none; the instructions are put at the end of every
    conversation's.

    Raises:
        MessagesError: it is neither, or there is nothing in it.
    """
    if isinstance(start_messages, Mapping | str | bytes) or not isinstance(start_messages, list | tuple):
        raise MessagesError(
            f"start_messages is {type(start_messages).__name__}; expected one conversation "
            '[{"role": "user", "content": "…"}], or a list of rows [{"messages": [...], "answer": …}]'
        )
    if not start_messages:
        raise MessagesError(
            'start_messages is empty; give one conversation [{"role": "user", "content": "…"}] or a list of rows'
        )
    with_messages = [isinstance(item, Mapping) and "messages" in item for item in start_messages]
    if not any(with_messages):
        return [_row({"messages": start_messages}, "start_messages", system_prompt, instructions)]
    if not all(with_messages):
        i = with_messages.index(False)
        raise MessagesError(
            f"start_messages[{i}] has no 'messages', but others have; "
            'give a list of rows {"messages": [...]} or one conversation, not both'
        )
    return [
        _row(item, f"start_messages[{i}]['messages']", system_prompt, instructions)
        for i, item in enumerate(start_messages)
    ]


def _row(item: Mapping[str, Any], where: str, system_prompt: str | None, instructions: str) -> Row:
    messages = validated_messages(item["messages"], where)
    if system_prompt is not None and messages[0]["role"] not in _SYSTEM:
        messages.insert(0, {"role": "system", "content": system_prompt})
    if instructions:
        first = messages[0]
        if first["role"] not in _SYSTEM:
            messages.insert(0, {"role": "system", "content": instructions})
        elif isinstance(first["content"], str):
            first["content"] = f"{first['content']}\n\n{instructions}"
        else:
            first["content"] = [*(first["content"] or []), {"type": "text", "text": instructions}]
    return Row(messages, {name: value for name, value in item.items() if name != "messages"})


def count(name: str, value: Any, *, at_least: int = 1) -> int:
    """The value, where it is a whole number and large enough.

    Raises:
        InputError: it is not; `name` names it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InputError(f"{name} is {value!r}; expected a whole number from {at_least} upward")
    return value


def derived_seed(*path: int | str) -> int:
    """A seed of 63 bits that depends on the whole path and nothing else."""
    digest = hashlib.blake2b("/".join(map(str, path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
