"""A shift: one stretch of a pump's work in one event loop.

    begin ──▶ wait for an earlier pump ──▶ take, hand over, take … ──▶ nothing left, or the delivery has ended

In a loop that is shared, it has two tasks. The *worker* calls the observer. The *guard* is the task that `asyncio.run` and others
see and cancel when the loop ends: it cancels the worker, but does not wait for ever for one that ignores that. So an observer
that swallows its cancellation does not keep the loop running.

A shift may end unnoticed, because its loop is closed or has stopped for good. Its pump then begins another one. If the old shift
ever wakes up, it finds that it is no longer its pump's shift, and changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from contextvars import Context
from typing import Any, Literal, Protocol

from rollcast import aio
from rollcast.aio import call_in, follower, others_run, resolve, running_loop, uncancel
from rollcast.stream.calls import Calls
from rollcast.stream.delivery import Delivery
from rollcast.stream.queue import Item
from rollcast.stream.waiting import Passage

__all__ = ["Shift", "ShiftOwner", "shared_running_loop"]

logger = logging.getLogger("rollcast.stream")

# A call costs more than handing over a few events: if there were fewer than this, it waits for a second turn of the loop,
FEW = 64
SHORT_S = 0.001  # unless the first turn took longer than this
NEVER_S = 3e8  # ten years

_here = threading.local()


def shared_running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, unless it belongs to one threaded observer and may end at any moment."""
    return None if getattr(_here, "is_an_observers", False) else running_loop()


class ShiftOwner(Protocol):
    """What a shift needs from its pump. Methods with `_locked` are called with the delivery's lock held."""

    delivery: Delivery
    calls: Calls
    after: Future[None] | None
    shift: Shift | None

    @property
    def patience(self) -> float:
        """How many seconds a call may take after it was cancelled."""
        ...

    def expects_more_locked(self) -> bool:
        """Whether a run is open, so that a shift with nothing to do waits instead of ending."""
        ...

    def finished_locked(self, state: Literal["idle", "closing", "closed"]) -> None:
        """Called when the current shift has reached this state."""
        ...

    def is_given_up_locked(self) -> bool:
        """Whether to close the observer although its call was cancelled."""
        ...

    def interrupted_locked(self, shift: Shift) -> None:
        """Called when the shift ended before it was done, or cannot continue."""
        ...

    def leave_behind(self, shift: Shift) -> None:
        """Called when the observer did not end after it was cancelled."""
        ...


