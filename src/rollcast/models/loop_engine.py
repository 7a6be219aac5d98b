"""A thread with an event loop of its own, in which generations run as tasks: vLLM's engine, and the client of a server.

What such a thread uses belongs to one event loop. With a loop of its own, requests may come from several loops and threads, and a
reader that stalls does not stall the others. What arrives together goes to each consumer's loop in one wake-up.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from rollcast.errors import BackendError
from rollcast.models.failures import fresh_copy
from rollcast.models.inbox import Inbox, Item, deliver

__all__ = ["LoopEngine", "TaskInbox"]

_T = TypeVar("_T")


class TaskInbox(Inbox):
    """A generation, and the task of the engine's loop that fills it.

    Attributes:
        task: it; None before it begins.
    """

    __slots__ = ("task",)

    def __init__(self) -> None:
        super().__init__()
        self.task: asyncio.Task[None] | None = None


G = TypeVar("G", bound=TaskInbox)


class LoopEngine(ABC, Generic[G]):
    """The thread, its loop, and the generations that run in it. Both start at once.

    Args:
        name: of the thread.

    Attributes:
        version: the version of the weights that are sampled from now.
    """

    def __init__(self, name: str) -> None:
        self.version = 0
        # Used by the engine's thread only.
        self._running: set[G] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._outbox: list[tuple[G, Item]] = []
        # Shared, under the lock: why nothing can be generated any more, or until new weights come.
        self._lock = threading.Lock()
        self._closed: BackendError | None = None
        self._unusable: BackendError | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # -- called from any thread ----------------------------------------------------------------------------------------

    def submit(self, generation: G) -> None:
        """Begin a generation.

        Raises:
            BackendClosedError: the engine was closed.
            BackendError: its weights are not what they should be.
        """
        with self._lock:
            if (failure := self._closed or self._unusable) is not None:
                raise fresh_copy(failure)
            self._loop.call_soon_threadsafe(self._begin, generation)

    def leave(self, generation: G) -> None:
        """End a generation; it receives None unless it had ended. May be called twice."""
        with self._lock:
            if self._closed is None:
                self._loop.call_soon_threadsafe(self._end, generation, None)

    def wait_for(self, question: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in the engine's loop, and block until it has ended."""
        return asyncio.run_coroutine_threadsafe(question, self._loop).result()

    async def ask(self, question: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in the engine's loop. It runs to its end even if the caller is cancelled.

        Raises:
            BackendClosedError: the engine was closed, or died.
        """
        with self._lock:
            if self._closed is not None:
                question.close()
                raise fresh_copy(self._closed)
            future = asyncio.run_coroutine_threadsafe(self._tracked(question), self._loop)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if future.cancelled() and self._closed is not None:
                raise fresh_copy(self._closed) from None
            raise

    def close(self, failure: BackendError) -> None:
        """Fail every present and future generation with this error, and end the thread."""
        with self._lock:
            if self._closed is None:
                self._closed = failure
                asyncio.run_coroutine_threadsafe(self._shutdown(failure), self._loop)
        # The garbage collector may close a forgotten backend on the engine's own thread.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def fail_all(self, failure: BackendError | None) -> None:
        """Fail every present and future generation with this error; None allows new ones again. Called in the engine's loop."""
        with self._lock:
            self._unusable = failure
        if failure is not None:
            for generation in list(self._running):
                self._end(generation, fresh_copy(failure))

    # -- in the engine's loop ------------------------------------------------------------------------------------------

    @abstractmethod
    async def _pump(self, generation: G) -> None:
        """Fill the generation's inbox (`_put`, and `_end` for an error), until it ends."""

    @abstractmethod
    async def _let_go(self) -> None:
        """Close what the engine holds. No generation runs any more."""

    async def settled(self) -> None:
        """Wait until what has arrived was taken, so that it has the version that sampled it."""
        for _ in range(8 + len(self._running)):
            await asyncio.sleep(0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _tracked(self, question: Coroutine[Any, Any, _T]) -> _T:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await question

    def _begin(self, generation: G) -> None:
        self._running.add(generation)
        task = generation.task = self._loop.create_task(self._pump(generation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _put(self, generation: G, item: Item) -> None:
        if generation not in self._running:
            return
        if not self._outbox:
            # What else has arrived is already scheduled to be read before this call.
            self._loop.call_soon(self._flush)
        self._outbox.append((generation, item))

    def _end(self, generation: G, item: Item) -> None:
        self._put(generation, item)
        self._running.discard(generation)
        task = generation.task
        if task is not None and task is not asyncio.current_task(self._loop):
            task.cancel()

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        closed = deliver(outbox)
        # What comes for a closed loop would never be read.
        for generation in [other for other in self._running if other.loop in closed]:
            self._end(generation, None)

    async def _shutdown(self, failure: BackendError) -> None:
        for generation in list(self._running):
            self._end(generation, fresh_copy(failure))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._flush()
        try:
            await self._let_go()
        finally:
            self._loop.stop()
