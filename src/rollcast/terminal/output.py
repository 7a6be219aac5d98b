r"""One writer for each output stream, however many observers and threads print to it.

All printing is done inside `with output:`; what was put in is written at once at the end, so lines are never mixed.
A status of some rows may be at the bottom. The cursor stays *above* it, where the text continues:

    ...the last whole line
    chain_0 │ an open line▁                      <- the cursor
    ⠹ 1 running · 0/1 done · 212 tokens/s        <- the status

so erasing it is "erase all below the cursor" (ED), which still works after the window was resized and does not touch what
other code printed meanwhile. Sequences: ECMA-48 ED, CUU, CUD; VT100 IND, DECSC, DECRC.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO
from weakref import WeakValueDictionary

from rollcast.lifetime import call_after_fork
from rollcast.terminal.shown import Board

__all__ = ["SharedOutput"]

_ERASE_BELOW = "\x1b[J"
_INDEX, _UP, _SAVE, _DOWN, _RESTORE = "\x1bD", "\x1b[{}A", "\x1b7", "\r\x1b[1B", "\x1b8"
_REDRAW_S = 0.05
_BLOCKED_FOR_S = 1.0


class SharedOutput:
    """An output that several observers print to. Get it from `SharedOutput.of`; use it as a context manager.

    Attributes:
        stream: the stream.
        dead: whether nothing can be written any more (a closed pipe, a closed file, an error); everything put in is dropped.
        unread: whether it is dead because the pipe has no reader any more.
        failure: the error that made it dead, if it is another one; the code that reports it sets this to None.
        lost_to: the same error, which stays.
        members: the consoles that print here.
        shown: the chains and runs that they show; `counted`: those of consoles with a status.
        line_owner: what left the line under the cursor open, or None at the start of a line.
        alone: whether only one chain is visible, as far as is known.
        several_runs: whether chains of two runs or more are visible.
        label_cells: the width of the widest chain id so far.
        status: gives the painted rows of the status, each narrower than the terminal; an empty list for no status.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.dead = False
        self.unread = False
        self.failure: OSError | None = None
        self.lost_to: OSError | None = None
        self.members: list[Any] = []
        self.shown = Board()
        self.counted = Board()
        self.line_owner: object | None = None
        self.status: Callable[[], list[str]] | None = None
        self.alone = True
        self.several_runs = False
        self.label_cells = 0
        self._lock = threading.RLock()
        self._texts: list[str] = []
        self._drawn: list[str] = []
        self._drawn_at = float("-inf")

    @classmethod
    def of(cls, stream: TextIO) -> SharedOutput:
        """The output of this stream. Streams to the same terminal, pipe or file share one output."""
        key = _destination(stream)
        with _registry_lock:
            output = _registry.get(key)
            # The next file may have got the inode number of one that was closed and deleted.
            if output is None or output.dead or getattr(output.stream, "closed", False):
                output = _registry[key] = cls(stream)
            return output

    def __enter__(self) -> SharedOutput:
        self._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            self._commit()
        finally:
            self._lock.release()

    def put(self, text: str, owner: object | None = None) -> None:
        """Add text, after ending another owner's open line. Use it only inside `with`.

        Args:
            text: whole lines; or, with an `owner`, a piece of the owner's line, which stays open.
            owner: the owner of the line.
        """
        if self.line_owner is not None and self.line_owner is not owner:
            self._texts.append("\n")
        self._texts.append(text)
        self.line_owner = owner

    def end_line(self) -> None:
        """End the open line, if there is one."""
        if self.line_owner is not None:
            self.put("")

    def redraw(self) -> None:
        """Draw the status at the end of this `with`, even if it was drawn a moment ago."""
        self._drawn_at = float("-inf")

    def clear_status(self) -> None:
        """Remove the status from the screen."""
        with self:
            self.status = None
            self.redraw()

    def _commit(self) -> None:
        body = "".join(self._texts)
        self._texts.clear()
        if self.dead:
            return
        now = time.monotonic()
        if not body and now - self._drawn_at < _REDRAW_S:
            return  # a console looks again within a tenth of a second
        self._drawn_at = now
        rows = self.status() if self.status is not None else []
        if not body and rows == self._drawn:
            return
        erase = _ERASE_BELOW if self._drawn else ""
        self._drawn = rows
        self._write(erase + body + _below(rows))

    def _write(self, text: str) -> None:
        try:
            write = self.stream.write if _waits(self.stream) else self._write_in_pieces
            try:
                write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding
                write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._flush()
        except BrokenPipeError:
            self.dead = self.unread = True
            _silence(self.stream)
        except ValueError:
            self.dead = True  # "I/O operation on closed file"
        except OSError as error:
            self.dead = True
            self.failure = self.lost_to = error
            _silence(self.stream)

    def _write_in_pieces(self, text: str) -> None:
        """Write to a non-blocking stream, as some parents leave a terminal or a pipe; each piece may take a second.

        Python's own stream would drop what it cannot write at once, silently if it is unbuffered.
        """
        self._flush()
        rest = memoryview(text.encode(self.stream.encoding, self.stream.errors or "strict"))
        until = time.monotonic() + _BLOCKED_FOR_S
        while rest:
            try:
                rest = rest[os.write(self.stream.fileno(), rest) :]
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.01)
            else:
                until = time.monotonic() + _BLOCKED_FOR_S

    def _flush(self) -> None:
        """Flush; a stream that is non-blocking gets a second to take it."""
        until = time.monotonic() + _BLOCKED_FOR_S
        while True:
            try:
                self.stream.flush()
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.01)
            else:
                return


