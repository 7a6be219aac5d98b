"""The local record of a producer whose hub is away: an ordinary record, and a small file that says what it has for which hub.

    rollcast-runs/20261128-1532-node7-3f2a/   as archive/format.py draws it
        handover.json                         the hub, source and epoch, and the numbers of the record's events

The record has no tokens: nobody watches while the hub is away. Everything here may block on the disk, on the producer's thread.
"""

from __future__ import annotations

import bisect
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from rollcast.archive.format import EVENTS, RunFile, record_name
from rollcast.archive.lines import SegmentedLines
from rollcast.archive.segments import replace_file
from rollcast.archive.writer import Recorder
from rollcast.errors import DecodeError
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.codec import decode_unchecked, encode_lines
from rollcast.serve.producing import FRAME_BYTES, FRAME_EVENTS, Block

__all__ = ["HANDOVER_FILE", "Handover", "Numbers", "Spool", "SpoolReader", "block_of", "events_of", "forget"]

HANDOVER_FILE = "handover.json"
CHUNK = StreamEventType.LLM_GENERATION_CHUNK


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """`handover.json`: what a record has for which hub.

    Attributes:
        hub: the address of the hub, without a password.
        source, epoch: of the producer.
        numbers: pairs of a position in the record and the number of the event there; the numbers of those that follow rise by one.
        acked: the hub has every event up to this number; 0: that is not known.
    """

    hub: str
    source: str
    epoch: str
    numbers: list[tuple[int, int]]
    acked: int = 0


class Numbers:
    """The numbers of the events of a record, by position.

    Args:
        pieces: as `Handover.numbers`.
    """

    def __init__(self, pieces: list[tuple[int, int]] | None = None) -> None:
        self.pieces = sorted(pieces or [])

    def note(self, position: int, number: int) -> None:
        """The events from this position on, which is after all that were noted, have numbers from this one on."""
        if not self.pieces or self.at(position) != number:
            self.pieces.append((position, number))

    def at(self, position: int) -> int:
        """The number of the event at a position."""
        piece = bisect.bisect_right(self.pieces, position, key=lambda piece: piece[0]) - 1
        first, number = self.pieces[max(0, piece)]
        return number + position - first

    def after(self, number: int) -> int:
        """The first position whose event has a higher number than this."""
        piece = bisect.bisect_right(self.pieces, number, key=lambda piece: piece[1]) - 1
        if piece < 0:
            return self.pieces[0][0] if self.pieces else 0
        first, begins_with = self.pieces[piece]
        position = first + number - begins_with + 1
        return min(position, self.pieces[piece + 1][0]) if piece + 1 < len(self.pieces) else position


