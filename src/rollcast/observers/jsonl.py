"""Events as JSON lines, in a file or on the standard output (docs/jsonl.md)."""

from __future__ import annotations

import logging
import os
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path

from rollcast.errors import InputError
from rollcast.observers.alarm import Alarm
from rollcast.observers.line_file import LineFile, cannot_open, check_writable
from rollcast.observers.waiting_lines import WaitingLines
from rollcast.records import EventFilter, StreamEvent
from rollcast.stream.observer import DeliveryMode, StreamObserver
from rollcast.terminal.output import SharedOutput
from rollcast.text import terminal_safe_json

__all__ = ["JSONStreamObserver"]

EXIT_S = 5.0
"""A write that has not returned after so many seconds does not hold up the interpreter's exit."""

_log = logging.getLogger(__name__)


class JSONStreamObserver(StreamObserver):
    """Writes each event as one line of JSON (docs/events.md).

    Lines are appended whole. A file that ends in a torn line, as a crashed writer leaves it, is gone on with on a new
    line. If the file cannot be written (a full disk), events are dropped and counted, the failure is reported once,
    and when it can be written again a `gap` line per run comes first; the run is never held up. A file that was moved,
    deleted or emptied while it was written is begun anew, with a `gap` line for each run that is open.

    What JSON cannot hold in an event's data is described by type and size. Several observers may write to one path
    in one process: lines stay whole, and an event that two of them want stands there twice.

    Args:
        file_path: of the file; missing folders are made. None writes to `sys.stdout`, in turn with the consoles there.
        chain_filter: an `EventFilter`, a chain id or several; None writes everything.
        mode: `lossless` has the rollout wait for a slow disk; `coalesce` merges chunks then.
        append: False empties the file when this observer opens it for the first time.
        flush_interval: how long an event may wait to be written, in seconds, whether a run is open or not; 0 writes every
            batch at once.
        flush_bytes: how much may wait, in bytes.

    Raises:
        FilterError: `chain_filter` is none of these.
        InputError: the path is a folder or may not be written to, or a number is out of its range.
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
        flush_bytes: int = 64 * 1024,
    ) -> None:
        if mode not in ("lossless", "coalesce"):
            raise InputError(f"mode is {mode!r}; expected 'lossless' or 'coalesce'")
        if not flush_interval >= 0:
            raise InputError(f"flush_interval is {flush_interval!r}; expected seconds from 0 upward")
        if flush_bytes < 1:
            raise InputError(f"flush_bytes is {flush_bytes!r}; expected a number of bytes from 1 upward")
        self.filter = EventFilter.coerce(chain_filter)
        self.mode = mode
        self.path = None if file_path is None else Path(file_path)
        self._sink: LineFile | _Printed = _Printed()
        if self.path is not None:
            check_writable(self.path)
            self._sink = LineFile(self.path.absolute(), append=append)
        self._lines = WaitingLines(self._sink, flush_bytes)
        self._alarm = Alarm(flush_interval, weakref.WeakMethod(self._flush))
        # What waits is written at exit, even if nobody called aclose.
        weakref.finalize(self, _close, self._lines, self._alarm)

    @property
    def unread(self) -> bool:
        """Whether the lines go to the standard output and nobody reads that any more."""
        return isinstance(self._sink, _Printed) and self._sink.unread

    @property
    def incomplete(self) -> str | None:
        """Why the file lacks events that this observer was given; None if it has them all."""
        return self._lines.incomplete

    def open(self) -> None:
        """Open the file now, its folders made, and not only when the first line is written.

        Raises:
            InputError: it cannot be opened.
        """
        if self.path is None or not isinstance(self._sink, LineFile):
            return
        try:
            self._lines.use(self._sink.open)
        except (OSError, ValueError) as error:
            raise cannot_open(self.path, error) from None

    async def on_event(self, event: StreamEvent) -> None:
        await self.on_batch([event])

    async def on_batch(self, events: list[StreamEvent]) -> None:
        """Write the events, now or within `flush_interval`."""
        self._lines.add(events)
        if self._alarm.interval == 0 or self._lines.full:
            self._look_at(await self._lines.flush())
        else:
            self._alarm.set()

    async def on_run_closed(self, run_id: str) -> None:
        """Write what waits."""
        self._look_at(await self._lines.flush())
        self._lines.run_closed(run_id)

    async def aclose(self) -> None:
        """Write what waits and close the file; it is opened again when events come again."""
        self._alarm.cancel()
        self._look_at(await self._lines.flush())
        await self._lines.aclose()

    def _flush(self) -> None:
        """On the alarm's thread."""
        self._look_at(self._lines.flush_blocking())

    def _look_at(self, error: OSError | None) -> None:
        if error is not None:
            where = self._sink.name if self.path is None else self.path
            _log.warning("%s cannot write to %s: %s; events are dropped", self.name, where, error)
            self.report(error)


def _close(lines: WaitingLines, alarm: Alarm) -> None:
    alarm.cancel()
    lines.close(EXIT_S)


class _Printed:
    """The standard output as a sink: it takes its turn with the consoles, and is silent if nobody reads.

    Attributes:
        unread: nobody does.
    """

    name = "the standard output"

    def __init__(self) -> None:
        self.unread = False
        self._failure: OSError | None = None
        self._of: object = None  # the stream that failed

    def write(self, data: bytes) -> tuple[int, OSError | None]:
        """Print lines; as `LineFile.write`."""
        lines = data.count(b"\n")
        stream = sys.stdout
        if stream is None or (self.unread and stream is self._of):  # none: as under pythonw
            return lines, None
        if self._failure is not None and stream is self._of:
            return 0, self._failure
        with SharedOutput.of(stream) as output:
            output.put(terminal_safe_json(data.decode()))
        self._of, self.unread = stream, output.unread
        self._failure, output.failure = output.failure, None
        return 0 if self._failure is not None else lines, self._failure

    def what_became_of_it(self) -> str | None:
        """What was printed stays printed."""
        return None

    def close(self) -> None:
        """The standard output is not this observer's to close."""
