"""Lines that wait to be written, on a thread of their own."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

from rollcast.aio import follower, fulfil
from rollcast.observers.line_losses import LineLosses
from rollcast.observers.writer_thread import WriterThread
from rollcast.records import encode_lines
from rollcast.records.codec import encode_described
from rollcast.stream.waiting import Encodable, event_of

__all__ = ["LineSink", "WaitingLines"]

R = TypeVar("R")
_log = logging.getLogger(__name__)
_count_log = logging.getLogger(f"{__name__}.count")  # separate, so that it can be silenced
BLOCKED_S = 30.0
"""If a write has not returned after this many seconds, what comes after it is dropped."""
LAST_S = 0.2
"""How many seconds such a write may still take when the file is closed."""


class LineSink(Protocol):
    """Where lines are written; `name` is its name in messages."""

    name: str

    def write(self, data: bytes, lines: int) -> tuple[int, OSError | None]:
        """Append this many lines. Returns how many are there whole, and the error that kept the others out."""
        ...

    def what_became_of_it(self) -> str | None:
        """Why what was written is no longer there; None if it is."""
        ...

    def close(self) -> None:
        """Close the sink until the next write."""
        ...


class WaitingLines:
    """What waits to be written, and what could not be. It does not refer to the observer, so that it can outlive it.

    The sink is used on a thread of its own, since a write may never return: a pipe without a reader, a network file system
    that is gone. If a write has not returned after `BLOCKED_S`, what comes after it is dropped. Whether its own lines were
    written is known only if it ever returns; then a `gap` stands for what was dropped.

    Its methods may be called from any thread. There are more than twenty: an event loop, a thread, the interpreter's exit and
    the garbage collector each wait for the same write in their own way, and one lock guards its state. `LineLosses` counts what is lost.

    Args:
        sink: where lines are written.
        flush_bytes: from how many waiting bytes on it is `full`.
    """

    def __init__(self, sink: LineSink, flush_bytes: int) -> None:
        self._losses = LineLosses()
        self._lost = self._losses.lost
        self._sink = sink
        self._flush_bytes = flush_bytes
        self._events: list[Encodable] = []
        self._chunks: list[bytes] = []
        self._size = 0
        self._failing = False
        self._told = 0  # how many lost events were logged
        self._in_flight: list[Encodable] = []  # those being written now
        self._news: OSError | None = None  # a failure that was not reported yet
        self._stuck = False  # a write takes so long that what comes is dropped
        self._writing: Future[None] | None = None
        self._thread = WriterThread("rollcast-write")
        self._lock = threading.RLock()
        self._pid = os.getpid()

    @property
    def incomplete(self) -> str | None:
        """Why the sink lacks events; None if it has them all."""
        return self._losses.incomplete

    @property
    def full(self) -> bool:
        """Whether enough waits to be written."""
        return self._size >= self._flush_bytes

    @property
    def overfull(self) -> bool:
        """Whether so much waits behind a write that it is time to wait for that."""
        return self._writing is not None and self._size >= 2 * self._flush_bytes

    def add(self, events: Sequence[Encodable]) -> None:
        """Have the events wait."""
        try:
            data = encode_lines(events)
        except Exception:  # noqa: BLE001  the encoding of user-made data may raise anything, and the other events must be written
            data = b"".join([encode_described(event_of(event)) + b"\n" for event in events])
        self._leave_parents_lines()
        with self._lock:
            if not self._events:
                self._thread.start()
            self._events += events
            self._chunks.append(data)
            self._size += len(data)

    def use(self, function: Callable[[], R]) -> R:
        """Call the function on the sink's thread, and wait for it however long it takes."""
        self._leave_parents_lines()
        return self._thread.submit(function).result()

    def begin(self) -> OSError | None:
        """Have what waits written, without waiting for it. Returns an earlier failure that nobody was told of."""
        self._begin()
        return self._take_news()

    async def flush(self) -> OSError | None:
        """Write what waits. Returns the failure if it is the first since a success."""
        writing = self._begin()
        while writing is not None:
            waiter = asyncio.wrap_future(follower(writing))
            await asyncio.wait((waiter,), timeout=self._patience(BLOCKED_S))
            if writing.done():
                return self._take_news()
            waiter.cancel()
            if self._patience(BLOCKED_S) <= 0:
                self._give_up_for_now()
        return None

    def flush_blocking(self) -> OSError | None:
        """As `flush`, blocking the thread."""
        writing = self._begin()
        while writing is not None:
            try:
                writing.result(self._patience(BLOCKED_S))
            except TimeoutError:
                if self._patience(BLOCKED_S) <= 0:
                    self._give_up_for_now()
            else:
                return self._take_news()
        return None

    def run_closed(self, run_id: str) -> None:
        """Forget what was written of a run, since nothing more comes of it."""
        with self._lock:
            self._losses.run_closed(run_id)

    def let_go(self) -> Future[None] | None:
        """Have what waits written and the file closed, and wait for nobody: a collector may call this, in any thread.

        Returns:
            Done when that is; None if nothing is left to be done, or nobody can do it any more.
        """
        self._leave_parents_lines()
        with self._lock:
            if not self._thread.start() and (self._stuck or not self._events):
                # At exit (Python 3.12). What was lost before stays lost: to try again here might block for ever.
                self._tell(None)
                return None
        self._begin()
        ending = self._thread.submit(self._end)
        self._thread.stop()
        return ending

    def _end(self) -> None:
        try:
            self._sink.close()
        finally:
            self._tell(self._take_news())

    def patience(self, limit: float) -> float:
        """How long to wait for what `let_go` has begun, if a write may run for `limit` seconds."""
        return LAST_S if self._stuck else max(LAST_S, self._patience(limit))

    def tell(self) -> None:
        """Say what could not be written until now."""
        self._tell(None)

    async def aclose(self) -> None:
        """Write what waits, as far as that goes, and let go of the file. It is closed when what is written to it now has been."""
        error = await self.flush()
        closing = asyncio.wrap_future(self._thread.submit(self._sink.close))
        self._thread.stop()
        await asyncio.wait((closing,), timeout=LAST_S if self._stuck else BLOCKED_S)
        self._tell(error)

    def _patience(self, limit: float) -> float:
        """How many more seconds the write that runs now may take."""
        return max(0.0, limit - self._thread.busy_s)

    def _begin(self) -> Future[None] | None:
        """Start writing what waits. Returns what to wait for, or None."""
        self._leave_parents_lines()
        with self._lock:
            if self._stuck:
                self._lose_waiting()
                return None
            if self._writing is None:
                if not self._events and not self._lost:
                    return None
                self._writing = Future()
                self._thread.submit(partial(self._write, self._writing))
            return self._writing

    def _take_news(self) -> OSError | None:
        """The first failure since a success; only one caller gets it."""
        with self._lock:
            news, self._news = self._news, None
            return news

    def _write(self, promise: Future[None]) -> None:
        """On the sink's thread: write until nothing waits."""
        going_on = True
        while going_on:
            was_stuck = self._write_once()
            with self._lock:
                # After a stuck write, write the gap for what was dropped now, since no other event may come.
                going_on = bool(self._events) or (was_stuck and bool(self._lost) and not self._failing)
                if not going_on and self._writing is promise:
                    self._writing = None
        fulfil(promise)

    def _write_once(self) -> bool:
        """Write what waits. Returns whether the write was stuck."""
        became = self._sink.what_became_of_it()
        with self._lock:
            if became is not None:
                _log.warning("%s was %s while it was written; it is begun anew", self._sink.name, became)
                self._losses.past_is_gone(became)
            lost, gaps = self._losses.take()
            events, chunks = self._events, self._chunks
            self._in_flight = [*gaps, *events]
            self._clear()
        written, error = self._sink.write(encode_lines(gaps) + b"".join(chunks), len(gaps) + len(events))
        with self._lock:
            self._in_flight = []
            self._losses.account(events)
            if error is not None:
                self._losses.lose_again(lost[written:])
                self._losses.lose(events[max(written - len(gaps), 0) :], error)
            was_stuck, self._stuck = self._stuck, False
            self._failed(error)
            return was_stuck

    def _failed(self, error: OSError | None) -> None:
        """Note whether a write failed; the first failure since a success will be reported."""
        if error is not None and not self._failing:
            self._news = error
        self._failing = error is not None

    def _give_up_for_now(self) -> None:
        """Stop waiting for a write that takes too long; what comes after it is dropped until it returns."""
        with self._lock:
            writing, self._writing = self._writing, None
            if writing is None:  # it has just returned
                return
            self._stuck = True
            self._lose_waiting()
            error = _too_long(self._thread.busy_s)
            self._failed(error)
            self._losses.incomplete = (
                f"{self._unwritten().total():,} events could not be written: {error.strerror}"
            )
        fulfil(writing)

    def _tell(self, error: OSError | None) -> None:
        """Log what could not be written, unless it was already logged."""
        with self._lock:
            unwritten = self._unwritten()
            if error is None and not self._lost and not self._in_flight:
                return
            if unwritten.total() != self._told:
                self._told = unwritten.total()
                by_type = {str(kind): n for kind, n in unwritten.items()}
                _count_log.warning(
                    "%d events could not be written: %s, to %s", self._told, by_type, self._sink.name
                )

    def _unwritten(self) -> Counter[str]:
        """What the sink lacks now, by type; a gap counts as the events that it stands for."""
        return self._losses.unwritten(self._in_flight + self._events)

    # -- the lock is held ----------------------------------------------------------------------------------------------

    def _lose_waiting(self) -> None:
        """Count what waits as lost."""
        events = self._events
        self._clear()
        self._losses.account(events)
        self._losses.lose(events, _too_long(self._thread.busy_s))

    def _clear(self) -> None:
        self._events, self._chunks, self._size = [], [], 0

    def _leave_parents_lines(self) -> None:
        """In a forked child, drop what waits, since the parent also has it and writes it."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.RLock()  # a thread that does not exist here may hold the parent's
            self._losses.clear()
            self._clear()
            self._in_flight, self._stuck, self._writing = [], False, None
            self._thread = WriterThread("rollcast-write")


def _too_long(seconds: float) -> OSError:
    return OSError(errno.ETIMEDOUT, f"a write has not returned for {seconds:.0f} s")
