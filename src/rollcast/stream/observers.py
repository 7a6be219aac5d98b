"""The observers by the paths that they had in 0.1, when they were a part of this room.

They are in `rollcast.observers` and `rollcast.terminal` now. `rollcast.stream.observers`, and each module that it had, is the same
object as what stands there; nothing is loaded before it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ROOMS = ("rollcast.observers", "rollcast.terminal")
__path__: list[str] = []  # its modules are found by `_Moved`

_NAMES = (
    "AsyncGeneratorStreamObserver",
    "CallbackStreamObserver",
    "ChainSpecificStreamObserver",
    "ConsoleStreamObserver",
    "JSONStreamObserver",
    "MultiChainStreamObserver",
    "OpenTelemetryStreamObserver",
    "PrometheusStreamObserver",
)
__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name == "ConsoleStreamObserver"]), name)


class _Moved(MetaPathFinder, Loader):
    """Finds a module under its old path where it is now."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return None
        for room in _ROOMS:
            now = room + fullname.removeprefix(__name__)
            if importlib.util.find_spec(now) is not None:
                return ModuleSpec(fullname, self, origin=now)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        assert spec.origin is not None
        module = importlib.import_module(spec.origin)
        self._own_spec = module.__spec__  # importing sets that of the old path, which is not the module's
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec


sys.meta_path.append(_Moved())
