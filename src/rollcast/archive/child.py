"""The child process that reads records for a server, started by record_process.py.

It has a low priority, so that reading takes only what the process that samples leaves. Readings take turns, item by item. It
ends when its parent closes the pipe or is gone, in the middle of a reading too.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rollcast.archive.pipe import (
    ALIVE_S,
    Alive,
    End,
    Failure,
    FromChild,
    FromParent,
    Item,
    More,
    Open,
    Stop,
    framed,
    from_parent,
    read_message,
)
from rollcast.archive.readings import Given, given_by
from rollcast.errors import InputError, RollcastError

__all__ = ["main"]

NICE = 10  # a tenth of the time that a process of normal priority gets, if both want all of it
PARENT_EVERY_S = 1.0  # how often it looks whether its parent is still there


class _Turns:
    """The open readings, and whose turn it is.

    Args:
        output: the file descriptor for answers.
    """

    def __init__(self, output: int) -> None:
        self._output = output
        self._items: dict[int, Iterator[Given | None]] = {}
        self._credit: dict[int, int] = {}
        self._turns: deque[int] = deque()  # ids of readings with credit
        self._sent_at = time.monotonic()

    def __bool__(self) -> bool:
        return bool(self._turns)

    def take(self, message: FromParent) -> None:
        """Take a message of the parent."""
        match message:
            case Open(id, reading, credit):
                self._items[id] = given_by(reading)
                self._give_credit(id, credit)
            case More(id, credit):
                if id in self._items:
                    self._give_credit(id, credit)
            case Stop(id):
                self._forget(id)

    def _give_credit(self, id: int, credit: int) -> None:
        before = self._credit.get(id, 0)
        self._credit[id] = before + credit
        if before <= 0 < before + credit:
            self._turns.append(id)

    def _forget(self, id: int) -> None:
        self._items.pop(id, None)
        if self._credit.pop(id, 0) > 0:
            self._turns.remove(id)

    def step(self) -> None:
        """Read a piece for the reading whose turn it is."""
        turn = self._turns[0]
        self._turns.rotate(-1)
        try:
            given = next(self._items[turn])
            data = None if given is None else framed(Item(turn, given))
        except StopIteration:
            self._finish(turn, End(turn))
        except (RollcastError, OSError) as error:
            failure = Failure(turn, "record", _sentence(error))
            if isinstance(error, InputError):
                failure.kind = "input"
            self._finish(turn, failure)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  (a fault of ours ends this reading and no other; the parent logs it)
            self._finish(turn, Failure(turn, "fault", traceback.format_exc()))
        else:
            if data is not None:
                self._write(data)
                self._credit[turn] -= 1
                if self._credit[turn] <= 0:
                    self._turns.remove(turn)

    def _finish(self, id: int, answer: End | Failure) -> None:
        self._forget(id)
        self._send(answer)

    def tell_alive(self) -> None:
        """Tell the parent that this process is not stuck, unless it has been sent something lately."""
        if time.monotonic() - self._sent_at >= ALIVE_S:
            self._send(Alive())

    def _send(self, answer: FromChild) -> None:
        self._write(framed(answer))

    def _write(self, message: bytes) -> None:
        data = memoryview(message)
        while data:
            data = data[os.write(self._output, data) :]
        self._sent_at = time.monotonic()


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        where = "" if error.filename is None else f"{error.filename} "
        return f"{where}cannot be read: {error.strerror or error}"
    return str(error)


def main() -> None:
    """Answer the parent until it is gone."""
    _step_back()
    parent, incoming, outgoing = os.getppid(), os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (
        0,
        1,
        2,
    ):  # what some library prints must not stand between answers; the parent has heard of a failed start
        os.dup2(nowhere, fd)
    inbox: queue.SimpleQueue[FromParent] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(incoming, parent, inbox), daemon=True).start()
    turns = _Turns(outgoing)
    try:
        while True:
            if not turns:
                with suppress(queue.Empty):
                    turns.take(inbox.get(timeout=ALIVE_S))
            while not inbox.empty():
                turns.take(inbox.get())
            if turns:
                turns.step()
            turns.tell_alive()
    except BrokenPipeError:
        os._exit(0)


def _step_back() -> None:
    """Leave processor and memory to others, and Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(NICE)
    with suppress(OSError):  # only Linux has it: of the two processes, this one goes first if memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000")


def _listen(fd: int, parent: int, inbox: queue.SimpleQueue[FromParent]) -> None:
    """Take the parent's messages. When it has closed the pipe or is gone, end the process, whatever it does just then."""
    try:
        while (data := read_message(lambda count: _read(fd, count, parent))) is not None:
            inbox.put(from_parent(data))
    finally:
        os._exit(0)


def _read(fd: int, count: int, parent: int) -> bytes:
    """Read this many bytes; fewer if the pipe was closed or the parent has exited."""
    data = b""
    while len(data) < count:
        if sys.platform != "win32":
            # A process that the parent forked may hold the pipe open for ever.
            while not select.select([fd], [], [], PARENT_EVERY_S)[0]:
                if os.getppid() != parent:
                    return data
        piece = os.read(fd, min(count - len(data), 1 << 20))
        if not piece:
            return data
        data += piece
    return data
