"""Finds the event loop in which an observer is called, and waits for observers that leave."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from concurrent.futures import Future
from typing import Any

from rollcast.aio import call_in, running_loop, wait_for_all, wait_for_all_blocking
from rollcast.stream.fanout import Fanout
from rollcast.stream.pump import Pump
from rollcast.stream.shift import shared_running_loop

__all__ = ["Departures", "Homes"]

logger = logging.getLogger("rollcast.stream")

LOOK_AGAIN_S = 1.0  # how long work that an ended event loop left over waits for the next loop


class Homes:
    """Finds the event loop in which to call an observer that does not have a thread of its own."""

    def __init__(self, fanout: Fanout) -> None:
        self._fanout = fanout
        self._background: asyncio.AbstractEventLoop | None = None
        self._forgotten: weakref.finalize[..., Any] | None = None

    def loop_for(self, *preferred: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
        """See `PumpHost.loop_for`. It is the first running loop among the preferred ones, this thread's and those of the open
        runs; otherwise the background loop. The lock is held.
        """
        here = shared_running_loop()
        runs = (run.loop for run in self._fanout.runs.values())
        for loop in (*preferred, here if here is not self._background else None, *runs):
            if loop is not None and loop.is_running():
                return loop
        return self._background_loop()

    def _background_loop(self) -> asyncio.AbstractEventLoop:
        if self._background is None or self._background.is_closed():
            loop = asyncio.new_event_loop()
            thread = threading.Thread(
                target=_run_until_stopped, args=(loop,), name="rollcast-observers", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                loop.close()
                raise
            self._background = loop
            # A manager that nobody has any more needs no thread, also if it was never closed.
            self._forgotten = weakref.finalize(self, call_in, loop, loop.stop)
            self._forgotten.atexit = False
        return self._background

    def look_again_locked(self, pump: Pump) -> None:
        """See `PumpHost.look_again`."""
        try:
            loop = self._background_loop()
        except RuntimeError as error:  # as in `Pump`
            logger.debug("%s waits: %s", pump.delivery.reader, error)
            return
        call_in(loop, loop.call_later, LOOK_AGAIN_S, pump.look_again)

    def stop(self) -> None:
        """Stop the background loop, if there is one."""
        with self._fanout.lock:
            loop, self._background = self._background, None
        if loop is not None:
            call_in(loop, loop.stop)

    def after_fork_locked(self) -> None:
        """In a forked child there is no background thread."""
        self._background = None
        if self._forgotten is not None:
            self._forgotten.detach()  # the loop is the parent's


def _run_until_stopped(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)  # of observers that hang; some may ignore the cancellation
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
    finally:
        loop.close()


class Departures:
    """Removed observers, until they have taken what was emitted and have closed.

    An observer that takes nothing for `drain_timeout` seconds hangs: its call is cancelled, and a warning names it. If it
    ignores that for as long again, it is left behind. One that is only slow is no longer waited for after three times that
    long, and goes on in the background.
    """

    def __init__(self, fanout: Fanout) -> None:
        self._fanout = fanout
        self._lock = fanout.lock
        self._pumps: dict[Pump, tuple[int, int] | None] = {}  # each with its progress when the waiting began

    def add_locked(self, pump: Pump) -> None:
        """Wait for this pump, whose observer was removed."""
        self._pumps[pump] = None

    def remove_locked(self, pump: Pump) -> None:
        """Stop waiting for this pump, which has closed."""
        self._pumps.pop(pump, None)

    def __bool__(self) -> bool:
        return bool(self._pumps)

    @property
    def pumps(self) -> list[Pump]:
        """The pumps that have not closed yet."""
        with self._lock:
            return list(self._pumps)

    async def wait(self) -> None:
        """Wait until all have closed; stop those that hang, and warn of those that are slow."""
        for step in (self._stop_hanging, self._stop_hanging, self._name_slow):
            await wait_for_all(self._unfinished(), self._fanout.drain_timeout)
            step()

    def wait_blocking(self) -> None:
        """Do the same as `wait`, but block the thread."""
        for step in (self._stop_hanging, self._stop_hanging, self._name_slow):
            if running_loop() is None:
                for pump in self.pumps:
                    pump.run_here()
            wait_for_all_blocking(self._unfinished(), self._fanout.drain_timeout)
            step()

    def _unfinished(self) -> list[Future[None]]:
        with self._lock:
            for pump in self._pumps:
                self._pumps[pump] = pump.delivery.progress
            return [pump.finished for pump in self._pumps]

    def _stop_hanging(self) -> None:
        with self._lock:
            for pump, before in list(self._pumps.items()):
                if pump.given_up:
                    pump.abandon_locked()
                elif pump.delivery.progress == before:
                    pump.give_up_locked()

    def _name_slow(self) -> None:
        with self._lock:
            for pump in list(self._pumps):
                if pump.given_up:
                    pump.abandon_locked()
                    continue
                logger.warning(
                    "%s has not closed yet; it goes on with %d events",
                    pump.delivery.reader,
                    pump.delivery.statistics().queued,
                )

    def after_fork_locked(self) -> None:
        """In a forked child: forget them, since the parent closes them."""
        self._pumps.clear()
