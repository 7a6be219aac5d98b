"""Events as JSON lines, in a file or on the standard output (docs/jsonl.md)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rollcast.errors import InputError
from rollcast.records import EventFilter, StreamEvent, StreamEventType, encode_lines
from rollcast.records.codec import encode_described, without_surrogates
from rollcast.stream.observer import DeliveryMode, StreamObserver
from rollcast.stream.observers.line_file import LineFile, check_writable
from rollcast.stream.observers.output import SharedOutput
from rollcast.stream.observers.safe_text import json_safe

__all__ = ["JSONStreamObserver"]

_log = logging.getLogger(__name__)


class JSONStreamObserver(StreamObserver):
    """Writes each event as one line of JSON (docs/events.md).

    Lines are appended whole. A file that ends in a torn line, as a crashed writer leaves it, is gone on with on a new
    line. Where the file cannot be written (a full disk), events are dropped and counted, the failure is reported once,
    and when it can be written again a `gap` line per run comes first; the run is never held up.

    What JSON cannot hold in an event's data is described by type and size. Several observers may write to one path
    in one process: lines stay whole, and an event that two of them want stands there twice.

    Args:
        file_path: of the file; missing folders are made. None writes to `sys.stdout`, in turn with the consoles there.
        chain_filter: an `EventFilter`, a chain id or several; None writes everything.
        mode: `lossless` has the rollout wait for a slow disk; `coalesce` merges chunks then.
        append: False empties the file when this observer opens it for the first time.
        flush_interval: how long an event may wait to be written, in seconds; 0 writes every batch at once.
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
        self._flush_interval = flush_interval
        self._timer: asyncio.TimerHandle | None = None
        self._timer_loop: asyncio.AbstractEventLoop | None = None
        if self.path is not None:
            check_writable(self.path)
            sink: LineFile | _Printed = LineFile(self.path.absolute(), append=append)
        else:
            sink = _Printed()
        self._lines = _Lines(sink, flush_bytes)
        # What waits is written at exit even where nobody called aclose.
        weakref.finalize(self, self._lines.close)

    async def on_event(self, event: StreamEvent) -> None:
        """Write one event."""
        await self.on_batch([event])

    async def on_batch(self, events: list[StreamEvent]) -> None:
        """Write the events, now or within `flush_interval`."""
        self._lines.add(events, self.name)
        if self._flush_interval == 0 or self._lines.full:
            self._flush()
        else:
            self._arm()

    async def on_run_closed(self, run_id: str) -> None:
        """Write what waits."""
        del run_id
        self._flush()

    async def aclose(self) -> None:
        """Write what waits and close the file; it is opened again when events come again."""
        self._flush()
        self._lines.close()

    def _flush(self) -> None:
        if self._timer is not None and self._timer_loop is not None and not self._timer_loop.is_closed():
            self._timer.cancel()
        self._timer = self._timer_loop = None
        error = self._lines.flush()
        if error is not None:
            _log.warning("%s cannot write to %s: %s; events are dropped", self.name, self.path, error)
            self.report(error)

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer_loop is not loop:
            self._timer_loop = loop
            self._timer = loop.call_later(self._flush_interval, self._flush)


@dataclass
class _Lost:
    """Events of one run that could not be written."""

    from_seq: int
    to_seq: int
    reason: str
    dropped: Counter[str] = field(default_factory=Counter)


class _Lines:
    """What waits to be written, and what could not be. Knows nothing of the observer, so that it can outlive it."""

    def __init__(self, sink: LineFile | _Printed, flush_bytes: int) -> None:
        self._sink = sink
        self._flush_bytes = flush_bytes
        self._events: list[StreamEvent] = []
        self._chunks: list[bytes] = []
        self._size = 0
        self._lost: dict[tuple[str, str], _Lost] = {}
        self._failing = False
        self._told = 0  # how many lost events were warned of
        self._pid = os.getpid()

    @property
    def full(self) -> bool:
        return self._size >= self._flush_bytes

    def add(self, events: list[StreamEvent], name: str) -> None:
        self._leave_parents_lines()
        try:
            data = encode_lines(events)
        except Exception:  # noqa: BLE001  user-made data: whatever its encoding raises, the other events are written
            data = b"".join([encode_described(event) + b"\n" for event in events])
        self._events += events
        self._chunks.append(data)
        self._size += len(data)

    def flush(self) -> OSError | None:
        """Write what waits. Returns the failure where it is the first since a success."""
        self._leave_parents_lines()
        if not self._events and not self._lost:
            return None
        gaps = [_gap(source, run_id, lost) for (source, run_id), lost in self._lost.items()]
        keys = list(self._lost)
        written, error = self._sink.write(encode_lines(gaps) + b"".join(self._chunks))
        for key in keys[:written]:
            del self._lost[key]
        if error is not None:
            for event in self._events[max(written - len(gaps), 0) :]:
                self._lose(event, error)
        self._clear()
        first = error is not None and not self._failing
        self._failing = error is not None
        return error if first else None

    def close(self) -> None:
        """Write what waits, as far as that goes, and let go of the file."""
        error = self.flush()
        if error is not None or self._lost:
            dropped = sum((lost.dropped for lost in self._lost.values()), Counter[str]())
            if dropped.total() != self._told:
                self._told = dropped.total()
                _log.warning("%d events could not be written: %s", self._told, dict(dropped))
        self._sink.close()

    def _lose(self, event: StreamEvent, error: OSError) -> None:
        data = event.data
        first, last, dropped = data.get("from_seq", event.seq), event.seq, {str(event.event_type): 1}
        if event.event_type == StreamEventType.GAP:  # it stands for others
            last, dropped = data["to_seq"], data["dropped"]
        key = (event.source, event.run_id)
        lost = self._lost.get(key)
        if lost is None:
            reason = f"the file could not be written: {error.strerror or error}"
            lost = self._lost[key] = _Lost(first, last, reason)
        lost.from_seq = min(lost.from_seq, first)
        lost.to_seq = max(lost.to_seq, last)
        lost.dropped.update(dropped)

    def _clear(self) -> None:
        self._events, self._chunks, self._size = [], [], 0

    def _leave_parents_lines(self) -> None:
        """A forked child drops what waits: its parent has it too, and writes it."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lost.clear()
            self._clear()


class _Printed:
    """The standard output as a sink: it takes its turn with the consoles, and is silent where nobody reads."""

    def write(self, data: bytes) -> tuple[int, OSError | None]:
        lines = data.count(b"\n")
        stream = sys.stdout
        if stream is None:  # as under pythonw
            return lines, None
        with SharedOutput.of(stream) as output:
            output.put(json_safe(data.decode()))
        failure, output.failure = output.failure, None
        return lines, failure

    def close(self) -> None:
        """The standard output is not this observer's to close."""


def _gap(source: str, run_id: str, lost: _Lost) -> StreamEvent:
    data = {
        "from_seq": lost.from_seq,
        "to_seq": lost.to_seq,
        "dropped": dict(lost.dropped),
        "reason": lost.reason,
    }
    return StreamEvent(
        StreamEventType.GAP,
        "",
        time.time(),
        data,
        run_id=without_surrogates(run_id),
        source=without_surrogates(source),
    )
