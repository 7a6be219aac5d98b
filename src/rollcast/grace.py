"""Ends coroutines that keep running after they were cancelled.

asyncio can only ask a task to end. Code with `except CancelledError: continue` never does, and neither does anything that waits
for it, such as `asyncio.run`, which waits for all tasks. So the user's coroutines are not awaited directly but through a `Driven`,
which passes on what they wait for and can stop doing so. The coroutine is then closed, and its task goes on without it.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
from collections.abc import Coroutine, Generator, Iterator
from contextvars import ContextVar
from types import AsyncGeneratorType
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from rollcast.aio import resolve
from rollcast.failures import place_of_wait

__all__ = ["GRACE_S", "Driven", "close_task", "first_left_behind", "grace", "grace_s", "run_to_the_end"]

GRACE_S = 1.0
"""How many seconds cancelled code may take to clean up, by default."""
_HANDLER = "rollcast_exception_handler"
CLOSES = 8
"""How often to close a coroutine that awaits something again when it is closed, as nested `finally` blocks do."""

T = TypeVar("T")
_Future = asyncio.Future
logger = logging.getLogger("rollcast")

grace: ContextVar[float | None] = ContextVar("rollcast_grace", default=None)
"""How many seconds code that is cancelled in this context may take to clean up; None means the default."""


def grace_s(default: float = GRACE_S) -> float:
    """How many seconds code that is cancelled in this context may take to clean up."""
    found = grace.get()
    return default if found is None else found


class Driven(Generic[T]):
    """Awaits a coroutine and can let go of it: `await Driven(coroutine)`. Use it only in the event loop's thread.

    Attributes:
        done: whether the coroutine has ended or was let go of.
        gone: whether it was let go of.
        cancellations: how often it was cancelled.
        left: whether it was cancelled and nothing waits for it any more. A further cancellation, such as `asyncio.run` sends to
            all tasks when it ends, is not passed on, since it would interrupt the cleanup; instead the coroutine gets one more
            grace period and is then let go of.
    """

    __slots__ = (
        "_coroutine",
        "_may_go",
        "_timer",
        "_waiter",
        "cancellations",
        "done",
        "gone",
        "left",
    )

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.done = False
        self.gone = False
        self.left = False
        self.cancellations = 0
        self._coroutine = coroutine
        self._may_go = False  # so a future of our own stands between it and all that it waits for
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def place(self) -> str | None:
        """Where in the user's own code it waits, such as `file.py:12`, if that is known."""
        return place_of_wait(self._coroutine)

    async def run(self) -> T:
        """Await it as a coroutine, since a task needs one."""
        return await self

    def close_unstarted(self) -> None:
        """To be called at the end of its task: one that is cancelled at once never begins, and Python would complain of that."""
        if not self.done:
            self.done = True
            self._coroutine.close()

    def let_go(self) -> None:
        """Raise CancelledError in the awaiting code now, whatever the coroutine does, and close the coroutine.

        This takes effect at once only if the task was cancelled before, or if `let_go_after` was called before the coroutine
        began to wait; otherwise it takes effect when the task is resumed next.
        """
        if not self.done:
            self.gone = True
            if self._waiter is not None:
                resolve(self._waiter)

    def let_go_after(self, seconds: float) -> None:
        """Call `let_go` after so many seconds unless it has ended by then. If this is called twice, the earlier time counts."""
        loop = asyncio.get_running_loop()
        if self.done or (self._timer is not None and self._timer.when() <= loop.time() + seconds):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._may_go = True
        self._timer = loop.call_later(seconds, self.let_go)

    def __await__(self) -> Generator[Any, Any, T]:
        coroutine = self._coroutine
        failure: BaseException | None = None
        try:
            while True:  # once for each time that the coroutine waits, which a backend does for each token
                try:
                    awaited = coroutine.send(None) if failure is None else coroutine.throw(failure)
                except StopIteration as stop:
                    value: T = stop.value
                    return value
                if awaited is not None and (type(awaited) is not _Future or self._may_go):
                    failure = yield from self._suspended(awaited)
                else:
                    # A plain future ends at once if the task is cancelled, so the task itself may wait for it.
                    failure = None
                    try:
                        yield awaited
                    except asyncio.CancelledError as error:
                        failure = self._cancelled(error)
                    except Exception as error:  # noqa: BLE001  (the future's error, which the coroutine must get)
                        failure = error
                if self.gone:
                    _close(coroutine)
                    raise asyncio.CancelledError("it kept running after it was cancelled")
        except GeneratorExit:  # the task is destroyed
            coroutine.close()
            raise
        finally:
            self.done = True
            if self._timer is not None:
                self._timer.cancel()

    def _suspended(self, awaited: Any) -> Generator[Any, Any, BaseException | None]:
        """Wait for what the coroutine awaits. Returns the exception to throw into the coroutine, or None."""
        if not getattr(
            awaited, "_asyncio_future_blocking", False
        ):  # a task cannot wait for this, and says so
            try:
                yield awaited
            except Exception as error:  # noqa: BLE001
                return error
            return None
        # Tasks may go on after a cancellation, so a future of our own waits for them, as a task would.
        awaited._asyncio_future_blocking = False  # noqa: SLF001  (how a task takes a future over)
        awaited.add_done_callback(self._wake)
        while not (awaited.done() or self.gone):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                yield from self._waiter
            except asyncio.CancelledError as error:
                asked = self._cancelled(error)
                if asked is not None and not awaited.cancel():
                    return asked
            finally:
                self._waiter = None
        if self.gone:
            _close_awaited(awaited)
        return None

    def _cancelled(self, error: asyncio.CancelledError) -> asyncio.CancelledError | None:
        """Count the cancellation; return it if it should be passed on."""
        self.cancellations += 1
        self._may_go = True
        if not self.left:
            return error
        self.let_go_after(grace_s())
        return None

    def _wake(self, _: object) -> None:
        if self._waiter is not None:
            resolve(self._waiter)


