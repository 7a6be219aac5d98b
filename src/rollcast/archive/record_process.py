"""The parent's side of the child process that reads records (child.py).

    records = RecordProcess()
    async with records.events(path, since=cursor, filter=wanted) as windows:
        async for window in windows:
            ...
    await records.aclose()

Nothing here reads or decompresses a record, and nothing blocks the event loop: a thread starts the child and writes to it,
another reads what it answers, and a third kills it if it is stuck. The child starts with the first reading, or with `warm`, and
ends after a while without a reading.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from rollcast.aio import call_in, resolve
from rollcast.archive.chain_rows import ChainQuery, Page
from rollcast.archive.pages import Rows
from rollcast.archive.pipe import (
    Alive,
    End,
    Failure,
    FromChild,
    FromParent,
    Item,
    More,
    Open,
    Stop,
    framed,
    from_child,
    read_message,
)
from rollcast.archive.readings import (
    ChainsWanted,
    ChangesWanted,
    EventsWanted,
    EventWindow,
    PastWanted,
    PlaceWanted,
    Reading,
    RecordOfRunWanted,
    RecordsWanted,
    RunsWanted,
    SnapshotsWanted,
    StepsWanted,
    StoryWanted,
    alternatives_of,
)
from rollcast.errors import ArchiveError, InputError, RecordReaderError
from rollcast.records import EventFilter
from rollcast.text import printable_line

__all__ = ["Items", "RecordProcess"]

logger = logging.getLogger("rollcast.archive")

IDLE_S = 30.0
MAX_READINGS = 64  # open at a time; each keeps a frame of events in the child
AHEAD = 2  # items of a reading that the child may send before they are taken
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from rollcast.archive.child import main; main()"
)
_STOPPED = "the process that reads records was stopped; ask again"
JOIN_S = 0.005  # how often to look whether the child has ended
STOP_S = 2.0  # how long a child may take to end before it is killed
STUCK_S = 60.0  # a child that says nothing for so long, not even that it is alive, is killed
TICK_S = 0.5  # how often to look whether it is stuck

I = TypeVar("I", bound=EventWindow | Page | Rows)  # noqa: E741


class RecordProcess:
    """Reads records in a child process at low priority. It belongs to one server.

    Readings may be open at once: they take turns. Each belongs to the event loop in which it was made. If the child dies, or is
    stuck (stopped by a signal, or its disk hangs) for a minute, the open readings raise, and the next one starts another child.

    Args:
        idle_s: after so many seconds without an open reading the child ends.
    """

    def __init__(self, *, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._closed = False
        self._holder = _Holder()
        weakref.finalize(self, _release, self._holder)

    # -- what is read --------------------------------------------------------------------------------------------------

    def events(
        self,
        path: Path,
        *,
        since: str | int | None = None,
        filter: EventFilter | None = None,
        until: int | None = None,
    ) -> Items[EventWindow]:
        """The events of a record that are there now, in windows; at least one, which may be empty.

        The last window's `cursor` is the place to go on from, for what is recorded later.

        Args:
            path: the record's folder.
            since: a cursor of the record, or a position; None: from the first event on.
            filter: which events; gaps always pass. None: all.
            until: the position before which to stop; None: at the end.
        """
        alternatives = None if filter is None else alternatives_of(filter)
        return self._items(EventsWanted(path=str(path), since=since, filter=alternatives, until=until))

    def story(
        self,
        path: Path,
        chain_id: str,
        run_id: str | None = None,
        *,
        since: str | None = None,
        limit: int | None = None,
    ) -> Items[EventWindow]:
        """The events of one chain, of the last run that has one if `run_id` is None, in windows; at least one.

        Args:
            path: the record's folder.
            chain_id: which chain.
            run_id: of this run.
            since: the cursor of an earlier window; None: from the chain's first event on.
            limit: the most events.
        """
        return self._items(
            StoryWanted(path=str(path), chain_id=chain_id, run_id=run_id, since=since, limit=limit)
        )

    def snapshots(self, path: Path, position: int, filter: EventFilter | None = None) -> Items[EventWindow]:
        """A `chain_snapshot` of each chain that is open at a position, with its state there, in windows; at least one.

        Args:
            path: the record's folder.
            position: the snapshots cover what was recorded before it.
            filter: which runs, chains and groups; None: all.
        """
        alternatives = None if filter is None else alternatives_of(filter)
        return self._items(SnapshotsWanted(path=str(path), position=position, filter=alternatives))

    async def place_at(self, path: Path, timestamp: float) -> int:
        """The position of the first event of a record that is not earlier than this. Raises what `Items` raises."""
        items: Items[EventWindow] = self._items(PlaceWanted(path=str(path), timestamp=timestamp))
        return (await _only(items)).position

    async def chains(self, path: Path, query: ChainQuery) -> Page:
        """A page of rows of chains. Raises what `Items` raises."""
        items: Items[Page] = self._items(ChainsWanted(path=str(path), query=query))
        return await _only(items)

    async def rows(
        self, reading: RunsWanted | StepsWanted | ChangesWanted | RecordsWanted | RecordOfRunWanted
    ) -> Rows:
        """A page of rows of runs, of training steps, of chains that changed, or of records. Raises what `Items` raises."""
        items: Items[Rows] = self._items(reading)
        return await _only(items)

    def past(self, portion: PastWanted) -> Items[Rows]:
        """What a portion of events in memory, and those before it, add up to: pages of rows. See `PastWanted`."""
        return self._items(portion)

    # -- the child -----------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The process id of the child; None if no child runs."""
        child = self._holder.child
        return None if child is None or child.over else child.pid

    def warm(self) -> None:
        """Start the child, so that the first reading need not wait until its interpreter has started. Its idle time begins now.

        Raises:
            RecordReaderError: it cannot be started.
        """
        child = self._holder_here().child
        if child is None or child.over:
            self._start_child(_Child(self._idle_s))

    async def aclose(self) -> None:
        """End the child, and wait until it has ended. From now on readings raise `RecordReaderError`."""
        self._closed = True
        child, self._holder.child = self._holder.child, None
        if child is not None:
            child.stop()
            while child.is_ending:  # noqa: ASYNC110  (at the interpreter's exit no other thread could wait for it)
                await asyncio.sleep(JOIN_S)

    def reopen(self) -> None:
        """Let readings start a child again after `aclose`."""
        self._closed = False

    def _items(self, reading: Reading) -> Items[Any]:
        return Items(reading, self._begin)

    def _begin(self, items: Items[Any]) -> _Child:
        """Give the reading to the child, which is started if none runs."""
        if self._closed:
            raise RecordReaderError(_STOPPED)
        holder, request = self._holder_here(), _request(items)
        child = holder.child
        if child is None or not child.open(items, request):
            child = _Child(self._idle_s)
            child.open(items, request)  # before it starts, so that it fails if that fails
            self._start_child(child)
        return child

    def _holder_here(self) -> _Holder:
        """The holder; a forked process has a child of its own."""
        holder = self._holder
        if os.getpid() != holder.pid:
            holder.child, holder.pid = None, os.getpid()
        return holder

    def _start_child(self, child: _Child) -> None:
        self._holder.child = child
        try:
            child.start()
        except RuntimeError as error:  # the system gives no thread, or the interpreter exits
            self._holder.child = None
            raise RecordReaderError(f"the process that reads records cannot be started: {error}") from None


