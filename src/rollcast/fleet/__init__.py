"""Many processes that are watched in one place: the hub, which takes what they publish (docs/hub.md); and Ray's runners (docs/ray.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollcast.lazy import lazy_names

if TYPE_CHECKING:
    from rollcast.fleet.hub import Hub
    from rollcast.fleet.ray_workers import RayWorkers

__all__ = ["Hub", "RayWorkers"]

__getattr__, __dir__ = lazy_names(
    __name__, {"rollcast.fleet.hub": "Hub", "rollcast.fleet.ray_workers": "RayWorkers"}
)
