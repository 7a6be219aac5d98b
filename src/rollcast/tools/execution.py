"""Runs the user's functions with a time limit, whatever they do.

A coroutine runs in a task of its own. If it ignores its cancellation it is left behind: it keeps running, and nothing waits
for it. A plain function runs in a daemon thread, not in the event loop's default executor, since a call that ignores its
timeout would block one of that executor's few threads and the interpreter's exit. Here such a call is left behind: its
thread no longer counts, so neither other calls nor the exit wait for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from rollcast.aio import call_in, resolve
from rollcast.failures import by_signal
from rollcast.grace import Driven, first_left_behind, grace_s
from rollcast.lifetime import call_after_fork

__all__ = ["CancelledItself", "OutOfTime", "StoppedItself", "in_task", "in_thread", "is_async"]

RUNNING_LIMIT = 256
"""How many threads run calls at a time; further calls wait for a thread, and their timeout starts when they run."""
WAIT_S = 10.0
"""If a call waits for a thread for more seconds than this, one warning says so."""
IDLE_LIMIT = 32
"""How many idle threads are kept for later calls."""
IDLE_S = 10.0
"""How many seconds an idle thread is kept."""
GRACE_S = 1.0
"""How many seconds a cancelled coroutine may take to clean up before it is left behind, unless the agent sets another time."""
LEFT_S = 60.0
"""How many seconds a coroutine that was left behind may keep running before it is closed."""

T = TypeVar("T")
logger = logging.getLogger("rollcast.tools")


class OutOfTime(Exception):
    """The call ran longer than its timeout. (Not a TimeoutError: the function itself may raise that.)"""


class CancelledItself(Exception):
    """The function raised CancelledError although the call was not cancelled."""


class StoppedItself(Exception):
    """The function itself raised an exception that stops a program, such as SystemExit; that is the cause of this one."""


_STOPS = (KeyboardInterrupt, SystemExit, GeneratorExit)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether it gives a coroutine or an async generator; partials and objects with an async `__call__` too."""
    while isinstance(function, partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


# ---------------------------------------------------------------------------------------------------- coroutines

_leaving: set[asyncio.Task[Any]] = set()  # the event loop holds tasks weakly


async def in_task(coroutine: Coroutine[Any, Any, T], name: str, seconds: float | None) -> T:
    """Return or raise what the coroutine does; cancelling this cancels the coroutine.

    Args:
        coroutine: what to run.
        name: its name in warnings, such as `tool 'search'`.
        seconds: its timeout, or None to wait for ever.

    Raises:
        OutOfTime: it took longer. It was then cancelled, and left behind if it ignored that for the grace period.
        CancelledItself: it raised CancelledError itself.
        StoppedItself: it raised KeyboardInterrupt, SystemExit or GeneratorExit itself.
    """
    call = Driven(coroutine)
    task = asyncio.create_task(_contained(call))
    try:
        await asyncio.wait((task,), timeout=seconds)
    except asyncio.CancelledError:
        await _stop(task, call, name)
        raise
    if not task.done():
        await _stop(task, call, name)
        raise OutOfTime
    if task.cancelled():
        call.close_unstarted()
        raise CancelledItself
    return task.result()


async def _contained(call: Driven[T]) -> T:
    """What it returns or raises; a task that raises KeyboardInterrupt or SystemExit would stop the event loop."""
    try:
        return await call
    except _STOPS as error:
        if by_signal(error):
            raise
        raise StoppedItself from error


async def _stop(task: asyncio.Task[Any], call: Driven[Any], name: str) -> None:
    """Cancel the task and wait for at most the grace period until it ends; after that it is left behind."""
    _leaving.add(task)
    task.add_done_callback(partial(_left, call))
    task.cancel()
    seconds = grace_s(GRACE_S)
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    # The loop calls this, since the waiting below may itself be cancelled, and the task must still be dealt with.
    leaving = loop.call_later(seconds, _leave, call, name, seconds, over)
    task.add_done_callback(lambda _: leaving.cancel())
    await asyncio.wait((task, over), return_when=asyncio.FIRST_COMPLETED)


def _leave(call: Driven[Any], name: str, seconds: float, over: asyncio.Future[None]) -> None:
    resolve(over)
    if call.done:
        return
    place = call.place
    logger.log(
        logging.WARNING if first_left_behind(place or name) else logging.DEBUG,
        "%s is still running %g s after it was cancelled%s; it is left behind",
        name,
        seconds,
        "" if place is None else f", at {place}",
    )
    call.left = True
    # If it was cancelled again meanwhile, the event loop is ending and waits for it.
    call.let_go_after(LEFT_S if call.cancellations < 2 else seconds)


def _left(call: Driven[Any], task: asyncio.Task[Any]) -> None:
    _leaving.discard(task)
    call.close_unstarted()
    if not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not report it


# ------------------------------------------------------------------------------------------------------- threads


async def in_thread(function: Callable[[], T], name: str, seconds: float | None) -> T:
    """Run the function in a daemon thread with this task's context variables; return or raise what it does.

    Cancelling this returns at once and leaves the thread behind, as the timeout does.

    Args:
        function: what to run.
        name: the thread's name, such as `rollcast-tool-search`.
        seconds: its timeout, or None to wait for ever.

    Raises:
        OutOfTime: it took longer; a warning names the thread.
        CancelledItself: it raised CancelledError.
        StoppedItself: it raised KeyboardInterrupt, SystemExit or GeneratorExit.
    """
    job = _Job(function, name)
    _threads.submit(job)
    try:
        if job.started is not None:
            await _begun(job)
        await asyncio.wait((job.done,), timeout=seconds)
        if not job.done.done():
            logger.warning(
                "thread %s still runs at its timeout of %g s; it is left behind and blocks neither other calls nor the exit",
                name,
                seconds,
            )
            raise OutOfTime
    except asyncio.CancelledError:
        if job.began and not job.done.done():
            logger.warning(
                "thread %s still runs though its call was cancelled; it is left behind and blocks neither other calls "
                "nor the exit",
                name,
            )
        raise
    finally:
        if not job.done.done():
            _threads.abandon(job)
    value, error = job.done.result()
    if isinstance(error, asyncio.CancelledError):
        raise CancelledItself from error
    if isinstance(error, _STOPS):
        raise StoppedItself from error
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]  # the job's function returned it


