"""Rollcast runs tool-using LLM agents as many parallel chains and streams every token, tool call and reward live.

The names here are lazy: `import rollcast` loads no model, no server and no NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollcast.errors import RollcastError as RollcastError
    from rollcast.records import EventFilter as EventFilter
    from rollcast.records import StreamEvent as StreamEvent
    from rollcast.records import StreamEventType as StreamEventType
    from rollcast.records import Trajectory as Trajectory

__version__ = "0.1.0"

_HOME = {
    "EventFilter": "rollcast.records",
    "RollcastError": "rollcast.errors",
    "StreamEvent": "rollcast.records",
    "StreamEventType": "rollcast.records",
    "Trajectory": "rollcast.records",
}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604  (all are strings)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rollcast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
