"""A thread that encodes and shortens what is large, so that the server's event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from rollcast.aio import call_in
from rollcast.serve.fitting import fitted

__all__ = ["Shortener", "Worker"]

MAX_SHORTENED = 16  # events that are kept shortened, for clients that come to them a moment later

R = TypeVar("R")


class Worker:
    """One thread, which begins when there is something to do. All of it is used in the event loop that it answers."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: ThreadPoolExecutor | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer in this loop."""
        self._loop = loop

    def detach(self) -> None:
        """Answer nobody any more; what is being done is done in vain. Does not wait."""
        self._loop, thread, self._thread = None, self._thread, None
        if thread is not None:
            thread.shutdown(wait=False, cancel_futures=True)

    def do(self, work: Callable[[], R], then: Callable[[R], object]) -> None:
        """Have the thread do the work, after what it was given before; `then` gets the result, in the loop."""
        if self._loop is None:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollcast-server-encode")
        future = self._thread.submit(work)
        future.add_done_callback(partial(self._done, self._loop, then))

    def _done(self, loop: asyncio.AbstractEventLoop, then: Callable[[R], object], future: Future[R]) -> None:
        if not future.cancelled():
            call_in(loop, lambda: self._loop is loop and then(future.result()))


class Shortener:
    """Events as short as a client takes them. The thread cuts them, and whoever wants one asks again when it is ready.

    Args:
        worker: does it.
        ready: called in the worker's loop when there is something to ask for.
    """

    def __init__(self, worker: Worker, ready: Callable[[], object]) -> None:
        self._worker = worker
        self._ready = ready
        self._made: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._making: set[tuple[int, int]] = set()

    def get(self, position: int, event: bytes, room: int) -> bytes | None:
        """The event at this position of the history, in at most `room` bytes; None: it is being shortened."""
        key = (position, room)
        made = self._made.get(key)
        if made is None and key not in self._making:
            self._making.add(key)
            self._worker.do(partial(fitted, event, room), partial(self._keep, key))
        return made

    def clear(self) -> None:
        """Forget all of it."""
        self._made.clear()
        self._making.clear()

    def _keep(self, key: tuple[int, int], event: bytes) -> None:
        self._making.discard(key)
        self._made[key] = event
        if len(self._made) > MAX_SHORTENED:
            self._made.popitem(last=False)
        self._ready()
