"""Where producers wait for lossless observers whose queues are full."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future

from rollcast.stream.delivery import Delivery, fulfil

__all__ = ["WaitingRoom"]


class WaitingRoom:
    """Producers, in event loops and on threads, and the full queues that they wait for.

    Args:
        lock: the manager's, which guards all of this.

    Attributes:
        congested: deliveries whose queues are full; the manager puts them in and takes them out.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self.congested: set[Delivery] = set()
        self._lock = lock
        self._threads: list[Future[None]] = []
        self._tasks: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}

    async def ready(self) -> None:
        """Return at once where no queue is full; else wait, and say once for whom."""
        while self.congested:
            with self._lock:
                for delivery in self.congested:
                    _say_who_is_waited_for(delivery)
                if not self.congested:
                    return
                loop = asyncio.get_running_loop()
                waiter: asyncio.Future[None] = loop.create_future()
                self._tasks.setdefault(loop, []).append(waiter)
            await waiter

    def ready_sync(self) -> None:
        """As `ready`, blocking the thread. In an event loop, observers that live there are not waited for."""
        here = asyncio._get_running_loop()  # noqa: SLF001  (documented; None instead of an exception)
        while self.congested:
            with self._lock:
                late = [d for d in self.congested if here is None or d.observer.threaded]
                for delivery in late:
                    _say_who_is_waited_for(delivery)
                if not late:
                    return
                waiter: Future[None] = Future()
                self._threads.append(waiter)
            waiter.result()

    def wake(self) -> None:
        """Let everybody go on where no queue is full any more: one call into each loop. The lock is held."""
        if self.congested:
            return
        threads, self._threads = self._threads, []
        for thread in threads:
            fulfil(thread)
        tasks, self._tasks = self._tasks, {}
        for loop, waiters in tasks.items():
            with contextlib.suppress(RuntimeError):  # the loop was closed since: nobody waits there any more
                loop.call_soon_threadsafe(_resolve_all, waiters)

    def after_fork(self) -> None:
        """In a forked child nobody waits. The lock is held."""
        self.congested.clear()
        self._threads.clear()
        self._tasks.clear()


def _say_who_is_waited_for(delivery: Delivery) -> None:
    delivery.warn_once(
        "waiting",
        f"the rollout waits for {delivery.observer.name}, which is lossless and has fallen behind",
    )


def _resolve_all(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
