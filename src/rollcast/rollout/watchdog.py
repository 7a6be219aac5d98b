"""Names what keeps the event loop of a run: an async tool that blocks has every chain stand still, and cannot be interrupted."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

from rollcast.aio import call_in
from rollcast.failures import place_in_thread
from rollcast.lifetime import call_after_fork

__all__ = ["watchdog"]

BLOCKED_S = 5.0
"""An event loop that has stood still for so many seconds is told of."""
LOOK_S = 1.0
"""Seconds between two looks."""
IDLE_LOOKS = 10
"""The thread ends after so many looks without a run."""

logger = logging.getLogger("rollcast.rollout")


class _Watch:
    """One event loop in which runs are going on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.runs = 0
        self._loop = loop
        self._thread_id = threading.get_ident()
        self._asked: float | None = None  # for a sign of life, and there was none yet
        self._said: set[str] = set()

    def look(self) -> None:
        """On the watchdog's thread."""
        now = time.monotonic()
        asked = self._asked
        if asked is None:
            self._asked = now
            call_in(self._loop, self._lives)
        elif now - asked >= BLOCKED_S:
            place = place_in_thread(self._thread_id)
            if place is not None and self._asked == asked and place not in self._said:
                self._said.add(place)
                logger.warning(
                    "the event loop stands still, and every chain with it, since %s has been keeping it for %.0f s; make that "
                    "function a plain `def`, which runs on a thread, or have it await; Ctrl-C, twice, ends the run",
                    place,
                    now - asked,
                )

    def _lives(self) -> None:
        self._asked = None


class _Watchdog:
    """One thread for all event loops. `watch` and `leave` are called in the loop."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A forked child has neither the thread nor the loops."""
        self._lock = threading.Lock()
        self._watches: dict[asyncio.AbstractEventLoop, _Watch] = {}
        self._running = False

    def watch(self) -> None:
        """A run begins in this event loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            watch = self._watches.setdefault(loop, _Watch(loop))
            watch.runs += 1
            if self._running:
                return
            try:
                threading.Thread(target=self._run, name="rollcast-watchdog", daemon=True).start()
            except RuntimeError:
                logger.debug("nobody watches the event loop: the system gives no thread")
            else:
                self._running = True

    def leave(self) -> None:
        """A run in this event loop has ended."""
        loop = asyncio.get_running_loop()
        with self._lock:
            watch = self._watches.get(loop)
            if watch is not None:  # none in a forked child
                watch.runs -= 1
                if watch.runs == 0:
                    del self._watches[loop]

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(LOOK_S)
            with self._lock:
                watches = list(self._watches.values())
                idle = 0 if watches else idle + 1
                if idle > IDLE_LOOKS:
                    self._running = False
                    return
            for watch in watches:
                watch.look()
            del watches


watchdog = _Watchdog()
call_after_fork(watchdog.reset)
