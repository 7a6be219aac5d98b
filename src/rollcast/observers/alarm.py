"""A call after a while, whether an event loop runs or not."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

__all__ = ["Alarm"]


class Alarm:
    """Once `set`, it calls a method after an interval, on a thread of its own that ends with the call.

    It needs no event loop, so it outlives `asyncio.run`, and works in code that has none. Setting it twice is no error: it
    rings once. So there are never more threads than one, nor more than one an interval.

    Args:
        interval: in seconds.
        ring: what is called; it is not kept alive for that.
    """

    def __init__(self, interval: float, ring: weakref.WeakMethod[Callable[[], None]]) -> None:
        self.interval = interval
        self._ring = ring
        self._timer: threading.Timer | None = None
        self._pid = os.getpid()

    def set(self) -> None:
        """Ring after the interval; at once if the system gives no thread."""
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
        self._timer = None  # first: what comes from here on sets it again
        ring = self._ring()
        if ring is not None:
            ring()
