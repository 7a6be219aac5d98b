"""Many processes that are watched in one place: the hub, which takes what they publish (docs/hub.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollcast.fleet.hub import Hub

__all__ = ["Hub"]


def __getattr__(name: str) -> Any:
    if name != "Hub":
        raise AttributeError(f"module 'rollcast.fleet' has no attribute {name!r}")
    from rollcast.fleet.hub import Hub  # noqa: PLC0415  (not every process has a hub)

    return Hub
