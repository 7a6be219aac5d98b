"""A thread that runs one job after another, any of which may never return, such as a write to a disk that is gone."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["WriterThread"]

T = TypeVar("T")

_Job = tuple[Future[Any], Callable[[], Any]]


class WriterThread:
    """A thread for jobs, which the first job starts. It is a daemon, so the interpreter's exit does not wait for it.

    Jobs never overlap, so a file is never closed while it is written: a thread that is started after `stop` waits for the one before. Its methods may be called from any thread.

    Args:
        name: the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] | None = None
        self._last: threading.Thread | None = None  # that was started
        self._lock = threading.RLock()  # a collector may come in the midst of anything
        self._began: float | None = None  # the job that runs now

    @property
    def busy_s(self) -> float:
        """How many seconds the current job has been running; 0 if none runs."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def start(self) -> bool:
        """Start the thread now: at the interpreter's exit none can be started any more (Python 3.12). False if none can be."""
        with self._lock:
            return self._started() is not None

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run the job after those before it, or here and now if no thread can be started."""
        future: Future[T] = Future()
        with self._lock:
            jobs = self._started()
            if jobs is not None:
                jobs.put((future, job))
                return future
        self._do(future, job)
        return future

    def stop(self) -> None:
        """End the thread after the jobs that it has; the next job starts a new one."""
        with self._lock:
            jobs, self._jobs = self._jobs, None
            if jobs is not None:
                jobs.put(None)

    def _started(self) -> queue.SimpleQueue[_Job | None] | None:
        if self._jobs is None:
            jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
            thread = threading.Thread(target=self._run, args=(jobs, self._last), name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system gives no thread, or (Python 3.12) the interpreter exits
                return None
            self._jobs, self._last = jobs, thread
        return self._jobs

    def _run(self, jobs: queue.SimpleQueue[_Job | None], before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
            del before
        while (next_one := jobs.get()) is not None:
            self._do(*next_one)
            del next_one

    def _do(self, future: Future[T], job: Callable[[], T]) -> None:
        self._began = time.monotonic()
        try:
            result = job()
        except BaseException as error:  # noqa: BLE001  (it is raised in the code that waits for the job)
            self._began = None
            future.set_exception(error)
        else:
            self._began = None
            future.set_result(result)
