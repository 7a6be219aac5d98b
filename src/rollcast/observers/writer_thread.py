"""A thread that does one thing after another, any of which may never return: a write to a disk that is gone."""

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
    """Started by the first job. A daemon, so the interpreter's exit does not wait for it.

    Jobs never overlap, so a file is never closed while it is written. Its methods may be called from any thread.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] | None = None
        self._lock = threading.Lock()
        self._began: float | None = None  # the job that runs now

    @property
    def busy_s(self) -> float:
        """How long the job that runs now has been running, in seconds; 0 if none runs."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def start(self) -> None:
        """Start the thread now: at the interpreter's exit none can be started any more (Python 3.12)."""
        with self._lock:
            self._started()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Have the job done after those before it; here and now if the system gives no thread."""
        future: Future[T] = Future()
        with self._lock:
            jobs = self._started()
            if jobs is not None:
                jobs.put((future, job))
                return future
        self._do(future, job)
        return future

    def stop(self) -> None:
        """End the thread after the jobs that it has; the next job starts another."""
        with self._lock:
            jobs, self._jobs = self._jobs, None
            if jobs is not None:
                jobs.put(None)

    def _started(self) -> queue.SimpleQueue[_Job | None] | None:
        if self._jobs is None:
            jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
            try:
                threading.Thread(target=self._run, args=(jobs,), name=self._name, daemon=True).start()
            except RuntimeError:  # the system gives no thread, or (Python 3.12) the interpreter exits
                return None
            self._jobs = jobs
        return self._jobs

    def _run(self, jobs: queue.SimpleQueue[_Job | None]) -> None:
        while (next_one := jobs.get()) is not None:
            self._do(*next_one)
            del next_one

    def _do(self, future: Future[T], job: Callable[[], T]) -> None:
        self._began = time.monotonic()
        try:
            result = job()
        except BaseException as error:  # noqa: BLE001  (whatever it is belongs to who waits for the job)
            self._began = None
            future.set_exception(error)
        else:
            self._began = None
            future.set_result(result)
