"""A file to which whole lines are appended, whatever happens to the disk."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from weakref import WeakValueDictionary

from rollcast.errors import InputError
from rollcast.lifetime import call_after_fork

__all__ = ["LineFile", "cannot_open", "check_writable"]

_SHOWN_CHARS = 120  # of a path in a message
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)

_locks: WeakValueDictionary[str, _PathLock] = WeakValueDictionary()
_locks_guard = threading.Lock()


class _PathLock:
    """Held while this process writes to one path, so that two writers can tell their own bytes from the other's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def _lock_of(path: Path) -> _PathLock:
    key = os.path.realpath(path)
    with _locks_guard:
        lock = _locks.get(key)
        if lock is None:
            lock = _locks[key] = _PathLock()
        return lock


def check_writable(path: Path) -> None:
    """Refuse a path that cannot be a file to write to, as far as can be seen without touching it.

    Raises:
        InputError: it is a folder, stands below a file, is no name that the system takes, or there is no permission.
    """
    try:
        _check_writable(path)
    except InputError:  # a sentence already
        raise
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links, a NUL
        raise cannot_open(path, error) from None


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; give the path of a file in it")
    there = path
    while not _exists(there) and there.parent != there:
        there = there.parent
    if there != path and not there.is_dir():
        raise InputError(f"{str(path)!r} cannot be made: {str(there)!r} is not a folder; give another path")
    if not os.access(there, os.W_OK):
        raise InputError(f"{str(there)!r} may not be written to by this user; give another path")


def _exists(path: Path) -> bool:
    """Raises what `os.stat` does, but for a file that does not exist."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def cannot_open(path: Path, error: OSError | ValueError) -> InputError:
    """The sentence about a file that cannot be opened; of a long path it has the ends."""
    name = str(path)
    if len(name) > _SHOWN_CHARS:
        half = _SHOWN_CHARS // 2
        name = f"{name[:half]}…{name[-half:]}"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(f"{name!r} cannot be opened to write to it: {reason}; give another path")


class LineFile:
    """Opened at the first write, its folders made; opened anew after `close` and in a forked child.

    Several in one process may write to one path: lines stay whole. Each write is one append, which local file systems
    keep apart from those of other processes too.

    Args:
        path: of the file.
        append: False empties the file at the first opening.
    """

    def __init__(self, path: Path, *, append: bool) -> None:
        self.path = path
        self.name = str(path)
        self._truncate = not append
        self._lock = _lock_of(path)
        self._fd: int | None = None
        self._pid = 0
        self._regular = False
        self._torn = False  # the file ends in a piece of a line that could not be taken back
        self._known: tuple[int, int] | None = None  # device and inode of the file that was written last
        self._size = 0  # that it has at least

    def write(self, data: bytes) -> tuple[int, OSError | None]:
        """Append lines, each ended by a newline.

        Returns:
            How many of the lines are in the file, whole; and what kept the others out, or None.
        """
        try:
            fd = self._open()
        except OSError as error:
            return 0, error
        with self._lock.lock:
            return self._append(fd, data)

    def open(self) -> None:
        """Open the file now, its folders made, and not only at the first write.

        Raises:
            OSError: it cannot be opened.
        """
        self._open()

    def what_became_of_it(self) -> str | None:
        """Look whether what was written is still in the file. If not, say why; the next write then begins a file anew.

        A file that was cut short and has grown beyond its former size since, by another writer's hand, is not noticed.
        """
        if self._known is None or not self._regular:
            return None
        try:
            status = self.path.stat()
        except OSError as error:
            if error.errno not in _GONE:  # the path cannot be looked at, but the file may be written to
                return None
            status = None
        if status is None or (status.st_dev, status.st_ino) != self._known:
            became = "deleted" if self._is_deleted() else "moved or deleted"
        elif status.st_size < self._size:
            became = "emptied or cut short"
        else:
            return None
        self.close()
        self._known = None
        return became

    def _is_deleted(self) -> bool:
        """Whether the open file has no name any more, as far as the system says so."""
        if self._fd is None or self._pid != os.getpid():
            return False
        try:
            return os.fstat(self._fd).st_nlink == 0
        except OSError:
            return False

    def close(self) -> None:
        """Close the file. It is opened again by the next write."""
        fd, self._fd = self._fd, None
        if fd is not None and self._pid == os.getpid():
            os.close(fd)

    def _open(self) -> int:
        if self._fd is not None and self._pid == os.getpid():
            return self._fd
        self._lock = _lock_of(
            self.path
        )  # anew in a forked child: a thread that is not there may hold the parent's
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._regular = not self.path.exists() or self.path.is_file()
        # Reading back the last byte needs a file; a pipe or a terminal is for writing alone.
        access = os.O_RDWR if self._regular else os.O_WRONLY
        flags = access | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        # A named pipe waits for its first reader, as in a shell; if that one has left, perhaps nobody comes any more.
        again = self._pid != 0 and not self._regular
        flags |= getattr(os, "O_NONBLOCK", 0) if again else 0
        fd = os.open(self.path, flags | (os.O_TRUNC if self._truncate else 0), 0o666)
        try:
            if again:
                os.set_blocking(fd, True)
            status = os.fstat(fd)
            self._regular = stat.S_ISREG(status.st_mode)
            self._known, self._size = (status.st_dev, status.st_ino), status.st_size
            self._torn = self._regular and _ends_torn(fd)
        except OSError:
            os.close(fd)
            raise
        self._fd, self._pid, self._truncate = fd, os.getpid(), False
        return fd

    def _append(self, fd: int, data: bytes) -> tuple[int, OSError | None]:
        mend = b"\n" if self._torn else b""
        payload = memoryview(mend + data)
        written = 0
        try:
            while written < len(payload):
                written += os.write(fd, payload[written:])
        except OSError as error:
            self._size += written
            return self._take_back(fd, bytes(payload[:written]), len(mend)), error
        self._torn = False
        self._size += written
        return data.count(b"\n"), None

    def _take_back(self, fd: int, written: bytes, mend: int) -> int:
        """Cut off the piece of a line that was written last. Returns how many lines are whole."""
        torn = len(written) - (written.rfind(b"\n") + 1)
        if torn or not written:
            self._torn = self._torn if not written else not self._cut(fd, torn)
        else:
            self._torn = False
        return max(written.count(b"\n") - mend, 0)

    def _cut(self, fd: int, torn: int) -> bool:
        """Whether the last `torn` bytes of the file could be taken off it."""
        if not self._regular:
            return False
        try:
            os.ftruncate(fd, os.fstat(fd).st_size - torn)
        except OSError:
            return False
        self._size -= torn
        return True


def _after_fork() -> None:
    global _locks_guard
    _locks_guard = threading.Lock()
    _locks.clear()


call_after_fork(_after_fork)


def _ends_torn(fd: int) -> bool:
    """Whether a writer that died left its last line without an end."""
    if os.fstat(fd).st_size == 0:
        return False
    os.lseek(fd, -1, os.SEEK_END)
    return os.read(fd, 1) != b"\n"
