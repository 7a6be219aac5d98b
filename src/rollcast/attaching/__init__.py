"""Watches what is not ours: one line for a trainer, a client or a function that is there already (docs/attach/index.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollcast.lazy import lazy_names

if TYPE_CHECKING:
    from rollcast.attaching.attachment import Attachment
    from rollcast.attaching.front import attach
    from rollcast.attaching.watch import Watch

__all__ = ["Attachment", "Watch", "attach"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "rollcast.attaching.attachment": "Attachment",
        "rollcast.attaching.front": "attach",
        "rollcast.attaching.watch": "Watch",
    },
)
