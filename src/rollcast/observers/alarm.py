"""A delayed call that needs no event loop."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

__all__ = ["Alarm"]


class Alarm:
    """Once `set`, it calls a method after an interval, on a thread of its own that ends with the call.

    It needs no event loop, so it outlives `asyncio.run` and works in code without a loop. Setting it twice makes it ring
    once, so it has at most one thread at a time, and starts at most one in each interval.

    Args:
        interval: in seconds.
        ring: the method to call; it is not kept alive for that.
    """

    def __init__(self, interval: float, ring: weakref.WeakMethod[Callable[[], None]]) -> None:
        self.interval = interval
        self._ring = ring
        self._timer: threading.Timer | None = None
        self._pid = os.getpid()

    def set(self) -> None:
        """Ring after the interval, or at once if no thread can be started."""
        if self._timer is not None and self._pid == os.getpid():
            return
        timer = threading.Timer(self.interval, self._rings)
        timer.daemon = True
        timer.name = "rollcast-flush"
        self._timer, self._pid = timer, os.getpid()
        try:
            timer.start()
        except RuntimeError:  # no thread, or (Python 3.12) the interpreter exits
            self._rings()

    def cancel(self) -> None:
        """Do not ring."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _rings(self) -> None:
        self._timer = None  # first, so that whatever comes from here on sets it again
        ring = self._ring()
        if ring is not None:
            ring()
