"""The observers under their import paths of 0.1.

They are in `rollcast.observers` and `rollcast.terminal` now. The classes and modules under `rollcast.stream.observers` are the
same objects as there; nothing is loaded before it is used.
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
    """Imports a module under its old path from where it is now."""

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
        self._own_spec = module.__spec__  # importing replaces it with that of the old path
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec


sys.meta_path.append(_Moved())