class Shift:
    """One stretch of work.

    Args:
        owner: the pump.
        context: the context of its tasks. Each shift has its own, since only one thread can enter a context at a time, and an
            earlier shift may still be in its last step in another loop.
        passing: whether it ends when nothing is left, even if a run is open.

    Attributes:
        loop: the loop in which it works; None until it is known.
        taken: the items taken last. The first `delivery.begun` of them were handed over.
    """

    def __init__(self, owner: ShiftOwner, context: Context, *, passing: bool = False) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.taken: list[Item] = []
        self.passing = passing
        self._owner = owner
        self._delivery = owner.delivery
        self._context = context
        self._worker: asyncio.Task[None] | None = None
        self._guard: asyncio.Task[None] | None = None
        self._asleep = True  # the observer is not being called
        self._alarm: weakref.ref[asyncio.TimerHandle] | None = None
        self._watch: weakref.ref[_HeldByLoop] | None = None

    # -- beginning and ending: the lock is held ------------------------------------------------------------------------

    def begin_locked(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Begin in this loop. False if the loop is closed."""
        self.loop = loop
        held = _HeldByLoop()
        self._watch = weakref.ref(held, self._loop_let_go)
        if loop is running_loop():
            self._begin(held)
            return True
        return call_in(loop, self._begin, held) and not loop.is_closed()

    def _begin(self, held: _HeldByLoop) -> None:
        if self._owner.shift is not self:
            return
        loop = asyncio.get_running_loop()
        self._alarm = weakref.ref(
            loop.call_later(NEVER_S, held.let_go)
        )  # the loop drops this when it is closed
        self._guard = self._task(self._stand_guard(), loop)
        self._guard.add_done_callback(self._guard_left)
        self.hire()

    def _task(self, work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        """Make a task without `loop.create_task`, since a user's task factory may start it at once while the lock is held."""
        name = f"rollcast-observer-{self._delivery.reader}"
        task = asyncio.Task(work, loop=loop, name=name, context=self._context.copy())
        # If the loop is closed before the task ends, that is handled here and needs no warning.
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  (as asyncio's own gather does)
        return task

    def hire(self) -> asyncio.Task[None]:
        """Create the worker, in the running loop."""
        loop = self.loop = asyncio.get_running_loop()
        worker = self._task(self._work(), loop)
        asyncio._unregister_task(worker)  # noqa: SLF001  (documented for code that makes tasks; all_tasks() then leaves it out)
        worker.add_done_callback(self._worker_ended)
        self._worker = worker
        return worker

    def work_alone(self) -> None:
        """Do the work in this thread, which is the observer's own."""
        _here.is_an_observers = True
        try:
            with contextlib.suppress(asyncio.CancelledError):
                aio.run(self._work())
        finally:
            self._interrupted()

    def is_lost(self) -> bool:
        """Whether its loop will not continue it."""
        loop = self.loop
        return loop is not None and (loop.is_closed() or (self._asleep and not loop.is_running()))

    def cancel_locked(self) -> bool:
        """Cancel the current call. False if that has no effect, since the work has not begun or its loop does not run."""
        loop, worker = self.loop, self._worker
        if loop is None or worker is None or not loop.is_running():
            return False
        return call_in(loop, worker.cancel)

    def dismiss_locked(self) -> None:
        """Clean up when it is no longer its pump's shift."""
        alarm = self._alarm() if self._alarm is not None else None
        if alarm is not None and self.loop is running_loop():
            alarm.cancel()
        if self.loop is not None and self.loop.is_closed():
            self._forget_locked()
        elif self._asleep:
            self.cancel_locked()

    def dismiss_guard_locked(self) -> None:
        """End the guard, since the worker is no longer waited for."""
        if self.loop is not None and self._guard is not None:
            call_in(self.loop, self._guard.cancel)

    def _forget_locked(self) -> None:
        """Close coroutines that never began, after the loop was closed."""
        for task in (self._worker, self._guard):
            coroutine = task.get_coro() if task is not None else None
            if (
                inspect.iscoroutine(coroutine)
                and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
            ):
                coroutine.close()

    def _loop_let_go(self, _: object) -> None:
        """Called when the loop was closed, whether or not the work had begun. It may be called at any moment, so it takes no lock."""
        done = self._worker is not None and self._worker.done()
        if self.loop is not None and self.loop.is_closed() and not done:
            with contextlib.suppress(RuntimeError):  # the interpreter exits
                threading.Thread(target=self._interrupted, name="rollcast-observers", daemon=True).start()

    def _interrupted(self) -> None:
        with self._delivery.lock:
            self._owner.interrupted_locked(self)

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        error = None if worker.cancelled() else worker.exception()
        if error is not None and not isinstance(
            error, (KeyboardInterrupt, SystemExit)
        ):  # a signal, which the loop has raised already
            logger.error("%s gets nothing more for now", self._delivery.reader, exc_info=error)
        self._interrupted()

    # -- the two tasks -------------------------------------------------------------------------------------------------

    async def _stand_guard(self) -> None:
        worker = self._worker
        if worker is None:
            return
        try:
            await asyncio.wait((worker,))
        except asyncio.CancelledError:
            worker.cancel()
            try:
                if self._owner.shift is self:
                    await asyncio.wait((worker,), timeout=self._owner.patience)
            finally:
                if not worker.done():
                    self._owner.leave_behind(self)
            raise

    def _guard_left(self, guard: asyncio.Task[None]) -> None:
        """Cancel the worker if the guard was cancelled before its first step and could not do so itself."""
        if guard.cancelled() and self._worker is not None:
            self._worker.cancel()

    async def _work(self) -> None:
        """Hand over what waits until nothing is left and no run is open; close the observer if it has been removed.

        1. Wait for an earlier pump of the same observer.
        2. Take what waits, and hand it over.
        3. If nothing is left, wait for more or end.
        4. Close the observer if it has been removed.
        """
        owner, delivery = self._owner, self._delivery
        self.loop = asyncio.get_running_loop()
        self._worker = delivery.hook_task = owner.calls.task = asyncio.current_task()
        try:
            if owner.after is not None:
                await asyncio.wrap_future(follower(owner.after))
                owner.after = None
            while not isinstance(found := self._next(), str):
                if isinstance(found, asyncio.Future):
                    await found
                    continue
                await owner.calls.deliver(found)
                if delivery.threaded and not delivery.ended:
                    await self._rest()
                else:
                    # More may have come meanwhile, perhaps from this observer itself, so other tasks get a turn.
                    began = time.perf_counter()
                    await others_run()
                    little = (
                        len(found) < FEW
                        and delivery.bytes < delivery.limit // 8
                        and type(found[0]) is not Passage
                    )
                    if little and time.perf_counter() - began < SHORT_S:
                        await others_run()
            if found != "closing":
                return
            await owner.calls.call_hook("aclose")
        except BaseException as error:
            if owner.shift is not self:
                raise
            with delivery.lock:
                if not (owner.is_given_up_locked() and isinstance(error, asyncio.CancelledError)):
                    owner.interrupted_locked(self)  # its loop ends; another one handles what is left
                    raise
                owner.finished_locked("closing")
            uncancel()
            await owner.calls.call_hook("aclose")
        with delivery.lock:
            if owner.shift is self:
                owner.finished_locked("closed")

    def _next(self) -> list[Item] | asyncio.Future[None] | Literal["idle", "closing", "superseded"]:
        """The items that wait; or a future that is done when some come; or how the work ends."""
        owner, delivery, worker, lock = self._owner, self._delivery, self._worker, self._delivery.lock
        lock.acquire()  # half of what `with` costs
        try:
            if owner.shift is not self:
                return "superseded"
            self.taken, self._asleep = [], False
            if worker is not None and worker.cancelling():  # the observer has swallowed its cancellation
                delivery.handed_over_locked()
                raise asyncio.CancelledError
            if items := delivery.take_locked():
                self.taken = items
                return items
            if delivery.ended:
                owner.finished_locked("closing")
                return "closing"
            if self.passing or not owner.expects_more_locked():
                owner.finished_locked("idle")
                return "idle"
            self._asleep = True
            return delivery.sleep_locked()
        finally:
            lock.release()

    async def _rest(self) -> None:
        """Let events gather for a moment, unless something waits for this observer."""
        delivery = self._delivery
        with delivery.lock:
            delivery.handed_over_locked()
            resting = None if delivery.urgent else delivery.rest_locked()
        if resting is not None:
            timer = asyncio.get_running_loop().call_later(delivery.rest_s, resolve, resting)
            try:
                await resting
            finally:
                timer.cancel()


class _HeldByLoop:
    """An object that only the loop holds, so that it is destroyed when the loop is closed."""

    __slots__ = ("__weakref__",)

    def let_go(self) -> None:
        """Never called."""