_said: WeakKeyDictionary[asyncio.AbstractEventLoop, set[str]] = WeakKeyDictionary()


def first_left_behind(place: str) -> bool:
    """Whether this is the first time that code was left behind at this place in this event loop.

    It may happen in ten thousand chains, and one warning is enough.
    """
    said = _said.setdefault(asyncio.get_running_loop(), set())
    new = place not in said
    said.add(place)
    return new


def _close(coroutine: Any) -> None:
    """End a suspended coroutine. Its `finally` blocks run as far as they do not wait for anything.

    A coroutine that cannot be ended is kept for ever, since Python would close it again if it were destroyed, and complain.
    """
    for part in list(_parts(coroutine)):
        for _ in range(CLOSES):
            if not _is_alive(part) or not hasattr(part, "close"):
                break
            try:
                part.close()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001  (its cleanup may raise anything, and Python raises if it keeps waiting)
                logger.debug("closing %r: %s", part, error)
        if _is_alive(part):
            _keep(part)
            if isinstance(part, AsyncGeneratorType):  # otherwise the loop waits for it at its end
                getattr(asyncio.get_running_loop(), "_asyncgens", set()).discard(part)


def close_task(task: asyncio.Task[Any]) -> None:
    """End another task that goes on though it was cancelled: its coroutine is closed, and not resumed.

    It may never be done: if it waits for a task that cannot be closed either.
    """
    _silence_what_is_closed(asyncio.get_running_loop())
    awaited = getattr(task, "_fut_waiter", None)
    _close(task.get_coro())
    if awaited is not None:
        _close_awaited(awaited)
    task.cancel()  # so that it is woken, and ends
    task.add_done_callback(_take)


def _close_awaited(awaited: Any) -> None:
    """End the tasks that somebody waited for who is let go of: `await task`, `await asyncio.gather(...)`."""
    for task in getattr(awaited, "_children", (awaited,)):
        if isinstance(task, asyncio.Task) and not task.done():
            close_task(task)
    awaited.add_done_callback(_take)


