"""Finds code that blocks a run's event loop: a blocking async tool stops every chain, and cannot be interrupted."""

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
"""After an event loop was blocked for this many seconds, a warning says so."""
LOOK_S = 1.0
"""Seconds between two checks."""
IDLE_LOOKS = 10
"""The thread ends after this many checks without a run."""

logger = logging.getLogger("rollcast.rollout")


class _Watch:
    """One event loop with open runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.runs = 0
        self._loop = loop
        self._thread_id = threading.get_ident()
        self._lives = threading.Event()  # the loop gives a sign of life when it is asked for one
        self._lives.set()
        self._looks = (
            0  # since it was asked: a clock would count the time in which the whole process stood still
        )
        self._said: set[str] = set()

    def look(self) -> None:
        """On the watchdog's thread."""
        if self._lives.is_set():
            self._lives.clear()
            self._looks = 0
            call_in(self._loop, self._lives.set)
            return
        self._looks += 1
        blocked_s = self._looks * LOOK_S
        if blocked_s >= BLOCKED_S:
            place = place_in_thread(self._thread_id)
            if place is not None and not self._lives.is_set() and place not in self._said:
                self._said.add(place)
                logger.warning(
                    "the event loop is blocked, and every chain with it: %s has held it for %.0f s; make that function a "
                    "plain `def`, which runs on a thread, or make it await; Ctrl-C, twice, ends the run",
                    place,
                    blocked_s,
                )


class _Watchdog:
    """One thread that checks all event loops. Call `watch` and `leave` in the loop."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: a forked child has neither the thread nor the loops."""
        self._lock = threading.Lock()
        self._watches: dict[asyncio.AbstractEventLoop, _Watch] = {}
        self._running = False

    def watch(self) -> None:
        """Note that a run begins in this event loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            watch = self._watches.setdefault(loop, _Watch(loop))
            watch.runs += 1
            if self._running:
                return
            try:
                threading.Thread(target=self._run, name="rollcast-watchdog", daemon=True).start()
            except RuntimeError:
                logger.debug("the event loop is not watched: no thread can be started")
            else:
                self._running = True

    def leave(self) -> None:
        """Note that a run in this event loop has ended."""
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