class Spool:
    """Writes the record, and reads it back.

    Args:
        directory: of records.
        hub: the address of the hub, as `Handover` has it.
        source, epoch: of the producer.
        on_failure: called with the first failure after a success.

    Attributes:
        numbers: of its events.
        highest: the highest number of an event that was given to it.
    """

    def __init__(
        self,
        directory: Path,
        hub: str,
        source: str,
        epoch: str,
        *,
        on_failure: Callable[[BaseException], object] = lambda _: None,
    ) -> None:
        self.numbers = Numbers()
        self._hub = hub
        self._source = source
        self._epoch = epoch
        self._told: list[tuple[int, int]] | None = None  # what `handover.json` says
        self._recorder = Recorder(
            self._drawn(directory),
            RunFile(name=source, tags=["hub-away"], level="turns"),
            trajectories=False,
            masker=None,  # the events are masked already
            open_parts=lambda: (),
            on_failure=on_failure,
            run_in=directory,
        )
        self.highest = 0
        self._reader: SpoolReader | None = None
        self._recorder.redraw = lambda: self._drawn(directory)

    def _drawn(self, directory: Path) -> Path:
        path = directory / record_name(self._source, time.time(), secrets.token_hex(2))
        return self._drawn(directory) if os.path.lexists(path) else path

    @property
    def path(self) -> Path:
        """The record's folder."""
        return self._recorder.path

    @property
    def begun(self) -> bool:
        """Whether there is a record."""
        return self._recorder.begun

    @property
    def failing(self) -> str | None:
        """Why it cannot be written at present; None if it can."""
        return self._recorder.failing

    @property
    def position(self) -> int:
        """The position after the event that was written last."""
        return self._recorder.about.totals.events

    # -- writing -------------------------------------------------------------------------------------------------------

    def save(self, block: Block, next_number: int) -> int:
        """Write the events that are not tokens; if they cannot be written, a `gap` will stand for them.

        Args:
            block: with numbers or without. Blocks with numbers come before those without.
            next_number: the number of the first event that has none.

        Returns:
            The number of the next event that has none.
        """
        events = [*enumerate(events_of(block), block.number)]
        kept = [(number, event) for number, event in events if event.event_type is not CHUNK]
        if not block.number:
            return self._write([event for _, event in kept], next_number)
        while kept:  # as many at once as have consecutive numbers
            first = kept[0][0]
            count = next((i for i, (number, _) in enumerate(kept) if number != first + i), len(kept))
            run, kept = kept[:count], kept[count:]
            self._write([event for _, event in run], first, fixed=True)
        return max(next_number, block.last + 1)

    def _write(self, events: list[StreamEvent], number: int, *, fixed: bool = False) -> int:
        """Write events whose numbers begin with this one; returns the number after them.

        Gaps that come before them get the numbers of what they stand for, if the events have theirs already.
        """
        before = self.position
        if events:
            self._recorder.record([*events], ())
        written = self.position - before
        self.highest = max(self.highest, number + (len(events) if fixed else written) - 1)
        if written:
            gaps = written - len(events)
            self.numbers.note(before, number - gaps if fixed else number)
            self._tell()
        return number + written

    def _tell(self) -> None:
        """Write `handover.json`, if what it says is out of date."""
        if self._told == self.numbers.pieces or not self.begun:
            return
        handover = Handover(
            hub=self._hub, source=self._source, epoch=self._epoch, numbers=self.numbers.pieces
        )
        with suppress(OSError):  # it is tried again with the next block, or beat
            replace_file(self.path / HANDOVER_FILE, msgspec.json.encode(handover))
            self._told = [*self.numbers.pieces]

    def beat(self) -> None:
        """Say that the writer lives."""
        self._recorder.beat()
        self._tell()

    def lost(self) -> list[StreamEvent]:
        """A `gap` for each run of which something could not be written; from now on the caller keeps them."""
        return self._recorder.take_gaps()

    def could_not_be_read(self) -> None:
        """Count what was written as lost: it cannot be read back."""
        self._recorder.lose_past("the local record of a producer could not be read back")

    def finish(self) -> None:
        """End the record."""
        before = self.position
        self._recorder.finish()
        if gaps := self.position - before:
            after_all = self.highest + 1
            follows = self.numbers.at(before) if self.numbers.pieces else after_all
            self.numbers.note(before, max(follows, after_all - gaps))
        self._tell()

    @property
    def next_number(self) -> int:
        """The number after that of the record's last event; 1 if the record is empty."""
        return self.numbers.at(self.position) if self.numbers.pieces else 1

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, position: int) -> tuple[list[Block], int]:
        """Some events from this position on, and the position after them; see `SpoolReader.read`."""
        if self._reader is None:
            self._reader = SpoolReader(self.path, self.numbers)
        return self._reader.read(position)


class SpoolReader:
    """Reads the events of a record with their numbers.

    Args:
        path: of the record's folder.
        numbers: of its events.

    Attributes:
        damaged: how many events could not be read so far.
    """

    def __init__(self, path: Path, numbers: Numbers) -> None:
        self.damaged = 0
        self._lines = SegmentedLines(path / EVENTS)
        self._numbers = numbers

    def read(self, position: int) -> tuple[list[Block], int]:
        """Some events from this position on, at most about 1 MiB, and the position after them; no events if there are no more.

        Events that cannot be read are left out, and their numbers with them.
        """
        for lines in self._lines.blocks(position):
            self.damaged += lines.first - position
            position = lines.first + len(lines.lines)
            good = [
                (self._numbers.at(at), line)
                for at, line in enumerate(lines.lines, lines.first)
                if lines.checked or _is_event(line)
            ]
            self.damaged += len(lines.lines) - len(good)
            blocks = [*_blocks(good)]
            if blocks:
                return blocks, position
        return [], position


def _is_event(line: bytes) -> bool:
    try:
        decode_unchecked(line)
    except DecodeError:
        return False
    return True


def _blocks(lines: Iterable[tuple[int, bytes]]) -> Iterator[Block]:
    """Lines with their numbers as blocks, as large as a frame may be, without a jump of the numbers."""
    first, size = 0, 0
    held: list[bytes] = []
    for number, line in lines:
        follows = number == first + len(held)
        if held and not (follows and len(held) < FRAME_EVENTS and size + len(line) < FRAME_BYTES):
            yield Block(b",".join(held), len(held), first)
            held, size = [], 0
        if not held:
            first = number
        held.append(line)
        size += len(line)
    if held:
        yield Block(b",".join(held), len(held), first)


def forget(path: Path, *, keep: bool) -> None:
    """The hub has the events of the record: remove it, or keep it as a record like any other."""
    if keep:
        with suppress(OSError):
            (path / HANDOVER_FILE).unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def events_of(block: Block) -> list[StreamEvent]:
    """The events of a block."""
    return [
        decode_unchecked(bytes(raw))
        for raw in msgspec.json.decode(b"[" + block.data + b"]", type=list[msgspec.Raw])
    ]


def block_of(events: Sequence[StreamEvent]) -> Block:
    """The events as a block without numbers."""
    return Block(encode_lines(events)[:-1].replace(b"\n", b","), len(events))
