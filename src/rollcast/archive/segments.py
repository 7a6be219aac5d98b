"""Segments on the disk: which there are, and how one is sealed and indexed. Used by the writer and by recovery."""

from __future__ import annotations

import os
import re
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import msgspec

from rollcast.archive import zstd
from rollcast.archive.format import (
    FRAME_BYTES,
    FRAME_LINES,
    Frame,
    Place,
    SegmentIndex,
    check_format,
    first_of,
    frames_of,
    index_name,
    live_name,
    sealed_name,
)
from rollcast.records import StreamEventType, Trajectory
from rollcast.records.jsonable import JSON_ERRORS

if TYPE_CHECKING:
    from rollcast.stream.waiting import Relayed  # what reads a record needs no stream

__all__ = [
    "LiveFrames",
    "Segment",
    "index_bytes",
    "indexed",
    "plain_index",
    "read_index",
    "replace_file",
    "seal",
    "segments_in",
    "sync_folder",
    "whole_lines",
]


_CHECKSUM = b',"crc32":"%08x"}'
_ENDS_IN_CHECKSUM = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\s*\Z')


class Segment(msgspec.Struct, frozen=True):
    """One segment.

    Attributes:
        first: the position of its first line.
        path: of its lines, plain or compressed.
        sealed: nothing is added to it any more: it is compressed, or has an index.
    """

    first: int
    path: Path
    sealed: bool

    @property
    def compressed(self) -> bool:
        """Whether it is made of zstd frames."""
        return self.path.name.endswith(".zst")

    @property
    def index_path(self) -> Path:
        """Of its index, which may be missing."""
        return self.path.with_name(index_name(self.first))


