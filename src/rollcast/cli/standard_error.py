"""Warnings on the standard error, beside a command's output."""

from __future__ import annotations

import sys
from contextlib import suppress

__all__ = ["say", "warn"]


def warn(text: str) -> None:
    """Print a sentence of Rollcast's on the standard error, if that can be written."""
    say(f"rollcast: {text}")


def say(line: str) -> None:
    """Print a line on the standard error, if that can be written."""
    if sys.stderr is None:  # as under pythonw
        return
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
