"""A clock that is wrong, for the process that imports this before anything else."""

from __future__ import annotations

import time

__all__ = ["shift_clock"]


def shift_clock(seconds: float) -> None:
    """Set the clock of this process so many seconds ahead; its `monotonic` goes on as before."""
    if seconds:
        right = time.time
        time.time = lambda: right() + seconds