def _take(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # retrieved, so that asyncio does not report again that it was closed


def _parts(coroutine: Any) -> Iterator[Any]:
    """The coroutine, what it awaits, and so on."""
    while coroutine is not None:
        yield coroutine
        if not hasattr(
            coroutine, "cr_frame"
        ):  # the next item of an async generator, which does not say which generator it belongs to
            yield from (each for each in gc.get_referents(coroutine) if isinstance(each, AsyncGeneratorType))
        awaited = [getattr(coroutine, name, None) for name in ("cr_await", "ag_await", "gi_yieldfrom")]
        coroutine = next((each for each in awaited if each is not None), None)


def _is_alive(part: Any) -> bool:
    return any(getattr(part, name, None) is not None for name in ("cr_frame", "ag_frame", "gi_frame"))


def _keep(thing: object) -> None:
    """Keep it alive for ever, even when the interpreter exits."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


# ------------------------------------------------------------------------------------------------- an event loop's end


def run_to_the_end(main: Coroutine[Any, Any, T], seconds: float = GRACE_S) -> T:
    """Do the same as `asyncio.run`, but let go of tasks that are still running `seconds` after they were cancelled.

    This does not wait for threads of the loop's default executor (`asyncio.to_thread`); the interpreter does when it exits.
    """
    runner = asyncio.Runner()
    try:
        return runner.run(main)
    finally:
        loop = runner.get_loop()
        try:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:  # before the loop runs again, so that tasks that have not started never do
                task.cancel()
            loop.run_until_complete(_end_all(loop, tasks, seconds))
        finally:
            asyncio.set_event_loop(None)
            loop.close()


async def _end_all(
    loop: asyncio.AbstractEventLoop, cancelled: set[asyncio.Task[Any]], seconds: float
) -> None:
    _silence_what_is_closed(loop)
    await _end_tasks(loop, cancelled, seconds)
    closing = asyncio.create_task(loop.shutdown_asyncgens())
    await asyncio.wait((closing,), timeout=seconds)
    late = _others(loop)
    for task in late:
        task.cancel()
    await _end_tasks(loop, late, seconds)


async def _end_tasks(loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[Any]], seconds: float) -> None:
    """Wait a moment for cancelled tasks, and let go of those that are still running."""
    if not tasks:
        return
    # `Driven` lets go after one grace period; this leaves it some time to log that.
    await asyncio.wait(tasks, timeout=2 * seconds + 0.1)
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            loop.call_exception_handler(
                {
                    "message": "unhandled exception while the event loop ended",
                    "exception": error,
                    "task": task,
                }
            )
    left = _others(loop)
    places = {task: place_of_wait(task.get_coro()) for task in left}
    for task, place in places.items():
        coroutine = task.get_coro()
        tells = place is not None or not any(places.values())  # asyncio's own tasks only wait for these
        if tells and first_left_behind(place or task.get_name()):
            logger.warning(
                "task %s is still running after it was cancelled%s; it is let go of",
                task.get_name(),
                "" if place is None else f", at {place}",
            )
        _close(coroutine)  # here, since its cleanup may need a running loop
        task.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    for task in left:
        if task.done():
            task.cancelled() or task.exception()  # retrieved: it was already logged that the task was closed
        else:  # it ignores even that, or waits for a task that does; neither runs without the loop
            asyncio._unregister_task(task)  # noqa: SLF001  (documented, under "Extending asyncio")
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  (as asyncio.gather does)
            _keep(task)


def _silence_what_is_closed(loop: asyncio.AbstractEventLoop) -> None:
    """Keep asyncio from reporting closed tasks again through everything that waited for them."""
    before = loop.get_exception_handler()
    if getattr(before, "__name__", "") == _HANDLER:
        return

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, RuntimeError) and str(error) == "cannot reuse already awaited coroutine":
            return
        if before is None:
            loop.default_exception_handler(context)
        else:
            before(loop, context)

    handle.__name__ = _HANDLER
    loop.set_exception_handler(handle)


def _others(loop: asyncio.AbstractEventLoop) -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
