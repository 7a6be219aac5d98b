"""Ending coroutines that were cancelled and go on all the same.

asyncio can only ask a task to end. Whoever wrote `except CancelledError: continue` keeps it for ever, and with it whoever waits for
it: at last `asyncio.run`, which waits for all tasks. So other people's coroutines are not awaited directly. A `Driven` stands in
between: it passes on what they wait for, and it can stop doing so. Then the coroutine is closed, and the task goes on without it.
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

__all__ = ["GRACE_S", "Driven", "first_left_behind", "grace", "grace_s", "run_to_the_end"]

GRACE_S = 1.0
"""How long what was cancelled may take to clean up, in seconds, if nobody says otherwise."""
_HANDLER = "rollcast_exception_handler"
CLOSES = 8
"""How often a coroutine is closed that answers to that by waiting for something again: one `finally` in another."""

T = TypeVar("T")
_Future = asyncio.Future
logger = logging.getLogger("rollcast")

grace: ContextVar[float | None] = ContextVar("rollcast_grace", default=None)
"""How long what is cancelled here may take to clean up; None: as usual."""


def grace_s(default: float = GRACE_S) -> float:
    """How long what is cancelled here may take to clean up, in seconds."""
    found = grace.get()
    return default if found is None else found


class Driven(Generic[T]):
    """Awaits a coroutine and can let go of it: `await Driven(coroutine)`. To be used in the event loop's thread.

    Attributes:
        done: the coroutine has ended, or was let go of.
        gone: it was let go of.
        cancellations: how often it was asked to end.
        left: nobody waits for it any more, and it was cancelled before. A further cancellation is not passed on, since that would
            interrupt its cleanup; instead it has one more grace, and is let go of then. `asyncio.run` cancels all tasks at its end.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.done = False
        self.left = False
        self._coroutine = coroutine
        self.gone = False
        self.cancellations = 0
        self._may_go = False  # so a future of our own stands between it and all that it waits for
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def place(self) -> str | None:
        """`file.py:12`: where in the user's own code it waits, if that can be told."""
        return place_of_wait(self._coroutine)

    async def run(self) -> T:
        """Itself as a coroutine, for a task."""
        return await self

    def let_go(self) -> None:
        """Have whoever awaits this get a CancelledError now, whatever the coroutine does. It is closed, and not resumed.

        Its task was cancelled before, or `let_go_after` was called before it was awaited; else it ends when it is resumed next.
        """
        if not self.done:
            self.gone = True
            if self._waiter is not None:
                resolve(self._waiter)

    def let_go_after(self, seconds: float) -> None:
        """`let_go` if it has not ended by then. Of two such times the earlier one counts."""
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
            while True:  # once for each time that the coroutine waits: a backend does so for each token
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
                    except Exception as error:  # noqa: BLE001  (of the future: it is the coroutine's to take)
                        failure = error
                if self.gone:
                    _close(coroutine)
                    raise asyncio.CancelledError("it went on though it was cancelled")
        except GeneratorExit:  # the task is destroyed
            coroutine.close()
            raise
        finally:
            self.done = True
            if self._timer is not None:
                self._timer.cancel()

    def _suspended(self, awaited: Any) -> Generator[Any, Any, BaseException | None]:
        """Wait for what the coroutine awaits. Returns what is to be thrown into it."""
        if not getattr(
            awaited, "_asyncio_future_blocking", False
        ):  # nothing that a task can wait for: it says so
            try:
                yield awaited
            except Exception as error:  # noqa: BLE001
                return error
            return None
        # A task, or several of them, may go on after the cancellation. A future of our own waits for them, as a task would.
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
        """The cancellation, if it is to be passed on."""
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
    """Whether nothing was left behind at this place in this event loop before: ten thousand chains may do so, and one warning is enough."""
    said = _said.setdefault(asyncio.get_running_loop(), set())
    new = place not in said
    said.add(place)
    return new


def _close(coroutine: Any) -> None:
    """End a suspended coroutine: what stands in its `finally` runs, as long as that waits for nothing.

    What cannot be ended is kept for ever: if it were destroyed, Python would close it again, and complain.
    """
    for part in list(_parts(coroutine)):
        for _ in range(CLOSES):
            if not _is_alive(part) or not hasattr(part, "close"):
                break
            try:
                part.close()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001  (whatever its cleanup raises, or that it goes on waiting)
                logger.debug("closing %r: %s", part, error)
        if _is_alive(part):
            _keep(part)
            if isinstance(part, AsyncGeneratorType):  # or the event loop waits at its end until it is closed
                getattr(asyncio.get_running_loop(), "_asyncgens", set()).discard(part)


def _close_awaited(awaited: Any) -> None:
    """End the tasks that somebody waited for who is let go of: `await task`, `await asyncio.gather(...)`."""
    _silence_what_is_closed(asyncio.get_running_loop())
    for task in getattr(awaited, "_children", (awaited,)):
        if isinstance(task, asyncio.Task) and not task.done():
            _close(task.get_coro())
            task.cancel()
            task.add_done_callback(_take)
    awaited.add_done_callback(_take)


def _take(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # that it was closed is said already


def _parts(coroutine: Any) -> Iterator[Any]:
    """The coroutine, what it awaits, and so on."""
    while coroutine is not None:
        yield coroutine
        if not hasattr(
            coroutine, "cr_frame"
        ):  # the next item of an async generator: it does not tell of which one
            yield from (each for each in gc.get_referents(coroutine) if isinstance(each, AsyncGeneratorType))
        awaited = [getattr(coroutine, name, None) for name in ("cr_await", "ag_await", "gi_yieldfrom")]
        coroutine = next((each for each in awaited if each is not None), None)


def _is_alive(part: Any) -> bool:
    return any(getattr(part, name, None) is not None for name in ("cr_frame", "ag_frame", "gi_frame"))


def _keep(thing: object) -> None:
    """Never destroy it, not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


# ------------------------------------------------------------------------------------------------- an event loop's end


def run_to_the_end(main: Coroutine[Any, Any, T], seconds: float = GRACE_S) -> T:
    """As `asyncio.run`, and it comes back: tasks that go on though they were cancelled are let go of after a grace of so many seconds.

    Threads of the loop's default executor (`asyncio.to_thread`) are not waited for here; the interpreter waits for them when it
    ends.
    """
    runner = asyncio.Runner()
    try:
        return runner.run(main)
    finally:
        loop = runner.get_loop()
        try:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:  # before the loop runs again, so that one that has not begun does not begin
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
    """Wait for a moment for tasks that were cancelled, and let go of what goes on even then."""
    if not tasks:
        return
    # Our own are let go of after one grace; some time is left for them to say so.
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
        tells = place is not None or not any(places.values())  # asyncio's own wait for somebody's
        if tells and first_left_behind(place or task.get_name()):
            logger.warning(
                "task %s goes on though it was cancelled%s; it is let go of",
                task.get_name(),
                "" if place is None else f", at {place}",
            )
        _close(coroutine)  # here, since what it does in answer may need a running loop
        task.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    for task in left:
        if task.done():
            task.cancelled() or task.exception()  # taken: that it was closed is said already
        else:  # it swallows even that, or waits for one that does; without the loop neither goes on
            asyncio._unregister_task(task)  # noqa: SLF001  (documented, under "Extending asyncio")
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  (as asyncio.gather does)
            _keep(task)


def _silence_what_is_closed(loop: asyncio.AbstractEventLoop) -> None:
    """That a task was closed is said once; asyncio would say it again of whatever waited for it."""
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
