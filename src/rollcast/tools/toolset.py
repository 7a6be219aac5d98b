"""The tools of one agent, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rollcast.errors import ToolDefinitionError
from rollcast.text import one_line, well_formed
from rollcast.tools.definition import Tool, tool

__all__ = ["tool_set", "unknown_tool"]


def tool_set(tools: Iterable[Tool | Callable[..., Any]]) -> dict[str, Tool]:
    """The tools by name, in order; plain functions and bound methods become tools.

    Raises:
        ToolDefinitionError: two have the same name, or one cannot be described to a model.
    """
    if isinstance(tools, Tool | str) or callable(tools) or not isinstance(tools, Iterable):
        raise ToolDefinitionError(f"tools is {tools!r}; expected a list of tools, as in tools=[it]")
    by_name: dict[str, Tool] = {}
    for item in tools:
        if isinstance(item, Mapping):
            raise ToolDefinitionError(
                f"{one_line(repr(item), 80)} describes a tool but calls nothing; make a tool from it: "
                "Tool.from_schema(name, description, parameters, call)"
            )
        if not callable(item):
            raise ToolDefinitionError(
                f"{item!r} is not a function; make a tool from a function or a bound method"
            )
        each = item if isinstance(item, Tool) else tool(item)
        if each.name in by_name:
            raise ToolDefinitionError(
                f"two tools are named {each.name!r}; give one another name: tool(function, name=…)"
            )
        by_name[each.name] = each
    return by_name


def unknown_tool(name: str, tools: Mapping[str, Tool] | Iterable[str]) -> str:
    """The observation for a call of a tool that does not exist, in one line."""
    known = ", ".join(tools)
    asked = one_line(well_formed(name), 60)
    return one_line(
        f"error: there is no tool {asked!r}; " + (f"tools: {known}" if known else "there are none"), 1000
    )
