"""Warnings on the standard error, beside a command's output."""

from __future__ import annotations

import sys
from contextlib import suppress

__all__ = ["warn"]


def warn(text: str) -> None:
    """Print a sentence on the standard error, if that can be written."""
    if sys.stderr is None:  # as under pythonw
        return
    with suppress(OSError, ValueError):
        print(f"rollcast: {text}", file=sys.stderr, flush=True)
