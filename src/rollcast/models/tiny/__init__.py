"""The embedded model: a tiny real language model that calls tools, in NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollcast.models.tiny.backend import TinyBackend

__all__ = ["TinyBackend"]


def __getattr__(name: str) -> Any:
    # NumPy and the tokenizer are loaded when the backend is asked for.
    if name == "TinyBackend":
        from rollcast.models.tiny.backend import TinyBackend  # noqa: PLC0415  (lazy, see above)

        return TinyBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
