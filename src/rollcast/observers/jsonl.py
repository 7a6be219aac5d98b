"""Events as JSON lines, in a file or on the standard output (docs/jsonl.md)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import wait
from pathlib import Path

from rollcast.errors import InputError
from rollcast.lifetime import call_at_last
from rollcast.observers.alarm import Alarm
from rollcast.observers.line_file import LineFile, cannot_open, check_writable
from rollcast.observers.waiting_lines import WaitingLines
from rollcast.records import EventFilter
from rollcast.stream.calls import TURN
from rollcast.stream.observer import DeliveryMode, EncodingObserver
from rollcast.stream.processes import rank_of_process
from rollcast.stream.waiting import Encodable
from rollcast.terminal.output import SharedOutput
from rollcast.text import terminal_safe_json

__all__ = ["JSONStreamObserver"]

EXIT_S = 5.0
"""A write that has not returned after so many seconds does not hold up the interpreter's exit, however many there are."""

_log = logging.getLogger(__name__)


class JSONStreamObserver(EncodingObserver):
    """Writes each event as one line of JSON (docs/events.md).

    Lines are appended whole. If a file ends in a torn line, as a crashed writer leaves it, writing continues on a new
    line. If the file cannot be written (a full disk), events are dropped and counted, the failure is reported once, and
    when it can be written again, one `gap` line for each run comes first; the run does not wait. A file that was moved,
    deleted or emptied while it was written is begun anew, with a `gap` line for each open run.

    Several processes may append to one file of a local file system: lines stay whole, and `source` tells whose they are. If torchrun or
    `accelerate launch` started this process with others, all ranks but the first write beside it, to `NAME.rank1.jsonl` and so on.

    Values in an event's data that JSON cannot hold are described by type and size. Several observers in one process may
    write to one path: lines stay whole, and an event that two of them want is written twice.

    Args:
        file_path: the file's path; missing folders are made. None writes to `sys.stdout`, in turn with the consoles there.
        chain_filter: an `EventFilter`, a chain id or several; None writes everything.
        mode: on a slow disk, `lossless` makes the rollout wait, and `coalesce` merges chunks.
        append: False empties the file when this observer opens it for the first time.
        flush_interval: how many seconds an event may wait to be written, whether a run is open or not; 0 writes every
            batch at once.
        flush_bytes: how many bytes may wait before they are written; while a write goes on, twice as many.

    Raises:
        FilterError: `chain_filter` is not one of these.
        InputError: the path is a folder or not writable, or another argument is wrong.
    """

    threaded = True

    def __init__(
        self,
        file_path: str | os.PathLike[str] | None = None,
        *,
        chain_filter: EventFilter | str | Iterable[str] | None = None,
        mode: DeliveryMode = "lossless",
        append: bool = True,
        flush_interval: float = 0.25,
        flush_bytes: int = 256 * 1024,
    ) -> None:
        if mode not in ("lossless", "coalesce"):
            raise InputError(f"mode is {mode!r}; expected 'lossless' or 'coalesce'")
        if not flush_interval >= 0:
            raise InputError(f"flush_interval is {flush_interval!r}; expected seconds from 0 upward")
        if flush_bytes < 1:
            raise InputError(f"flush_bytes is {flush_bytes!r}; expected a number of bytes from 1 upward")
        self.filter = EventFilter.coerce(chain_filter)
        self.mode = mode
        self.path = None if file_path is None else _path_of_rank(Path(file_path))
        self._sink: LineFile | _Printed = _Printed()
        if self.path is not None:
            check_writable(self.path)
            self._sink = LineFile(self.path.absolute(), append=append)
        self._lines = WaitingLines(self._sink, flush_bytes)
        self._alarm = Alarm(flush_interval, weakref.WeakMethod(self._flush))
        # What waits is written at exit, or when nobody holds this any more, even if nobody called aclose.
        _unfinished[id(self._lines)] = self._lines
        weakref.finalize(self, _let_go, self._lines, self._alarm).atexit = False

    @property
    def unread(self) -> bool:
        """Whether the lines go to the standard output and it has no reader any more."""
        return isinstance(self._sink, _Printed) and self._sink.unread

    @property
    def incomplete(self) -> str | None:
        """Why the file lacks events that this observer was given; None if it has them all."""
        return self._lines.incomplete

    def open(self) -> None:
        """Make the folders and open the file now instead of at the first line.

        Raises:
            InputError: it cannot be opened.
        """
        if self.path is None or not isinstance(self._sink, LineFile):
            return
        try:
            self._lines.use(self._sink.open)
        except (OSError, ValueError) as error:
            raise cannot_open(self.path, error) from None

    async def on_encodable(self, events: Sequence[Encodable]) -> None:
        """Write the events, now or within `flush_interval`."""
        lines = self._lines
        lines.add(events)
        # A batch of this size is followed by another one, whose lines are encoded while these are being written.
        goes_on = len(events) >= TURN and not lines.overfull
        if self._alarm.interval == 0 or (lines.full and not goes_on):
            self._look_at(await lines.flush())
            return
        if lines.full:
            self._look_at(lines.begin())
        self._alarm.set()

    async def on_run_closed(self, run_id: str) -> None:
        """Write what waits."""
        self._look_at(await self._lines.flush())
        self._lines.run_closed(run_id)

    async def aclose(self) -> None:
        """Write what waits and close the file; it is opened again if more events come."""
        self._alarm.cancel()
        try:
            self._look_at(await self._lines.flush())
            await self._lines.aclose()
        except asyncio.CancelledError:  # it takes too long for whoever waits
            self._lines.let_go()
            raise

    def _flush(self) -> None:
        """On the alarm's thread."""
        self._look_at(self._lines.flush_blocking())

    def _look_at(self, error: OSError | None) -> None:
        if error is not None:
            where = self._sink.name if self.path is None else self.path
            _log.warning("%s cannot write to %s: %s; events are dropped", self.name, where, error)
            self.report(error)