def _request(items: Items[Any]) -> bytes:
    """What asks the child for a reading.

    Raises:
        InputError: it has something that cannot be sent, such as a number of more than 64 bits.
    """
    try:
        return framed(Open(items.id, items.reading, AHEAD))
    except (OverflowError, ValueError, TypeError) as error:
        raise InputError(f"the record cannot be asked for this: {error}") from None


async def _only(items: Items[I]) -> I:
    """The one item of a reading."""
    async with items:
        async for item in items:
            return item
    raise RecordReaderError("the process that reads records gave no answer; ask again")


class _Holder:
    """The child of the process `pid`, to be stopped when the `RecordProcess` is gone."""

    def __init__(self) -> None:
        self.child: _Child | None = None
        self.pid = os.getpid()


def _release(holder: _Holder) -> None:
    if holder.child is not None and holder.pid == os.getpid():
        holder.child.stop()


class Items(Generic[I]):
    """What one reading gives: an async iterator. The child sends `AHEAD` items before they are taken, and no more.

    As an async context manager it ends the reading when the block is left.

    Raises, while it is iterated:
        ArchiveError: the record cannot be read.
        InputError: the request is wrong.
        RecordReaderError: the child died, or could not be started.
    """

    def __init__(self, reading: Reading, begin: Callable[[Items[Any]], _Child]) -> None:
        self.reading = reading
        self.id = next(_ids)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._begin = begin
        self._child: _Child | None = None
        self._came: deque[I] = deque()
        self._over: Exception | bool = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[I]:
        return self

    async def __anext__(self) -> I:
        if self._child is None and not self._over:
            self.loop = asyncio.get_running_loop()
            self._child = self._begin(self)
        while not self._came and not self._over:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._came:
            item = self._came.popleft()
            if not self._over and self._child is not None:
                self._child.put(More(self.id))
            return item
        if isinstance(self._over, Exception):
            over, self._over = self._over, True
            raise over
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the reading. Closing twice does nothing."""
        if not self._over:
            self._over = True
            if self._child is not None:
                self._child.close(self)
        self._came.clear()
        if self._waiter is not None:
            resolve(self._waiter)

    def take(self, answer: Item | End | Failure | RecordReaderError) -> None:
        """Take what came. Called in the reading's loop."""
        if self._over:
            return
        match answer:
            case Item(given=given):
                self._came.append(given)  # type: ignore[arg-type]  # the child gives what the reading asks for
            case End():
                self._over = True
            case Failure(kind=kind, message=message):
                self._over = _error_of(kind, message)
            case RecordReaderError():
                self._over = answer
        if self._waiter is not None:
            resolve(self._waiter)