def segments_in(folder: Path) -> list[Segment]:
    """The segments of a folder, in order; none if the folder is not there.

    Of one that is there twice, since a writer died while it was sealing, the compressed one counts: it was whole before it got
    its name.
    """
    kinds: dict[int, set[str]] = {}
    try:
        names = [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in names:
        found = first_of(name)
        if found is not None:
            kinds.setdefault(found[0], set()).add(found[1])
    segments = []
    for first in sorted(kinds):
        if "jsonl.zst" in kinds[first]:
            segments.append(Segment(first, folder / sealed_name(first), sealed=True))
        elif "jsonl" in kinds[first]:
            segments.append(Segment(first, folder / live_name(first), sealed="idx.json" in kinds[first]))
    return segments


class _Line(msgspec.Struct):
    """What an index says of a line; the rest of it is not looked at."""

    event_type: str = ""
    run_id: str = ""
    chain_id: str = ""
    timestamp: float | None = None


_line_decoder = msgspec.json.Decoder(_Line)


_Used = TypeVar("_Used")


class LiveFrames:
    """The frames into which the lines of a live segment will be sealed, noted as the lines are appended, so that none is decoded again.

    Attributes:
        sizes: bytes of the lines of each frame, before compression.
        complete: whether the index of what was noted equals the one that decoding the lines would give.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.frames: list[Frame] = []
        self.sizes: list[int] = []
        self.complete = True
        self._places: dict[tuple[str, str], int] = {}
        self._in_frame: dict[int, None] = {}
        self._lines = 0

    def add(self, data: bytes, about: Sequence[Relayed | Trajectory]) -> None:
        """Note that these lines were appended, one for each event or trajectory."""
        if not self.complete:
            return
        lengths = [len(line) + 1 for line in data.split(b"\n")]
        del lengths[-1]  # nothing follows the last newline
        if len(about) != len(lengths):
            self.complete = False
            return
        begin, count = 0, len(lengths)
        while begin < count:
            if not self.frames or self._lines >= FRAME_LINES or self.sizes[-1] + lengths[begin] > FRAME_BYTES:
                self._begin_frame()  # as in `frames_of`
            end = min(begin + FRAME_LINES - self._lines, count)
            size = sum(lengths[begin:end])
            if self.sizes[-1] + size > FRAME_BYTES:
                room = FRAME_BYTES - self.sizes[-1]
                fit = bisect_right([*accumulate(lengths[begin:end])], room)
                end = begin + max(fit, 1)  # a line that is too long for any frame has one of its own
                size = sum(lengths[begin:end])
            self._lines += end - begin
            self.sizes[-1] += size
            self.frames[-1].last += end - begin
            self._note(about[begin:end])
            begin = end

    def _note(self, about: Sequence[Relayed | Trajectory]) -> None:
        """Note what has come into the latest frame."""
        places, in_frame = self._places, self._in_frame
        for key in dict.fromkeys([(each.run_id, each.chain_id) for each in about]):
            number = places.get(key)
            if number is None:
                number = places[key] = len(places)
                if not all(part.__class__ is str and part.isascii() for part in key):
                    self.complete = False  # made by hand: only decoding shows what its JSON says
            in_frame[number] = None
        if about[0].__class__ is not Trajectory:
            self._note_events(cast("Sequence[Relayed]", about))

    def _note_events(self, events: Sequence[Relayed]) -> None:
        frame = self.frames[-1]
        kinds, times = Counter([event.event_type for event in events]), [event.timestamp for event in events]
        for kind, count in kinds.items():
            frame.types[kind] = frame.types.get(kind, 0) + count
            if kind.__class__ is not StreamEventType:
                self.complete = False
        if {*map(type, times)} != {float} or not isfinite(sum(times)):
            self.complete = False
            return
        first, last = min(times), max(times)
        frame.t0 = first if frame.t0 is None else min(frame.t0, first)
        frame.t1 = last if frame.t1 is None else max(frame.t1, last)

    def _begin_frame(self) -> None:
        position = self.first
        if self.frames:
            self._note_places()
            position = self.frames[-1].last + 1
        self.frames.append(Frame(offset=0, size=0, first=position, last=position - 1))
        self.sizes.append(0)
        self._lines, self._in_frame = 0, {}

    def _note_places(self) -> None:
        self.frames[-1].places = list(self._in_frame)

    def index(self, sizes: list[int], compression: Literal["zstd", "none"]) -> SegmentIndex:
        """The index of the segment, given the size of each frame in its file."""
        self._note_places()
        offset = 0
        for frame, size in zip(self.frames, sizes, strict=True):
            frame.offset, frame.size = offset, size
            frame.types = {str(kind): count for kind, count in frame.types.items()}
            offset += size
        return SegmentIndex(
            first=self.first,
            last=self.frames[-1].last,
            compression=compression,
            size=offset,
            places=[Place(*key) for key in self._places],
            frames=self.frames,
        )

    def each_in(self, path: Path, use: Callable[[bytes], _Used]) -> list[_Used] | None:
        """What `use` returns for the lines of each frame, with one frame in memory at a time; None if the file's lines are not those that were noted."""
        used: list[_Used] = []
        if not (self.complete and self.frames):
            return None
        with path.open("rb") as file:
            for size, frame in zip(self.sizes, self.frames, strict=True):
                lines = file.read(size)
                if len(lines) != size or lines.count(b"\n") != frame.last - frame.first + 1:
                    return None
                used.append(use(lines))
            return None if file.read(1) else used


class _IndexBuilder:
    """The frames of one segment, in order, as its index describes them."""

    def __init__(self, first: int) -> None:
        self.first = self.next = first
        self.offset = 0
        self.frames: list[Frame] = []
        self._places: dict[Place, int] = {}

    def add(self, lines: list[bytes], size: int) -> None:
        """The next frame, of these lines and so many bytes in the file."""
        frame = Frame(offset=self.offset, size=size, first=self.next, last=self.next + len(lines) - 1)
        places: dict[int, None] = {}
        for line in lines:
            try:
                about = _line_decoder.decode(line)
            except JSON_ERRORS:
                continue  # a damaged line keeps its position, so that the others keep theirs
            if about.event_type:
                frame.types[about.event_type] = frame.types.get(about.event_type, 0) + 1
            place = Place(about.run_id, about.chain_id)
            places[self._places.setdefault(place, len(self._places))] = None
            if (at := about.timestamp) is not None:
                frame.t0 = at if frame.t0 is None else min(frame.t0, at)
                frame.t1 = at if frame.t1 is None else max(frame.t1, at)
        frame.places = list(places)
        self.frames.append(frame)
        self.offset += size
        self.next += len(lines)

    def index(self, compression: Literal["zstd", "none"]) -> SegmentIndex:
        """The index of what was added."""
        return SegmentIndex(
            first=self.first,
            last=self.next - 1,
            compression=compression,
            size=self.offset,
            places=list(self._places),
            frames=self.frames,
        )


def plain_index(first: int, lines: Iterable[bytes]) -> SegmentIndex:
    """The index of a segment that stays plain."""
    builder = _IndexBuilder(first)
    for frame in frames_of(lines):
        builder.add(frame, sum(map(len, frame)))
    return builder.index("none")


def indexed(first: int, frames: Iterable[tuple[list[bytes], int]]) -> SegmentIndex:
    """The index of a compressed segment whose frames have these lines and so many bytes."""
    builder = _IndexBuilder(first)
    for lines, size in frames:
        builder.add(lines, size)
    return builder.index("zstd")


def read_index(segment: Segment) -> SegmentIndex | None:
    """The index beside a segment; None if there is none that belongs to it.

    Raises:
        ArchiveError: a later version wrote it.
    """
    try:
        data = segment.index_path.read_bytes()
        size = segment.path.stat().st_size
    except OSError:
        return None
    if not _is_as_written(data):
        return None
    try:
        index = msgspec.json.decode(data, type=SegmentIndex)
        check_format(index.format, str(segment.index_path))
    except JSON_ERRORS:
        return None
    belongs = index.first == segment.first and index.size == size
    return index if belongs and _is_whole(index) else None


def index_bytes(index: SegmentIndex) -> bytes:
    """What stands in an index's file: JSON whose last field is a checksum of what comes before it."""
    data = msgspec.json.encode(index)[:-1]
    return data + _CHECKSUM % zlib.crc32(data)


def _is_as_written(data: bytes) -> bool:
    """Whether the checksum is right, if there is one: a version before it wrote none."""
    found = _ENDS_IN_CHECKSUM.search(data)
    return found is None or zlib.crc32(data[: found.start()]) == int(found[1], 16)


def _is_whole(index: SegmentIndex) -> bool:
    """Whether the frames stand one behind the other, from the first position to the last."""
    position, offset = index.first, 0
    for frame in index.frames:
        if frame.first != position or frame.offset != offset or frame.last < frame.first:
            return False
        position, offset = frame.last + 1, offset + frame.size
    return position == index.last + 1 and offset == index.size


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a plain file that end with a newline, one in memory at a time."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def seal(folder: Path, first: int, noted: LiveFrames | None = None) -> None:
    """Make the plain segment a sealed one: compress it if there is a zstd library, and write its index.

    Whenever the process dies, either the plain segment or the sealed one is there, whole. A torn last line is left out.

    Args:
        folder: of the segment.
        first: its first position.
        noted: its frames, if they were noted as they were written; otherwise its lines are decoded.

    Raises:
        OSError: a file cannot be written; the plain segment is as it was.
    """
    plain = folder / live_name(first)
    if zstd.available():
        beside = folder / (sealed_name(first) + ".tmp")
        try:
            with beside.open("wb") as file:
                frames = None if noted is None else noted.each_in(plain, zstd.compress)
                if noted is None or frames is None:
                    builder = _IndexBuilder(first)
                    for lines in frames_of(whole_lines(plain)):
                        frame = zstd.compress(b"".join(lines))
                        file.write(frame)
                        builder.add(lines, len(frame))
                    index = builder.index("zstd")
                else:
                    file.writelines(frames)
                    index = noted.index([*map(len, frames)], "zstd")
                file.flush()
                os.fsync(file.fileno())
            replace_file(folder / index_name(first), index_bytes(index), sync=True)
            beside.replace(folder / sealed_name(first))
        except OSError:
            with suppress(OSError):
                beside.unlink()
            raise
        plain.unlink()
    else:
        sizes = None if noted is None else noted.each_in(plain, len)
        if noted is None or sizes is None:
            index = plain_index(first, whole_lines(plain))
        else:
            index = noted.index(sizes, "none")
        replace_file(folder / index_name(first), index_bytes(index), sync=True)
    sync_folder(folder)


def replace_file(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write the file anew, so that whoever reads it finds the old or the new one, whole.

    Args:
        path: of the file.
        data: its new content.
        sync: wait until the disk has it.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Have the disk keep the folder's names, on systems that can be asked for that."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
