"""The thread on which an attachment's own code runs, so that no exception, hang or wrong type of ours reaches the host.

    a hook in the host ──tell(act, …)──▶ a bounded queue ──▶ one thread ──▶ act(…) ──▶ run, chain, generation

For each token the host pays for one append. What goes wrong on the thread, or in the few lines of a hook that must run in the
host's own thread (`with watch.guarded():`), is logged once with its traceback; the attachment is then switched off, and the host
goes on as if it had never been attached.
"""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ContextDecorator, suppress
from types import TracebackType
from typing import Any, Self

from rollcast import lifetime
from rollcast.aio import fulfil
from rollcast.failures import by_signal, class_name_of, text_of

__all__ = ["BACKLOG_LIMIT", "Watch"]

logger = logging.getLogger("rollcast.attach")

BACKLOG_LIMIT = 100_000
"""How many acts may wait. More mean that the thread hangs, or that it can never keep up."""

# How long the thread lets acts gather between two batches: each costs it a wake-up, which is more than what a token costs.
BATCH_S = 0.04
UNWATCHED_BATCH_S = 0.25

Act = Callable[..., object]


class Watch:
    """Calls what it is told, in that order, on a thread of its own. Any thread may tell it something.

    Args:
        host: what is watched, for messages: `openai`.
        limit: how many acts may wait.

    Attributes:
        on: whether acts are still taken. It becomes False for good when the watch steps aside or is closed.
        is_watched: tells whether anybody waits for what is told; if not, more is done at once.
        cramped: set when a hook ran out of Python's stack; what it would have told is missing, and a warning says so once.
        on_aside: called once on the thread after it stepped aside, to close what is open. It is not called if the thread hangs.
    """

    def __init__(self, host: str, *, limit: int = BACKLOG_LIMIT) -> None:
        self.host = host
        self.on = True
        self.cramped = False
        self.is_watched: Callable[[], object] = lambda: True
        self.on_aside: Callable[[], object] | None = None
        self._limit = limit
        self._acts: deque[tuple[Act, tuple[Any, ...]]] = deque()
        self._asleep = True  # as long as no thread runs, too
        # Both are held while there is nothing to do. Releasing a lock wakes the thread and never waits, whatever the host was doing.
        self._bell, self._hurry = _held(), _held()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._aside = False
        self._told = False
        self._told_cramped = False
        self._ended = False
        self._pid = os.getpid()
        self._guard = _Guard(self)
        _watches.add(self)

    # -- what hooks call: in the host's threads ------------------------------------------------------------------------

    def tell(self, act: Act, *args: Any) -> None:
        """Have `act(*args)` called soon on the watch's thread. This never raises and never waits.

        The arguments are not copied, compared or shown. What the host will change must be copied by the hook.
        """
        if not self.on:
            return
        acts = self._acts
        acts.append((act, args))
        if self._asleep:
            self._wake()
        elif len(acts) > self._limit:
            self._fall_behind()

    def guarded(self) -> _Guard:
        """A block, or a decorator, that keeps exceptions of our own code from the host: `with watch.guarded(): …`.

        An `Exception` ends the block; it is logged once, and the watch steps aside. A `RecursionError` only ends the block, since
        it is the host's own recursion that leaves no room for ours. Other exceptions go on: Ctrl-C, the
        cancellation of a task, and what the host's own signal handlers raise. It never goes around the host's own code.
        """
        return self._guard

    def step_aside(self, error: BaseException) -> None:
        """Take no more acts, since our own code failed; say so once, and have what is open closed. Call it from any thread."""
        self.on = False
        if self._aside:
            return
        self._aside = True
        self._acts.extend([(self._say, (error,)), (self._close_open, ()), *self._kept()])
        self._wake()

    def _kept(self) -> list[tuple[Act, tuple[Any, ...]]]:
        """Drop what waits, but for what somebody waits for."""
        kept = []
        with suppress(IndexError):
            while True:
                act = self._acts.popleft()
                if act[0] in (fulfil, _end):
                    kept.append(act)
        return kept

    @property
    def forked(self) -> bool:
        """Whether this process was forked from the one that attached: it has no thread here, and what was open is its parent's."""
        return os.getpid() != self._pid

    # -- what the attachment calls -------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything that was told before is done, for at most `timeout` seconds. This blocks.

        Returns:
            Whether it is. False if the thread hangs or is far behind, or if this process was forked.
        """
        if self.forked:
            return False
        thread = self._thread
        if thread is None or not thread.is_alive():
            return not self._acts
        if thread is threading.current_thread():
            return False
        done: Future[None] = Future()
        self._acts.append((fulfil, (done,)))
        self._wake()
        _ring(self._hurry)
        if self._ended:  # perhaps the thread did not look again
            fulfil(done)
        try:
            done.result(timeout)
        except TimeoutError:
            return False
        return True

    def close(self, last: Act | None = None, timeout: float | None = None) -> bool:
        """Take no more acts; do what was told before, then `last`, and end the thread. Closing twice does nothing.

        Returns:
            Whether all of it was done within `timeout` seconds.
        """
        was_on, self.on = self.on, False
        if was_on and last is not None and not self.forked:
            self._acts.append((last, ()))
            self._wake()
        done = self.flush(timeout)
        self.end()
        return done

    def end(self) -> None:
        """Take no more acts, and end the thread when it has done what it was told. This does not wait."""
        self.on = False
        self._acts.append((_end, ()))
        _ring(self._hurry)
        _ring(self._bell)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Have the thread look at the queue now; start the thread if it is not running."""
        self._asleep = False
        _ring(self._bell)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        if self.forked:
            self._give_up_in_child()
            return
        if not self._starting.acquire(blocking=False):
            return  # another thread of the host does it
        try:
            if self._thread is None:
                thread = threading.Thread(
                    target=_work, args=(self,), name=f"rollcast-attach-{self.host}", daemon=True
                )
                self._thread = thread
                thread.start()
        except RuntimeError as error:  # the interpreter exits, or the system has no more threads
            self.on = False
            self._acts.clear()
            logger.debug("no thread can be started to watch %s: %s", self.host, error)
        finally:
            self._starting.release()

    def run_batch(self) -> bool:
        """Do what was told until now; False when the thread must end. Called on the thread."""
        if self.cramped and not self._told_cramped:
            self._say_cramped()
        acts = self._acts
        context = (
            contextvars.Context()
        )  # so that chains which begin here do not become the chain of later acts
        for _ in range(len(acts)):
            try:
                act, args = acts.popleft()
            except IndexError:  # it stepped aside meanwhile
                break
            if act is _end:
                self._ended = True
                for _, (promise,) in [each for each in self._kept() if each[1]]:
                    fulfil(promise)
                return False
            try:
                context.run(act, *args)
            except BaseException as error:  # noqa: BLE001  (whatever our own code raises must not reach the host)
                self.step_aside(error)
        return True

    def wait(self) -> None:
        """Wait until there is something to do. Called on the thread."""
        if self._acts:
            return
        self._asleep = True
        if self._acts:  # somebody told something in between, and saw no reason to ring
            self._asleep = False
            return
        self._bell.acquire()
        self._asleep = False

    def gather(self) -> None:
        """Let acts gather for a moment, unless somebody waits for them. Called on the thread."""
        self._hurry.acquire(timeout=BATCH_S if self.is_watched() else UNWATCHED_BATCH_S)

    def _close_open(self) -> None:
        closing, self.on_aside = self.on_aside, None
        if closing is not None:
            closing()

    # -- stepping aside ------------------------------------------------------------------------------------------------

    def _fall_behind(self) -> None:
        """More acts wait than may. The thread that says so is not the host's, since logging may wait."""
        self.on = False
        if self._aside:
            return
        self._aside = True
        self._acts.extend([(self._close_open, ()), *self._kept()])  # in case that the thread does not hang
        said = f"{self._limit:,} events wait to be shown: they come faster than that can be done, or our own code hangs"
        with suppress(RuntimeError):  # the interpreter exits
            threading.Thread(target=self._say, args=(said,), name="rollcast-attach-says", daemon=True).start()

    def _give_up_in_child(self) -> None:
        """This process was forked from the one that attached, and uses what was attached there."""
        self.on = False
        self._acts.clear()
        if not self._told:
            self._told = True
            logger.warning(
                "%s is not watched in this process (%d), which was forked from the one that attached it (%d); call rollcast.attach "
                "here as well",
                self.host,
                os.getpid(),
                self._pid,
            )

    def after_fork(self) -> None:
        """Forget, in a forked child, what the parent's thread has to do."""
        self._acts.clear()
        self._thread, self._asleep = None, True
        self._bell, self._hurry, self._starting = _held(), _held(), threading.Lock()

    def _say_cramped(self) -> None:
        self._told_cramped = True
        with suppress(Exception):  # a logging handler of the host's own may raise
            logger.warning(
                "%s was called so deep in a recursion that Python's limit (%d) left no room to watch it: "
                "what happened there is not shown, or ends with 'unknown'",
                self.host,
                sys.getrecursionlimit(),
            )

    def _say(self, error: BaseException | str) -> None:
        if self._told:
            return
        self._told = True
        exception = error if isinstance(error, BaseException) else None
        why = error if isinstance(error, str) else f"{class_name_of(error)}: {text_of(error)}"
        report = "" if exception is None else ". This is a fault of Rollcast; please report it"
        with suppress(Exception):  # a logging handler of the host's own may raise
            logger.error(
                "Rollcast steps aside from %s, which goes on unwatched: %s%s",
                self.host,
                why,
                report,
                exc_info=exception,
            )


def _held() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def _ring(bell: threading.Lock) -> None:
    with suppress(RuntimeError):  # it rings already
        bell.release()


def _end() -> None:
    """The act that ends the thread."""


def _work(watch: Watch) -> None:
    """What the thread does until it is told to end."""
    while watch.run_batch():
        watch.gather()
        watch.wait()


class _Guard(ContextDecorator):
    """See `Watch.guarded`. It has no state of its own, so one serves all threads."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, RecursionError):  # the stack is full, so nothing can be called here
            self._watch.cramped = True
            return True
        if not isinstance(error, Exception) or by_signal(error):
            return False
        self._watch.step_aside(error)
        return True


_watches: weakref.WeakSet[Watch] = weakref.WeakSet()


def _after_fork() -> None:
    for watch in list(_watches):
        watch.after_fork()


lifetime.call_after_fork(_after_fork)
