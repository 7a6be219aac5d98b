"""A file to which only whole lines are appended, even if the disk fails."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

from rollcast.errors import InputError
from rollcast.lifetime import call_after_fork

if sys.platform != "win32":
    import fcntl

__all__ = ["LineFile", "cannot_open", "check_writable"]

_SHOWN_CHARS = 120  # how many characters of a path a message shows
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_MENDING_S = 0.2  # how long to wait for a process that ends another one's line, which takes it no time unless it is stopped

_locks: WeakValueDictionary[str, _PathLock] = WeakValueDictionary()
_locks_guard = threading.Lock()


class _PathLock:
    """Held while this process writes to one path, so that two writers do not mix up their bytes."""

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
    """Refuse a path that cannot be written to, as far as this can be seen without touching it.

    Raises:
        InputError: it is a folder, is inside a file, has a name that the system does not allow, or there is no permission.
    """
    try:
        _check_writable(path)
    except InputError:  # it already explains the problem
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
    """Whether the file exists. Raises other errors of `os.stat`."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def cannot_open(path: Path, error: OSError | ValueError) -> InputError:
    """The error for a file that cannot be opened; it shows only the ends of a long path."""
    name = str(path)
    if len(name) > _SHOWN_CHARS:
        half = _SHOWN_CHARS // 2
        name = f"{name[:half]}…{name[-half:]}"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(f"{name!r} cannot be opened to write to it: {reason}; give another path")


class LineFile:
    """A file that is opened, with its folders, at the first write, and again after `close` and in a forked child.

    Several of these in one process may write to one path: lines stay whole. Each write is one append, so local file
    systems keep it apart from the writes of other processes too. A read is not kept apart: it may find a line of another process
    half written. So a writer holds a shared lock, and only who has the lock alone can tell that a line was left by one that died.

    Args:
        path: the file's path.
        append: False empties the file when it is first opened.
    """

    def __init__(self, path: Path, *, append: bool) -> None:
        self.path = path
        self.name = str(path)
        self._truncate = not append
        self._lock = _lock_of(path)
        self._fd: int | None = None
        self._pid = 0
        self._regular = False
        self._torn = False  # the file ends in a piece of a line that could not be removed
        self._known: tuple[int, int] | None = None  # device and inode of the file that was written last
        self._size = 0  # the file's minimum size

    def write(self, data: bytes, lines: int) -> tuple[int, OSError | None]:
        """Append this many lines, each of which ends with a newline.

        Returns:
            How many whole lines are in the file, and the error that kept the others out, or None.
        """
        try:
            fd = self._open()
        except OSError as error:
            return 0, error
        with self._lock.lock:
            return self._append(fd, data, lines)

    def open(self) -> None:
        """Make the folders and open the file now instead of at the first write.

        Raises:
            OSError: it cannot be opened.
        """
        self._open()

    def what_became_of_it(self) -> str | None:
        """Check whether what was written is still in the file. If not, return why; the next write then begins a new file.

        This does not notice a file that was cut short and that another writer has since made longer than before.
        """
        if self._known is None or not self._regular:
            return None
        try:
            status = self.path.stat()
        except OSError as error:
            if error.errno not in _GONE:  # the path cannot be checked, but the file can perhaps be written
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
        """Whether the open file has no name any more, as far as the system shows that."""
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
        )  # a new one in a forked child, since a thread that is not there may hold the parent's
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._regular = not self.path.exists() or self.path.is_file()
        # Only a file's last byte can be read back; a pipe or a terminal is opened for writing only.
        access = os.O_RDWR if self._regular else os.O_WRONLY
        flags = access | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        # A named pipe waits for its first reader, as in a shell; after that one has left there may never be another.
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

    def _append(self, fd: int, data: bytes, lines: int) -> tuple[int, OSError | None]:
        if not self._regular:
            return self._append_locked(fd, data, lines)
        with _locked(fd, alone=self._torn) as alone:
            if self._torn:
                # Another writer may have been in the middle of a line when the file was read, and have ended the line since.
                try:
                    self._torn = alone and _ends_torn(fd)
                except OSError as error:
                    return 0, error
            return self._append_locked(fd, data, lines)

    def _append_locked(self, fd: int, data: bytes, lines: int) -> tuple[int, OSError | None]:
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
        return lines, None

    def _take_back(self, fd: int, written: bytes, mend: int) -> int:
        """Remove the torn line at the end of what was written. Returns how many lines are whole."""
        torn = len(written) - (written.rfind(b"\n") + 1)
        if torn or not written:
            self._torn = self._torn if not written else not self._cut(fd, torn)
        else:
            self._torn = False
        return max(written.count(b"\n") - mend, 0)

    def _cut(self, fd: int, torn: int) -> bool:
        """Cut the last `torn` bytes off the file. Returns whether that worked."""
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


@contextmanager
def _locked(fd: int, *, alone: bool) -> Iterator[bool]:
    """Hold the file's lock: with other writers, or alone if that is asked for and nobody else has it.

    It waits only briefly, since a process that holds the lock may be stopped, and then goes on without it. Gives whether no other
    process is known to be writing: where the system has no locks, that is always so.
    """
    first = _try_lock(fd, alone=alone)
    held = first
    give_up = time.monotonic() + _MENDING_S
    while held is False:
        held = _try_lock(fd, alone=False)
        if held is False:
            if time.monotonic() >= give_up:
                break
            time.sleep(0.001)
    try:
        yield first is not False
    finally:
        if held and sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)


def _try_lock(fd: int, *, alone: bool) -> bool | None:
    """Whether the file's lock could be had at once; None if it has none."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # such as ENOLCK on some network file systems
        return None
    return True


def _ends_torn(fd: int) -> bool:
    """Whether the file's last line has no end, as a writer that died leaves it."""
    if os.fstat(fd).st_size == 0:
        return False
    os.lseek(fd, -1, os.SEEK_END)
    return os.read(fd, 1) != b"\n"
