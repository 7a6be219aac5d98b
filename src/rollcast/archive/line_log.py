"""Lines that are appended to segments, whole or not at all. Used on one thread."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rollcast.archive.format import is_full, live_name
from rollcast.archive.segments import LiveFrames, seal
from rollcast.records import Trajectory

if TYPE_CHECKING:
    from rollcast.stream.waiting import Relayed  # what reads a record needs no stream

__all__ = ["AppendedFile", "LineLog"]

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class AppendedFile:
    """A file to which blocks of lines are appended. What could be written of a block only in part is cut off again.

    Args:
        path: of the file; it is opened at the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._size = 0
        self._known: tuple[int, int] = (0, 0)  # device and inode

    def append(self, data: bytes) -> None:
        """Append the data.

        Raises:
            OSError: it could not be written; nothing of it is in the file, or only a piece that is cut off before the next block.
        """
        fd = self._open()
        view = memoryview(data)
        written = 0
        try:
            while written < len(view):
                written += os.write(fd, view[written:])
        except OSError:
            self._cut(fd)
            raise
        self._size += written

    def _cut(self, fd: int) -> None:
        try:
            os.ftruncate(fd, self._size)
        except OSError:
            self.close()  # the next opening looks at what is there

    def _open(self) -> int:
        if self._fd is not None:
            return self._fd
        fd = os.open(self.path, _FLAGS, 0o600)
        try:
            status = os.fstat(fd)
            known, size = (status.st_dev, status.st_ino), status.st_size
            # What this writer left half-written goes; of what another one left, the piece of a line at its end.
            whole = self._size if known == self._known and self._size <= size else _whole_size(fd, size)
            if whole < size:
                os.ftruncate(fd, whole)
        except OSError:
            os.close(fd)
            raise
        self._fd, self._known, self._size = fd, known, whole
        return fd

    def is_gone(self) -> bool:
        """Whether the file that was written is not at its path any more: deleted, moved, or another one."""
        if self._fd is None:
            return False
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False  # the path cannot be looked at, but the file may be written to
        return (status.st_dev, status.st_ino) != self._known or status.st_size < self._size

    def close(self) -> None:
        """Let go of the file; the next write opens it again."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):
                os.close(fd)


def _whole_size(fd: int, size: int) -> int:
    """How far the file's whole lines go."""
    at = size
    while at > 0:
        begin = max(at - 65536, 0)
        os.lseek(fd, begin, os.SEEK_SET)
        end = os.read(fd, at - begin).rfind(b"\n")
        if end >= 0:
            return begin + end + 1
        at = begin
    return 0


class LineLog:
    """A folder of segments to which lines are appended.

    Attributes:
        folder: of the segments.
        position: of the next line.
    """

    def __init__(self, folder: Path, position: int = 0) -> None:
        self.folder = folder
        self.position = position
        self._first = position
        self._bytes = 0
        self._file: AppendedFile | None = None
        self._frames = LiveFrames(position)
        self._unsealed: list[LiveFrames] = []  # of live segments that are full

    def append(self, data: bytes, lines: int) -> None:
        """Append so many lines. A segment that is full is sealed, after they are written to the next one.

        Raises:
            OSError: they could not be written; no line of them is there.
        """
        if self._file is not None and is_full(self.position - self._first, self._bytes):
            self._end_segment()
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._first, self._bytes = self.position, 0
            self._frames = LiveFrames(self.position)
            self._file = AppendedFile(self.folder / live_name(self._first))
        self._file.append(data)
        self.position += lines
        self._bytes += len(data)
        self.seal_what_is_left()

    def note(self, data: bytes, about: Sequence[Relayed | Trajectory]) -> None:
        """Note the event or trajectory behind each line of the latest `append`, so that the index can be made without decoding them again."""
        self._frames.add(data, about)

    def seal_what_is_left(self) -> None:
        """Seal segments that are over. One that cannot be sealed now stays plain until the next try."""
        while self._unsealed:
            try:
                seal(self.folder, self._unsealed[0].first, self._unsealed[0])
            except FileNotFoundError:
                pass  # somebody took it away
            except OSError:
                return
            del self._unsealed[0]

    def _end_segment(self) -> None:
        if self._file is not None:
            self._file.close()
            if self.position > self._first:
                self._unsealed.append(self._frames)
            else:  # nothing came into it, and the next one has the same name
                with suppress(OSError):
                    self._file.path.unlink()
            self._file = None

    def is_gone(self) -> bool:
        """Whether the live segment was taken away."""
        return self._file is not None and self._file.is_gone()

    def begin_anew(self) -> None:
        """What was written is not there any more: go on in a new segment, at the same position."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._unsealed.clear()

    def close(self) -> None:
        """Seal what is live."""
        self._end_segment()
        self.seal_what_is_left()
