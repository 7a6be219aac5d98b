"""Lines of a folder of segments, from any position, frame by frame: one frame is in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rollcast.archive import zstd
from rollcast.archive.format import Frame, SegmentIndex
from rollcast.archive.segments import Segment, indexed, read_index, segments_in
from rollcast.errors import ArchiveError

__all__ = ["MISSING", "Block", "Damage", "SegmentedLines", "frames_in", "rebuilt_index"]

_BLOCK = 1 << 20  # bytes that are read at once of a plain segment
MISSING = "what stood there is missing"
_MAX_STRETCH = 4  # how many times a frame may hold the four bytes that begin one

WantsFrame = Callable[[Frame, SegmentIndex], bool]


class Damage(NamedTuple):
    """What could not be read.

    Attributes:
        path: of the file.
        first, last: positions; -1 if they are not known.
        why: in words.
    """

    path: Path
    first: int
    last: int
    why: str

    def __str__(self) -> str:
        where = "" if self.first < 0 else f" (positions {self.first} to {self.last})"
        return f"{self.path}{where}: {self.why}"


class Block(NamedTuple):
    """Lines that stand next to each other.

    Attributes:
        first: the position of the first one.
        lines: without their newlines.
        checked: a checksum says that they are as they were written.
        sealed: their segment is sealed.
    """

    first: int
    lines: list[bytes]
    checked: bool = False
    sealed: bool = False


class _Hint(NamedTuple):
    """Where a position stands in a plain segment."""

    segment: int
    position: int
    offset: int


class SegmentedLines:
    """The lines of one folder.

    Args:
        folder: of the segments.

    Attributes:
        damage: what could not be read so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damage: list[Damage] = []
        self._hint = _Hint(-1, 0, 0)
        self._indexes: dict[Path, SegmentIndex] = {}  # the latest two

    def blocks(self, since: int, wants: WantsFrame | None = None) -> Iterator[Block]:
        """The blocks from this position on, as far as they are there now.

        Args:
            since: a position; lines before it are left out.
            wants: whether the lines of a frame are wanted, as far as the index tells. None: all are. For what is left out, and
                for what is damaged, an empty block comes whose `first` is the position after it.
        """
        segments = segments_in(self.folder)
        if segments and segments[0].first > since:
            self.damage.append(Damage(self.folder, since, segments[0].first - 1, MISSING))
            since = segments[0].first
            yield Block(since, [])
        for number, segment in enumerate(segments):
            after = segments[number + 1].first if number + 1 < len(segments) else None
            if after is not None and after <= since:
                continue
            told = len(self.damage)
            try:
                for block in self._of_segment(segment, after, since, wants):
                    since = block.first + len(block.lines)
                    yield block
            except FileNotFoundError:
                yield from self._under_its_new_name(segment, after, since, wants)
            except OSError as error:
                last = -1 if after is None else after - 1
                self._lost(Damage(segment.path, since, last, f"it cannot be read: {error.strerror or error}"))
            if after is not None and since < after:
                if len(self.damage) == told:
                    self.damage.append(Damage(self.folder, since, after - 1, MISSING))
                since = after
                yield Block(since, [])

    def _under_its_new_name(
        self, segment: Segment, after: int | None, since: int, wants: WantsFrame | None
    ) -> Iterator[Block]:
        """A segment that was sealed since the folder was listed."""
        sealed = next((s for s in segments_in(self.folder) if s.first == segment.first), None)
        try:
            if sealed is not None:
                yield from self._of_segment(sealed, after, since, wants)
                return
        except FileNotFoundError:
            pass
        self._lost(Damage(segment.path, since, -1, "it was taken away while it was read"))

    def _lost(self, damage: Damage) -> None:
        """Tell of it once, however often it is read."""
        if damage not in self.damage:
            self.damage.append(damage)

    def _of_segment(
        self, segment: Segment, after: int | None, since: int, wants: WantsFrame | None
    ) -> Iterator[Block]:
        if segment.compressed:
            yield from self._compressed(segment, after, since, wants)
        else:
            yield from self._plain(segment, since, wants)

    # -- compressed ----------------------------------------------------------------------------------------------------

    def _compressed(
        self, segment: Segment, after: int | None, since: int, wants: WantsFrame | None
    ) -> Iterator[Block]:
        index = self._index(segment)
        if index is None:
            for first, lines in frames_in(segment.path, segment.first, after, self.damage):
                skip = max(since - first, 0)
                if skip < len(lines):
                    yield Block(first + skip, lines[skip:], checked=True, sealed=True)
            return
        with segment.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != index.size:  # it was replaced since its index was read
                del self._indexes[segment.path]
                yield from self._compressed(segment, after, since, wants)
                return
            for frame in index.frames:
                if frame.last < since:
                    continue
                if wants is not None and not wants(frame, index):
                    yield Block(frame.last + 1, [])
                    continue
                file.seek(frame.offset)
                try:
                    lines = _split(zstd.decompress(file.read(frame.size)))
                    if len(lines) != frame.last - frame.first + 1:
                        raise ArchiveError("it has another number of lines than its index says")
                except ArchiveError as error:
                    self.damage.append(Damage(segment.path, frame.first, frame.last, str(error)))
                    yield Block(frame.last + 1, [])
                    continue
                skip = max(since - frame.first, 0)
                yield Block(frame.first + skip, lines[skip:], checked=True, sealed=True)

    def _index(self, segment: Segment) -> SegmentIndex | None:
        known = self._indexes.get(segment.path)
        if known is None:
            known = read_index(segment)
            if known is None:
                return None
            self._indexes[segment.path] = known
            if len(self._indexes) > 2:
                del self._indexes[next(iter(self._indexes))]
        return known

    # -- plain ---------------------------------------------------------------------------------------------------------

    def _plain(self, segment: Segment, since: int, wants: WantsFrame | None) -> Iterator[Block]:
        index = self._index(segment) if segment.sealed else None
        if (
            index is not None and index.size != segment.path.stat().st_size
        ):  # it was replaced since its index was read
            del self._indexes[segment.path]
            index = self._index(segment)
        position, offset = segment.first, 0
        if not segment.sealed and self._hint.segment == segment.first and self._hint.position <= since:
            position, offset = self._hint.position, self._hint.offset
        elif index is not None:
            for frame in index.frames:
                if frame.first <= since:
                    position, offset = frame.first, frame.offset
        with segment.path.open("rb") as file:
            file.seek(offset)
            rest = b""
            while data := file.read(_BLOCK):
                whole, newline, rest = (rest + data).rpartition(b"\n")
                if not newline:
                    continue
                lines = whole.split(b"\n")
                skip = min(max(since - position, 0), len(lines))
                first, position = position + skip, position + len(lines)
                offset += len(whole) + 1
                self._hint = _Hint(segment.first, position, offset)
                if skip < len(lines):
                    yield Block(first, lines[skip:], sealed=segment.sealed)
            if rest and segment.sealed:
                self.damage.append(Damage(segment.path, position, position, "its last line is torn"))


