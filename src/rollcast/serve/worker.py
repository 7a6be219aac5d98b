"""A thread that encodes and shortens large events, so that the server's event loop is not blocked."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from rollcast.aio import call_in
from rollcast.serve.fitting import fitted

__all__ = ["Shortener", "Worker"]

MAX_SHORTENED = 16  # how many shortened events are kept for clients that need them a moment later

R = TypeVar("R")
Failed = Callable[[], object]

logger = logging.getLogger("rollcast.serve")


class Worker:
    """One thread, which starts when there is work. Use it only in the event loop that gets its results.

    If work raises, the error is logged, and whoever waits for the result is told that there is none.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: ThreadPoolExecutor | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give results to this loop."""
        self._loop = loop

    def detach(self) -> None:
        """Stop giving results; current work is discarded. This does not wait."""
        self._loop, thread, self._thread = None, self._thread, None
        if thread is not None:
            thread.shutdown(wait=False, cancel_futures=True)

    def do(self, work: Callable[[], R], then: Callable[[R], object], failed: Failed) -> None:
        """Run the work on the thread, after earlier work; in the loop, `then` gets the result, or `failed` is called."""
        if self._loop is None:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollcast-server-encode")
        future = self._thread.submit(work)
        future.add_done_callback(partial(self._done, self._loop, then, failed))

    def _done(
        self, loop: asyncio.AbstractEventLoop, then: Callable[[R], object], failed: Failed, future: Future[R]
    ) -> None:
        if not future.cancelled():
            call_in(loop, self._tell, loop, then, failed, future)

    def _tell(
        self, loop: asyncio.AbstractEventLoop, then: Callable[[R], object], failed: Failed, future: Future[R]
    ) -> None:
        if self._loop is not loop:  # the server has stopped
            return
        error = future.exception()
        if error is None:
            then(future.result())
        else:
            logger.error("the server could not encode events for its clients", exc_info=error)
            failed()


class Shortener:
    """Shortens events for clients that take only small messages. Ask again for an event when it is ready.

    Args:
        worker: its thread does the work.
        ready: called in the worker's loop when an event is ready.
        failed: called in the worker's loop, with the event's position and the room, if the event cannot be shortened.
    """

    def __init__(
        self, worker: Worker, ready: Callable[[], object], failed: Callable[[int, int], object]
    ) -> None:
        self._worker = worker
        self._ready = ready
        self._failed = failed
        self._made: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._making: set[tuple[int, int]] = set()

    def get(self, position: int, event: bytes, room: int) -> bytes | None:
        """The event at this position in the history, in at most `room` bytes; None while it is being shortened."""
        key = (position, room)
        made = self._made.get(key)
        if made is None and key not in self._making:
            self._making.add(key)
            self._worker.do(
                partial(fitted, event, room), partial(self._keep, key), partial(self._give_up, key)
            )
        return made

    def clear(self) -> None:
        self._made.clear()
        self._making.clear()

    def _keep(self, key: tuple[int, int], event: bytes) -> None:
        self._making.discard(key)
        self._made[key] = event
        if len(self._made) > MAX_SHORTENED:
            self._made.popitem(last=False)
        self._ready()

    def _give_up(self, key: tuple[int, int]) -> None:
        self._making.discard(key)
        self._failed(*key)