def _waits(stream: TextIO) -> bool:
    """Whether a write to the stream waits until all is written."""
    if sys.platform == "win32":
        return True
    try:
        return os.get_blocking(stream.fileno())
    except (OSError, ValueError, AttributeError):  # not a file
        return True


def _below(rows: list[str]) -> str:
    """Draw rows below the cursor: make room, go down row by row, and restore the cursor's position."""
    if not rows:
        return ""
    room = _INDEX * len(rows) + _UP.format(len(rows))
    return room + _SAVE + "".join([_DOWN + row for row in rows]) + _RESTORE


_registry: WeakValueDictionary[tuple[object, ...], SharedOutput] = WeakValueDictionary()
_registry_lock = threading.Lock()


def _destination(stream: TextIO) -> tuple[object, ...]:
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):  # not a file: io.StringIO, a notebook, a test's capture
        return ("object", id(stream))  # the output keeps the stream alive, so the id is not used again
    if status.st_ino == 0:  # Windows gives pipes and consoles none
        return ("descriptor", stream.fileno())
    return ("file", status.st_dev, status.st_ino, status.st_rdev)


def _silence(stream: TextIO) -> None:
    """Redirect a standard stream to nowhere, so that the interpreter's last flush does not raise at exit."""
    if stream not in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        return  # without a descriptor nothing is flushed to it at exit either


def _leave_nothing_behind() -> None:
    """At exit, remove each status and end each open line, unless a thread that no longer runs holds the lock."""
    for output in list(_registry.values()):
        if output._lock.acquire(timeout=0.5):  # noqa: SLF001
            try:
                output.clear_status()
                with output:
                    output.end_line()
            finally:
                output._lock.release()  # noqa: SLF001


def _after_fork() -> None:
    """Reset in a forked child, which has none of the threads that may hold these locks, and whose parent prints the text."""
    global _registry_lock
    _registry_lock = threading.Lock()
    for output in list(_registry.values()):
        output._lock = threading.RLock()  # noqa: SLF001
        output._texts.clear()  # noqa: SLF001
        output.status = None
        output._drawn = []  # noqa: SLF001


atexit.register(_leave_nothing_behind)
call_after_fork(_after_fork)
