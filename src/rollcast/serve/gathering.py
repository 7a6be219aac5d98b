"""How long a server gathers events before it sends them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from rollcast.serve.settings import ServerSettings

__all__ = ["Gathering", "Timer"]

MANY = 10  # viewers, from which on a hub gathers more
BATCHES = 2  # that are sent together then
WAITS = 3  # times `batch_s`, 75 ms: longer than a producer waits from one message to the next


class Gathering:
    """Decides when a flush is due. Its owner guards it with a lock.

    Args:
        settings: the server's.
        clock: seconds that pass.

    Attributes:
        of_hub: whether it is a hub's. Its events come in messages of many events, each of which is a batch already. With ten viewers or
            more a hub waits for two of them, at most three times `batch_s`, and within that time a first chunk does not hurry it.
    """

    def __init__(self, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.of_hub = False
        self._settings = settings
        self._clock = clock
        self._head = self._total = 0
        self._at = -float("inf")

    def flushed(self, head: int, total: int) -> None:
        """A flush begins, with so many events, and bytes, since the history began."""
        self._head, self._total, self._at = head, total, self._clock()

    def wait_s(self, head: int, total: int, viewers: int, *, first_chunk: bool) -> float | None:
        """How long the latest events may wait, in seconds; None if a flush is due now.

        Args:
            head: how many events came since the history began.
            total: how many bytes.
            viewers: how many subscriptions there are.
            first_chunk: whether the first chunk of a generation has come.
        """
        settings, longest = self._settings, self._settings.batch_s
        events, size = head - self._head, total - self._total
        if self.of_hub and viewers >= MANY:
            longest *= WAITS
            full = events >= BATCHES * settings.batch_events or size >= BATCHES * settings.batch_bytes
            hurry = first_chunk and self._clock() - self._at >= longest
        else:
            full = events >= settings.batch_events or size >= settings.batch_bytes
            hurry = first_chunk
        return None if full or hurry else longest


class Timer:
    """Calls back in the loop's next turn or after some time, whichever was set and comes first."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._callback = callback
        self._handle: asyncio.Handle | None = None
        self._at_once = False

    def set(self, wait_s: float | None) -> None:
        """Call back after so many seconds, unless it is set already; None: in the loop's next turn."""
        if self.loop is None or self._at_once:
            return
        if wait_s is None:
            self.cancel()
            self._at_once = True
            self._handle = self.loop.call_soon(self._callback)
        elif self._handle is None:
            self._handle = self.loop.call_later(wait_s, self._callback)

    def cancel(self) -> None:
        """Do not call back."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._at_once = None, False
