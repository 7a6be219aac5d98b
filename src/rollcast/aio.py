"""Event loops: running one, waking those of other threads, and waiting for them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import types
from collections.abc import Callable, Collection, Coroutine, Generator, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, Literal, TypeVar

__all__ = [
    "call_in",
    "follower",
    "fulfil",
    "interpreter_exits",
    "others_run",
    "resolve",
    "run",
    "running_loop",
    "uncancel",
    "wait_for_all",
    "wait_for_all_blocking",
    "wait_uncancelled",
    "wake",
    "why_left",
]


_T = TypeVar("_T")


def interpreter_exits() -> bool:
    """Whether the interpreter exits; Python 3.12.0 and 3.12.1 start no thread from then on, and all others a little later."""
    return not threading.main_thread().is_alive()


def run(
    main: Coroutine[Any, Any, _T], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> _T:
    """Do what `asyncio.run` does, also in a thread that still works while the interpreter exits.

    A loop that has had work done on threads starts one more when it is closed.
    """
    runner = asyncio.Runner(loop_factory=loop_factory)
    try:
        return runner.run(main)
    finally:
        try:
            runner.close()
        except RuntimeError:
            if not interpreter_exits():  # something else is wrong
                raise


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, or None."""
    return asyncio._get_running_loop()  # noqa: SLF001  (documented; None instead of an exception)


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> bool:
    """Have the loop call the function soon, from any thread. False if the loop is closed and nothing will be called."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        return False
    return True


def wake(waiter: asyncio.Future[None]) -> bool:
    """Complete the future, from any thread. False if its loop is closed, so that nothing waits for it any more."""
    loop = waiter.get_loop()
    if loop is running_loop():
        resolve(waiter)
        return True
    return call_in(loop, resolve, waiter)


def resolve(waiter: asyncio.Future[Any], result: Any = None) -> None:
    """Set the future's result unless it is already done or cancelled. Call this in the future's loop."""
    if not waiter.done():
        waiter.set_result(result)


def fulfil(promise: Future[None]) -> None:
    """Mark the promise done unless it is already done or cancelled."""
    with contextlib.suppress(InvalidStateError):
        promise.set_result(None)


def follower(promise: Future[None]) -> Future[None]:
    """A future that is done when `promise` is; cancelling it leaves `promise` alone."""
    following: Future[None] = Future()
    promise.add_done_callback(lambda _: fulfil(following))
    return following


@types.coroutine
def others_run() -> Generator[None, None, None]:
    """Await this to give the loop's other tasks a turn. It does what `asyncio.sleep(0)` does, at half the cost."""
    yield


async def wait_for_all(promises: Collection[Future[None]], timeout: float) -> None:
    """Wait until all promises are done, for at most `timeout` seconds. It never cancels the promises."""
    waiting = [asyncio.wrap_future(follower(promise)) for promise in promises]
    if waiting:
        _, late = await asyncio.wait(waiting, timeout=timeout)
        for waiter in late:
            waiter.cancel()


def wait_for_all_blocking(promises: Collection[Future[None]], timeout: float) -> None:
    """Do the same as `wait_for_all`, but block the thread."""
    deadline = time.monotonic() + timeout
    for promise in promises:
        with contextlib.suppress(TimeoutError):
            promise.result(max(0.0, deadline - time.monotonic()))


async def wait_uncancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Wait for all tasks, ignoring further cancellation of the caller, which is already ending."""
    while not all(task.done() for task in tasks):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(tasks)


def uncancel() -> None:
    """Undo every request to cancel the current task."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


def why_left(error: BaseException | None) -> Literal["cancelled", "error"]:
    """Whether an exception that left a block means that the block was cancelled, or that it failed."""
    stops = (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit)
    return "cancelled" if isinstance(error, stops) else "error"
