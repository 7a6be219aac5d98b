"""The one thread that writes a record. It takes what waits, at most 0.15 s after it came, and may block on the disk for ever."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from rollcast.aio import fulfil, interpreter_exits
from rollcast.records import StreamEventType, Trajectory
from rollcast.stream.waiting import EncodableChunk, Relayed

__all__ = ["Worker", "Writes"]

logger = logging.getLogger("rollcast.archive")

T = StreamEventType

FLUSH_S = 0.15  # an event waits here for no longer: with the observer's own rest and the write it makes less than 0.25 s
FIRST_FLUSH_S = 0.01  # then twice as long each time: a program that is killed in its first moments leaves what it did in them
BEAT_S = 10.0
FIRST_BEAT_S = 0.5  # then twice as long each time, so that a list shows something of a run that has just begun or died early
_SOON = 2048  # with this many waiting events they are written at once; the more a chain has among them, the fewer lines
_FULL_EVENTS, _FULL_BYTES = (
    8192,
    16 << 20,
)  # that may wait here; the rest waits in the observer's queue, which is bounded
_EVENT_BYTES, _TOKEN_BYTES = (
    800,
    128,
)  # of memory that an event takes, its texts and lists aside, and a token in it
_WITH_TOKENS = (T.LLM_GENERATION_CHUNK, T.LLM_GENERATION_END)
_TRAJECTORY_BYTES = (
    256 << 20
)  # of memory that waiting trajectories may keep alive: ten thousand chains may end at once
_SMALL = frozenset({T.LLM_GENERATION_START, T.TOOL_CALL_END, T.REWARD})  # types whose events are always small


class Writes(Protocol):
    """What the thread calls: the recorder."""

    def open(self) -> None: ...

    def record(self, events: list[Relayed], trajectories: list[Trajectory], lost: int) -> None: ...

    def beat(self) -> None: ...

    def finish(self) -> None: ...


class Worker:
    """Hands what was put in to a recorder, on a thread of its own that lives from `start` until `stop`.

    A program may end before anything of it was recorded, and Python 3.12.0 and 3.12.1 start no thread from then on. Then it is
    written in the thread that waits for it.

    Args:
        recorder: who writes; used on that thread alone.
        name: of the thread.
    """

    def __init__(self, recorder: Writes, name: str) -> None:
        self._recorder = recorder
        self._name = name
        self._wake = threading.Condition()
        self._events: list[Relayed] = []
        self._bytes = 0
        self._trajectories: list[Trajectory] = []
        self._trajectory_bytes = 0
        self._trajectories_lost = 0  # that came while too much waited
        self._promises: list[Future[None]] = []  # kept when all that came before them is written
        self._urgent = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._stopped: Future[None] = Future()
        self._threadless = False

    def start(self) -> None:
        """Begin. Starting twice does nothing. If it was told to stop and has not ended, it goes on.

        Raises:
            RuntimeError: the system gives no thread.
        """
        with self._wake:
            if self.running:
                if self._stopping:
                    self._stopping = False
                    self._promises.append(self._stopped)
                    self._stopped = Future()
                return
            self._stopped = Future()
            self._stopping = False
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if not interpreter_exits():
                    raise
                self._threadless = True
            else:
                self._thread = thread
                return
        self._attempt(self._recorder.open)

    def put(self, events: Sequence[Relayed], text_bytes: int | None = None) -> Future[None] | None:
        """Have the events written, and begin if it has not begun. If too much waits, a promise that is kept when there is room again:
        wait for it.

        Args:
            events: in order.
            text_bytes: of the JSON that they were read from; None if they were made here.

        Raises:
            RuntimeError: the system gives no thread.
        """
        size = _bytes_of(events) if text_bytes is None else _bytes_of_read(events, text_bytes)
        with self._wake:
            self._events += events
            self._bytes += size
            idle = not self.running
        if idle:
            self.start()
        with self._wake:
            if len(self._events) < _SOON and self._bytes < _FULL_BYTES:
                return None
            self._urgent = True
            self._wake.notify()
            full = len(self._events) >= _FULL_EVENTS or self._bytes >= _FULL_BYTES
            if not self._threadless:
                return self._promise() if full else None
        return self._written_here() if full else None

    def put_trajectory(self, trajectory: Trajectory) -> None:
        """Have the trajectory written, before events that are put in from now on. Never waits."""
        size = _size_of(trajectory)
        with self._wake:
            if self._trajectory_bytes + size > _TRAJECTORY_BYTES and self._trajectories:
                self._trajectories_lost += 1
                return
            self._trajectories.append(trajectory)
            self._trajectory_bytes += size

    def flush(self) -> Future[None]:
        """A promise that is kept when all that was put in is written, or cannot be."""
        with self._wake:
            if self._thread is not None:
                self._urgent = True
                self._wake.notify()
                return self._promise()
        return self._written_here()

    def stop(self) -> Future[None]:
        """Write what waits and finish the record. The promise is kept when the thread has ended."""
        with self._wake:
            if self._thread is not None:
                self._stopping = self._urgent = True
                self._wake.notify()
                return self._stopped
        written = self._written_here()
        if self._threadless:
            self._threadless = False
            self._attempt(self._recorder.finish)
        return written

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._thread is not None or self._threadless

    def _written_here(self) -> Future[None]:
        """A promise that is kept already. If no thread writes any more, what waits is written here first."""
        if self._threadless:
            with self._wake:
                self._urgent = True
            self._write_what_waits(0)
        done: Future[None] = Future()
        fulfil(done)
        return done

    def _promise(self) -> Future[None]:
        promise: Future[None] = Future()
        self._promises.append(promise)
        return promise

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._record()
            while not self._end():
                self._record()
        finally:
            self._end(at_once=True)

    def _end(self, *, at_once: bool = False) -> bool:
        """End the thread, unless something came while the record was finished: that is written too."""
        with self._wake:
            if self._thread is not threading.current_thread():
                return True  # it has ended, and perhaps another was started
            if not at_once and (not self._stopping or self._events or self._trajectories):
                return False
            self._thread = None
            promises, self._promises = [*self._promises, self._stopped], []
        for promise in promises:
            fulfil(promise)
        return True

    def _record(self) -> None:
        """Open the record, write until told to stop, and finish it."""
        self._attempt(self._recorder.open)
        pause = min(FIRST_BEAT_S, BEAT_S)
        next_beat = time.monotonic() + pause
        flush = min(FIRST_FLUSH_S, FLUSH_S)
        while self._write_what_waits(flush):
            flush = min(2 * flush, FLUSH_S)
            if time.monotonic() >= next_beat:
                self._attempt(self._recorder.beat)
                pause = min(2 * pause, BEAT_S)
                next_beat = time.monotonic() + pause
        self._attempt(self._recorder.finish)

    def _write_what_waits(self, longest: float) -> bool:
        """One round, which lets events wait for at most `longest` seconds. False if it was the last."""
        with self._wake:
            if not self._urgent:
                self._wake.wait(longest)
            events, self._events, self._bytes = self._events, [], 0
            trajectories, self._trajectories, self._trajectory_bytes = self._trajectories, [], 0
            lost, self._trajectories_lost = self._trajectories_lost, 0
            promises, self._promises = self._promises, []
            self._urgent, stopping = False, self._stopping
        if events or trajectories or lost:
            self._attempt(lambda: self._recorder.record(events, trajectories, lost))
        for promise in promises:
            fulfil(promise)
        with self._wake:
            return not (stopping and not self._events and not self._promises)

    def _attempt(self, write: Callable[[], object]) -> None:
        """A fault of ours in a recorder must not end the thread: whoever waits for it would wait for ever."""
        try:
            write()
        except Exception:  # of any kind: the run must not notice, and waiters must be released; it is logged with its traceback
            logger.exception("the record could not be written, by a fault in Rollcast")


def _bytes_of(events: Sequence[Relayed]) -> int:
    """Roughly how many bytes of memory the events keep alive beyond what their chains hold anyway; much quicker than `event_size`."""
    size = _EVENT_BYTES * len(events)
    for event in events:
        data: Any = event.data
        if event.__class__ is EncodableChunk:
            size += len(data.content)
            if data.token_ids.__class__ is list:
                size += _TOKEN_BYTES * len(data.token_ids)
        elif event.event_type not in _SMALL and data.__class__ is dict:
            for value in data.values():
                if value.__class__ is str:
                    size += len(value)
                elif value.__class__ is list:
                    size += 64 * len(value)
    return size


def _bytes_of_read(events: Sequence[Relayed], text_bytes: int) -> int:
    """The same of events that were read from so much JSON, in which lists of numbers take far less than in memory."""
    size = _EVENT_BYTES * len(events) + text_bytes
    for event in events:
        if event.event_type in _WITH_TOKENS:
            data: Any = event.data
            ids = data.get("token_ids") if data.__class__ is dict else data.token_ids
            if ids.__class__ is list:
                size += _TOKEN_BYTES * len(ids)
    return size


def _size_of(trajectory: Trajectory) -> int:
    """About how many bytes of memory it keeps alive."""
    return 2000 + sum(
        500 + turn.chars + 80 * (len(turn.token_ids) + len(turn.prompt_ids)) for turn in trajectory.turns
    )