def _split(data: bytes) -> list[bytes]:
    return data.removesuffix(b"\n").split(b"\n") if data else []


def frames_in(
    path: Path, first: int, after: int | None, damage: list[Damage]
) -> Iterator[tuple[int, list[bytes]]]:
    """The frames of a compressed segment without its index: the position of each and its lines.

    What stands after a damaged frame is counted back from the next segment, if there is one; else its positions are too low by
    what the damaged frames held.
    """
    found: list[tuple[int, int] | None] = []  # how many lines, and where; None for what is damaged
    data = path.read_bytes()
    for begin, end in _frame_bounds(data):
        try:
            found.append((len(_split(zstd.decompress(data[begin:end]))), begin << 32 | end))
        except ArchiveError:
            if not found or found[-1] is not None:
                found.append(None)
    total = sum(part[0] for part in found if part is not None)
    last_hole = max((i for i, part in enumerate(found) if part is None), default=-1)
    position = first
    for number, part in enumerate(found):
        if part is None:
            tail = sum(p[0] for p in found[number:] if p is not None)
            hole = (after - first - total) if after is not None and number == last_hole else 0
            damage.append(Damage(path, position, position + max(hole, 1) - 1, "frames are damaged"))
            position = after - tail if after is not None and number == last_hole else position
            continue
        lines, where = part
        yield position, _split(zstd.decompress(data[where >> 32 : where & 0xFFFFFFFF]))
        position += lines


def _frame_bounds(data: bytes) -> Iterator[tuple[int, int]]:
    """Where frames begin and end. A piece that is no whole frame is given too, as it stands between two beginnings."""
    starts = []
    at = data.find(zstd.MAGIC)
    while at >= 0:
        starts.append(at)
        at = data.find(zstd.MAGIC, at + 1)
    if data and (not starts or starts[0] > 0):
        yield 0, starts[0] if starts else len(data)
    bounds = [*starts, len(data)]
    number = 0
    while number < len(starts):
        # The bytes that begin a frame may stand inside of one, too.
        ends = bounds[number + 1 : number + 1 + _MAX_STRETCH]
        stretch = next((i for i, end in enumerate(ends, 1) if _is_frame(data[bounds[number] : end])), 1)
        yield bounds[number], bounds[number + stretch]
        number += stretch


def _is_frame(data: bytes) -> bool:
    try:
        zstd.decompress(data)
    except ArchiveError:
        return False
    return True


def rebuilt_index(segment: Segment) -> SegmentIndex | None:
    """The index of a compressed segment, made anew; None if a frame of it is damaged, since an index tells of whole ones."""
    data = segment.path.read_bytes()
    frames = []
    try:
        for begin, end in _frame_bounds(data):
            lines = _split(zstd.decompress(data[begin:end]))
            frames.append(([line + b"\n" for line in lines], end - begin))
    except ArchiveError:
        return None
    return indexed(segment.first, frames)
