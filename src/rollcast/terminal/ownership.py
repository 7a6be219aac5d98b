"""One process at a time draws on a terminal: the first that prints there. Others print whole lines, as into a pipe.

The system tells by a lock on the terminal's device, which ends with the process that holds it. If it cannot be had, as without
`fcntl`, nobody can tell, and every process draws.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TextIO

__all__ = ["owns_terminal"]

_locks: dict[str, int] = {}  # by device, the descriptor that holds the lock of this process


def owns_terminal(stream: TextIO) -> bool:
    """Whether no other process draws on the stream's terminal; from now on this one does."""
    try:
        import fcntl  # noqa: PLC0415  (not on Windows)

        device = os.ttyname(stream.fileno())
    except (
        ImportError,
        OSError,
        ValueError,
        AttributeError,
    ):  # a terminal in memory, or none that has a name
        return True
    if device in _locks:
        return True
    fd = -1
    try:
        fd = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    except OSError:
        with suppress(OSError):
            os.close(fd)
        return True
    _locks[device] = fd
    return True