async def _begun(job: _Job) -> None:
    """Wait for a thread; if that takes long, log once which calls use most threads."""
    assert job.started is not None
    await asyncio.wait((job.started,), timeout=WAIT_S)
    if not job.started.done() and not _threads.told_of_waiting:
        _threads.told_of_waiting = True
        names = Counter(
            t.name for t in threading.enumerate() if t.name.startswith(("rollcast-tool-", "rollcast-reward-"))
        )
        most, count = names.most_common(1)[0] if names else ("other code", 0)
        logger.warning(
            "%s has waited for a thread for %g s: %d calls run at a time, and %d are %s; give that one a timeout",
            job.name,
            WAIT_S,
            RUNNING_LIMIT,
            count,
            most,
        )
    await job.started


class _Job:
    """One call: waiting, then running in a worker, then ended or abandoned. `_threads.lock` guards the flags."""

    def __init__(self, function: Callable[[], Any], name: str) -> None:
        self.function = function
        self.name = name
        self.context = contextvars.copy_context()
        self.loop = asyncio.get_running_loop()
        self.started: asyncio.Future[None] | None = None  # only if it had to wait
        self.done: asyncio.Future[tuple[Any, BaseException | None]] = self.loop.create_future()
        self.began = False
        self.ended = False
        self.abandoned = False

    def run(self) -> None:
        self.began = True
        threading.current_thread().name = self.name
        if self.started is not None:
            self._tell(self.started, None)
        try:
            outcome: tuple[Any, BaseException | None] = (self.context.run(self.function), None)
        except BaseException as error:  # noqa: BLE001  (it is raised in the code that awaits the call)
            outcome = (None, error)
        self._tell(self.done, outcome)

    def _tell(self, future: asyncio.Future[Any], result: Any) -> None:
        call_in(self.loop, resolve, future, result)  # if the loop is closed, nothing waits


class _Worker(threading.Thread):
    def __init__(self, threads: _Threads, job: _Job) -> None:
        super().__init__(name=job.name, daemon=True)
        self.threads = threads
        self.inbox: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.inbox.put(job)

    def run(self) -> None:
        job: _Job | None = self.inbox.get()
        while job is not None:
            job.run()
            job = self.threads.next(self, job)


class _Threads:
    """Reused daemon threads. An abandoned call gives its place to the next one at once."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every thread, since a forked child has none of them."""
        self.lock = threading.Lock()
        self.idle: list[_Worker] = []
        self.waiting: deque[_Job] = deque()
        self.running = 0
        self.told_of_waiting = False

    def submit(self, job: _Job) -> None:
        with self.lock:
            if not self._start(job):
                job.started = job.loop.create_future()
                self.waiting.append(job)

    def _start(self, job: _Job) -> bool:
        """Whether there was a thread for the job. Raises RuntimeError if not even one thread can be started."""
        if self.running >= RUNNING_LIMIT:
            return False
        if self.idle:
            self.idle.pop().inbox.put(job)
        else:
            try:
                _Worker(self, job).start()
            except RuntimeError:  # no more threads can be started; running ones will become free
                if not self.running:
                    raise
                return False
        self.running += 1
        return True

    def next(self, worker: _Worker, job: _Job) -> _Job | None:
        """The worker's next job after `job`; None if the worker should end."""
        with self.lock:
            job.ended = True
            if job.abandoned:
                return None
            self.running -= 1
            if self.waiting:
                self.running += 1
                return self.waiting.popleft()
            if len(self.idle) >= IDLE_LIMIT:
                return None
            worker.name = "rollcast-idle"
            self.idle.append(worker)
        try:
            return worker.inbox.get(timeout=IDLE_S)
        except queue.Empty:
            with self.lock:
                if worker in self.idle:
                    self.idle.remove(worker)
                    return None
            return worker.inbox.get()  # it has just been taken from the idle ones

    def abandon(self, job: _Job) -> None:
        with self.lock:
            if job.ended:
                return
            if job in self.waiting:
                self.waiting.remove(job)
                return
            job.abandoned = True
            self.running -= 1
            if self.waiting and self._start(self.waiting[0]):
                self.waiting.popleft()


_threads = _Threads()
call_after_fork(_threads.reset)
