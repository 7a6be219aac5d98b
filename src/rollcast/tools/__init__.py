"""Tools: plain functions that a model may call, described to it by their types and docstrings.

The names are lazy, so that modules that only need `Injected` do not load pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rollcast.tools.context import Injected

if TYPE_CHECKING:
    from rollcast.tools.calc import calculator as calculator
    from rollcast.tools.definition import Tool as Tool
    from rollcast.tools.definition import ToolResult as ToolResult
    from rollcast.tools.definition import tool as tool
    from rollcast.tools.image import Image as Image
    from rollcast.tools.toolset import tool_set as tool_set
    from rollcast.tools.toolset import unknown_tool as unknown_tool

_HOME = {
    "Image": "rollcast.tools.image",
    "Tool": "rollcast.tools.definition",
    "ToolResult": "rollcast.tools.definition",
    "calculator": "rollcast.tools.calc",
    "tool": "rollcast.tools.definition",
    "tool_set": "rollcast.tools.toolset",
    "unknown_tool": "rollcast.tools.toolset",
}

__all__ = ["Image", "Injected", "Tool", "ToolResult", "calculator", "tool", "tool_set", "unknown_tool"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rollcast.tools' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
