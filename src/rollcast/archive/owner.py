"""Who writes a record: the lock that one writer holds, and whether a writer still lives."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from rollcast.archive.format import WriterFacts
from rollcast.errors import ArchiveError

if sys.platform != "win32":
    import fcntl

__all__ = ["FolderLock", "is_alive", "this_process"]

_TRIES = 5  # somebody may hold the lock for a moment, to look whether it is free


def this_process() -> WriterFacts:
    """This process, as a writer."""
    return WriterFacts(
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid=os.getpid(),
        started=_started(os.getpid()) or 0,
        heartbeat=time.time(),
    )


def is_alive(writer: WriterFacts) -> bool | None:
    """Whether the process lives; None if it ran on another host, or before this one was booted anew and that cannot be told."""
    if writer.host != socket.gethostname():
        return None
    boot_id = _boot_id()
    if writer.boot_id != boot_id:
        return False
    try:
        os.kill(writer.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # it is another user's
    started = _started(writer.pid)
    return started is None or not writer.started or started == writer.started


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Clock ticks since the boot at which a process began; None if the system does not tell, or it is a zombie."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return -1 if after_name[0] in (b"Z", b"X") else int(after_name[19])
    except (OSError, ValueError, IndexError):
        return None


class FolderLock:
    """The one writer of a folder holds it; the system lets go of it when that process dies.

    Args:
        path: of the lock file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def take(self) -> None:
        """Take the lock.

        Raises:
            ArchiveError: another writer holds it.
            OSError: the file cannot be opened.
        """
        if self._fd is not None:
            return
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        for attempt in range(_TRIES):
            if _locked(fd):
                self._fd = fd
                return
            time.sleep(0.01 * attempt)
        os.close(fd)
        raise ArchiveError(
            f"{self.path.parent} is being written by another process; one writer a folder: give another path"
        )

    def is_gone(self) -> bool:
        """Whether the file that is held is not at its path any more, so that another writer could come."""
        if self._fd is None:
            return False
        try:
            return not os.path.samestat(os.fstat(self._fd), self.path.stat())
        except OSError:
            return True

    def release(self) -> None:
        """Let go of it."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):
                os.close(fd)


def _locked(fd: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
