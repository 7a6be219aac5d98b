r"""One writer per output stream, however many observers print to it, from however many threads.

Whoever prints does it inside `with output:`; what was put in goes out in one write at the end, so lines are never mixed.
A status of some rows may stand at the bottom. The cursor stays *above* it, where text goes on:

    ...the last whole line
    chain_0 │ an open line▁                      <- the cursor
    ⠹ 1 running · 0/1 done · 212 tokens/s        <- the status

so erasing it is "erase all below the cursor" (ED), which holds after the window was resized and does not touch what
somebody else printed meanwhile. Sequences: ECMA-48 ED, CUU, CUD; VT100 IND, DECSC, DECRC.
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
    """Where several observers print. Get it from `SharedOutput.of`; use it as a context manager.

    Attributes:
        stream: what is written to.
        dead: nobody reads any more (a closed pipe, a closed file); everything put in is dropped.
        unread: it is dead because nobody reads the pipe any more.
        failure: the error that made it dead, if it was neither of these; whoever reports it sets it to None.
        lost_to: the same error; it stays.
        members: the consoles that print here.
        shown: the chains and runs that they show; `counted`: those of consoles that want a status.
        line_owner: who left the line under the cursor open, or None at the start of a line.
        alone: one chain alone is visible, as far as is known.
        several_runs: chains of two runs or more are visible.
        label_cells: width of the widest chain id so far.
        status: gives the rows of the status, painted, each narrower than the terminal; none for no status.
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
        """The one output of this stream. Streams that lead to one terminal, pipe or file share it."""
        key = _destination(stream)
        with _registry_lock:
            output = _registry.get(key)
            if output is None or output.dead:
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
        """Add text; an open line of somebody else is ended first. Only inside `with`.

        Args:
            text: whole lines; or, with an `owner`, a piece of the owner's line, which stays open.
            owner: whose line it is.
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
        """Have the status drawn at the end of this `with`, however short ago that was done."""
        self._drawn_at = float("-inf")

    def clear_status(self) -> None:
        """Take the status off the screen."""
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
            self.dead = True  # "I/O operation on closed file": its owner is done with it
        except OSError as error:
            self.dead = True
            self.failure = self.lost_to = error
            _silence(self.stream)

    def _write_in_pieces(self, text: str) -> None:
        """To a stream that is non-blocking (some parents leave a terminal or a pipe so), a second for each piece.

        Python's own stream would drop what it cannot write at once, without a word if it is unbuffered.
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
    """Rows below the cursor: make room without losing its place, go down row by row, come back."""
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
    """Let the interpreter's last flush of a standard stream go nowhere instead of raising at exit."""
    if stream not in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        return  # no descriptor to mend: then nothing is flushed to it at exit either


def _leave_nothing_behind() -> None:
    """At exit: take off each status and end each open line, unless a thread that will never go on holds the lock."""
    for output in list(_registry.values()):
        if output._lock.acquire(timeout=0.5):  # noqa: SLF001
            try:
                output.clear_status()
                with output:
                    output.end_line()
            finally:
                output._lock.release()  # noqa: SLF001


def _after_fork() -> None:
    """A forked child has none of the threads that may hold these locks, and none of the text is its own."""
    global _registry_lock
    _registry_lock = threading.Lock()
    for output in list(_registry.values()):
        output._lock = threading.RLock()  # noqa: SLF001
        output._texts.clear()  # noqa: SLF001
        output.status = None
        output._drawn = []  # noqa: SLF001


atexit.register(_leave_nothing_behind)
call_after_fork(_after_fork)