_ids = itertools.count(1)


def _error_of(kind: str, message: str) -> Exception:
    if kind == "input":
        return InputError(message)
    if kind == "record":
        return ArchiveError(message)
    logger.error("the process that reads records has a fault:\n%s", message)
    return RecordReaderError(
        f"the record could not be read, by a fault in Rollcast: {message.splitlines()[-1]}"
    )


class _Child:
    """One child process, from its start to its end. Use it from any thread.

    Attributes:
        over: whether it takes no further readings.
        pid: None before it was started.
    """

    def __init__(self, idle_s: float) -> None:
        self.over = False
        self.pid: int | None = None
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._readings: dict[int, Items[Any]] = {}
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._heard = 0  # messages that came from it
        self._ended = threading.Event()  # set when it has ended, or was given up
        self._why = ""  # it was killed, in words
        self._told_to_end = False  # so its end is no failure
        self._thread = threading.Thread(target=self._run, name="rollcast-record-process", daemon=True)

    def start(self) -> None:
        """Start the process, on a thread."""
        self._thread.start()

    def open(self, items: Items[Any], request: bytes) -> bool:
        """Begin a reading, which the request asks for. False if the child takes none any more.

        Raises:
            RecordReaderError: too many readings are open.
        """
        with self._lock:
            if self.over:
                return False
            if len(self._readings) >= MAX_READINGS:
                raise RecordReaderError(
                    f"{MAX_READINGS} readings of records are open at once; ask again later"
                )
            self._readings[items.id] = items
            self._outbox.put(request)
        return True

    def put(self, message: FromParent) -> None:
        """Send the child a message."""
        self._outbox.put(framed(message))

    def close(self, items: Items[Any]) -> None:
        """End a reading."""
        with self._lock:
            if self._readings.pop(items.id, None) is not None:
                self._outbox.put(framed(Stop(items.id)))

    def stop(self) -> None:
        """Have the child end."""
        with self._lock:
            self.over = self._told_to_end = True
        self._outbox.put(None)

    @property
    def is_ending(self) -> bool:
        """Whether the child has not ended yet."""
        return self._thread.is_alive()

    # -- the thread that starts it and writes to it --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            process = self._start()
        except OSError as error:
            self._fail(f"the process that reads records cannot be started: {error.strerror or error}")
            return
        self.pid = process.pid
        assert process.stdout is not None
        assert process.stdin is not None
        listener = threading.Thread(
            target=self._listen, args=(process,), name="rollcast-record-answers", daemon=True
        )
        watcher = threading.Thread(
            target=self._watch, args=(process,), name="rollcast-record-watch", daemon=True
        )
        try:
            watcher.start()
            listener.start()
        except RuntimeError as error:
            self._ended.set()
            process.kill()
            process.communicate()
            self._fail(f"the process that reads records cannot be started: {error}")
            return
        try:
            while (message := self._next()) is not None:
                process.stdin.write(message)
                if self._outbox.empty():
                    process.stdin.flush()
        except OSError:
            pass  # it has died; the listener says so
        with self._lock:
            self.over = True
        with suppress(OSError):
            process.stdin.close()
        ended = _ends(process)
        self._ended.set()
        if ended:
            listener.join()
            process.stdout.close()
            if process.stderr is not None:
                process.stderr.close()
        self._fail(_STOPPED)

    def _start(self) -> subprocess.Popen[bytes]:
        if not sys.executable:
            raise FileNotFoundError(2, "this program does not know its Python interpreter")
        modules = [path or str(Path.cwd()) for path in sys.path]  # the child finds what this process finds
        return subprocess.Popen(  # noqa: S603  (Rollcast itself)
            [sys.executable, "-P", "-c", _START, json.dumps(modules)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # only what Python says if the child cannot start; then it is closed
        )

    def _next(self) -> bytes | None:
        """The next message; None when the child is to end."""
        while True:
            try:
                return self._outbox.get(timeout=self._idle_s)
            except queue.Empty:
                with self._lock:
                    if not self._readings and self._outbox.empty():
                        self.over = self._told_to_end = True
                        return None

    # -- the thread that kills it if it is stuck -----------------------------------------------------------------------

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the child if it is silent for too long, or does not end: the other threads may be waiting for it in its pipes.

        Time is counted in ticks of this thread, so that a pause of the whole process (Ctrl-Z) does not count.
        """
        heard, silent_s, stopping_s = self._heard, 0.0, 0.0
        while not self._ended.wait(TICK_S):
            silent_s = silent_s + TICK_S if self._heard == heard else 0.0
            stopping_s = stopping_s + TICK_S if self.over else 0.0
            heard = self._heard
            if silent_s >= STUCK_S:
                self._why = f"has said nothing for {STUCK_S:.0f} s and was killed"
            if silent_s >= STUCK_S or stopping_s > STOP_S:
                process.kill()

    # -- the thread that reads what it answers -------------------------------------------------------------------------

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        try:
            while (data := read_message(process.stdout.read)) is not None:
                self._take(from_child(data))
        except (OSError, ValueError):
            logger.exception("the process that reads records answers what cannot be read")
            process.kill()
        with self._lock:
            died, self.over = not self._told_to_end, True
        if died:
            how = _how(process)
            self._fail(f"the process that reads records {self._why or f'died ({how})'}; ask again")
        self._outbox.put(None)

    def _take(self, answer: FromChild) -> None:
        self._heard += 1
        if isinstance(answer, Alive):
            return
        with self._lock:
            last = not isinstance(answer, Item)
            items = self._readings.pop(answer.id, None) if last else self._readings.get(answer.id)
        if items is not None and items.loop is not None:
            call_in(items.loop, items.take, answer)

    def _fail(self, message: str) -> None:
        """Fail every open reading."""
        with self._lock:
            self.over = True
            readings, self._readings = list(self._readings.values()), {}
        for items in readings:
            if items.loop is not None:
                call_in(items.loop, items.take, RecordReaderError(message))


def _ends(process: subprocess.Popen[bytes]) -> bool:
    """Wait until it has ended, and kill it if that takes too long. False if even that does not help, since its disk hangs."""
    for _ in range(2):
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
        else:
            return True
    return False


def _how(process: subprocess.Popen[bytes]) -> str:
    """How it died, and what it said if it could not even start."""
    code = process.wait()
    said = b"" if process.stderr is None else process.stderr.read(1 << 16).strip()
    last = printable_line(said.rpartition(b"\n")[2].decode(errors="replace"), 200)
    return (f"signal {-code}" if code < 0 else f"exit code {code}") + (f": {last}" if last else "")