_unfinished: dict[int, WaitingLines] = {}
"""Of logs that somebody holds, or that are being written to their ends."""


def _let_go(lines: WaitingLines, alarm: Alarm) -> None:
    """Nobody holds the log any more. Whoever noticed that, perhaps a collector in the midst of a run, does not wait."""
    alarm.cancel()
    ending = lines.let_go()
    if ending is None:
        _unfinished.pop(id(lines), None)
    else:
        ending.add_done_callback(lambda _: _unfinished.pop(id(lines), None))


def _finish_all() -> None:
    """At exit: all are written to their ends at the same time, so that many which hang take no longer than one."""
    everyone = list(_unfinished.values())
    endings = [(lines, lines.let_go()) for lines in everyone]
    deadline = time.monotonic() + max((lines.patience(EXIT_S) for lines in everyone), default=0.0)
    for lines, ending in endings:
        if ending is not None:
            wait([ending], timeout=max(0.0, deadline - time.monotonic()))
            if not ending.done():
                lines.tell()


call_at_last(_finish_all)


def _path_of_rank(path: Path) -> Path:
    """The path for this process; a pipe or a device is the same for all."""
    rank = rank_of_process()
    if not rank or (path.exists() and not path.is_file()):
        return path
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


class _Printed:
    """The standard output as a sink: it takes turns with the consoles, and prints nothing if the output has no reader.

    Attributes:
        unread: whether the output has no reader any more.
    """

    name = "the standard output"

    def __init__(self) -> None:
        self.unread = False
        self._failure: OSError | None = None
        self._of: object = None  # the stream that failed

    def write(self, data: bytes, lines: int) -> tuple[int, OSError | None]:
        """Print lines; see `LineFile.write`."""
        stream = sys.stdout
        if stream is None or (self.unread and stream is self._of):  # no stream, as under pythonw
            return lines, None
        if self._failure is not None and stream is self._of:
            return 0, self._failure
        with SharedOutput.of(stream) as output:
            output.put(terminal_safe_json(data.decode()))
        self._of, self.unread = stream, output.unread
        self._failure, output.failure = output.failure, None
        return 0 if self._failure is not None else lines, self._failure

    def what_became_of_it(self) -> str | None:
        """Return None, since what was printed stays printed."""
        return None

    def close(self) -> None:
        """Do nothing: the standard output stays open."""
