"""Chooses a row's tools: those of the agent's tools that the row's field `tools` names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from rollcast.errors import MessagesError
from rollcast.rollout.rows import PromptRow
from rollcast.tools import Tool

__all__ = ["chosen_tools", "with_other_instructions"]


def chosen_tools(row: Mapping[str, Any], tools: Mapping[str, Tool], where: str) -> dict[str, Tool] | None:
    """The tools that the row's field `tools` names, in its order; None if it has no such field or it is None.

    The field is a list of names, or of descriptions with a name, `{"type": "function", "function": {"name": …}}`; or such a
    list as JSON, as data sets have it.

    Raises:
        MessagesError: it has another form, or the agent has no tool of a name; `where` names the row.
    """
    given = row.get("tools")
    if given is None:
        return None
    expected = "expected a list of names of the agent's tools, or None for all of them"
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise MessagesError(f"{where}['tools'] is {given[:60]!r}; {expected}") from None
    if hasattr(given, "tolist"):  # a column of names that is an array
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise MessagesError(f"{where}['tools'] is {type(given).__name__}; {expected}")
    names = [_name(item) for item in given]
    for name, item in zip(names, given, strict=True):
        if name is None:
            raise MessagesError(f"{where}['tools'] has {item!r:.60} in it; {expected}")
        if name not in tools:
            known = ", ".join(tools) or "none"
            raise MessagesError(
                f"{where}['tools'] names {name[:60]!r}, but the agent has no such tool (its tools: {known}); give it to the "
                "agent, or leave it out of the row"
            )
    return {name: tools[name] for name in names if name is not None}


def _name(item: Any) -> str | None:
    if isinstance(item, Mapping):
        inner = item.get("function")
        item = inner.get("name") if isinstance(inner, Mapping) else item.get("name")
    return item if isinstance(item, str) else None


def with_other_instructions(row: PromptRow, old: str, new: str) -> PromptRow:
    """The row with the instructions at the end of its system message replaced."""
    first, *rest = row.messages
    content = first["content"]
    if isinstance(content, str):
        content = content.removesuffix(old).removesuffix("\n\n")
        content = "\n\n".join(part for part in (content, new) if part)
    elif content:
        content = [*content[:-1], *([{"type": "text", "text": new}] if new else [])]
    messages = [{**first, "content": content}, *rest] if content else rest
    return msgspec.structs.replace(row, messages=messages)
