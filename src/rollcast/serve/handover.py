"""Hands a hub the records that producers which have ended left for it on this host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec

from rollcast.archive.index import read_run_file
from rollcast.archive.owner import FolderLock, is_alive
from rollcast.archive.segments import replace_file
from rollcast.errors import ArchiveError
from rollcast.records.jsonable import JSON_ERRORS
from rollcast.serve.producing import Outbox, publish_frame
from rollcast.serve.protocol import Ack
from rollcast.serve.settings import Limits
from rollcast.serve.spool import HANDOVER_FILE, Handover, Numbers, SpoolReader, forget

__all__ = ["HandOver", "records_to_hand_over"]

LOCK_FILE = "handover.lock"
WINDOW_BYTES = 1 << 20  # the events of this process come before those of the past
PAUSE_S = 0.025
ANSWER_S = 60.0  # how long the hub may take to acknowledge something; it may have a disk that is slow


def records_to_hand_over(directory: Path, hub: str) -> list[Path]:
    """The records in a directory that are for this hub and whose producers have ended, the oldest first."""
    found = []
    for path in sorted(directory.glob(f"*/{HANDOVER_FILE}")):
        handover = _read(path)
        if handover is not None and handover.hub == hub and _has_ended(path.parent):
            found.append(path.parent)
    return found


def _read(path: Path) -> Handover | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Handover)
    except (OSError, *JSON_ERRORS):
        return None


def _has_ended(path: Path) -> bool:
    """Whether the process that wrote the record is gone, for certain."""
    try:
        return is_alive(read_run_file(path).writer) is False
    except ArchiveError:
        return False


class HandOver:
    """One record on its way to the hub, which nobody else hands over meanwhile.

    Args:
        path: of the record's folder.
        handover: what it says.
        lock: that is held.
        limits: of the hub.
    """

    def __init__(self, path: Path, handover: Handover, lock: FolderLock, limits: Limits) -> None:
        self._path = path
        self._handover = handover
        self._lock = lock
        numbers = Numbers(handover.numbers)
        self._reader = SpoolReader(path, numbers)
        acked = max(handover.acked, numbers.at(0) - 1 if numbers.pieces else 0)
        self._outbox = Outbox(WINDOW_BYTES, acked=acked, source=handover.source, epoch=handover.epoch)
        self._outbox.connected(limits, time.monotonic)
        self._position = numbers.after(acked)
        self._last = acked  # the number of the last event that was read
        self._answered = asyncio.Event()
        self._refused = False
        self._done = False

    @classmethod
    def of(cls, path: Path, limits: Limits) -> Self | None:
        """Begin to hand over a record; None if somebody else does, or did."""
        lock = FolderLock(path / LOCK_FILE)
        try:
            lock.take()
        except (ArchiveError, OSError):
            return None
        handover = _read(path / HANDOVER_FILE)
        if handover is None or lock.is_gone():
            lock.release()
            return None
        return cls(path, handover, lock, limits)

    def ack(self, ack: Ack) -> None:
        """The hub has events of a producer that has ended."""
        if (ack.source, ack.epoch) == (self._handover.source, self._handover.epoch):
            self._outbox.ack(ack.seq)
            self._answered.set()

    def refused(self, source: str) -> None:
        """The hub takes no record of this source for now."""
        if source == self._handover.source:
            self._refused = True
            self._answered.set()

    async def run(self, send: Callable[[bytes], Awaitable[None]]) -> bool:
        """Send the record, and return when the hub has all of it. False if the hub does not take it."""
        source, epoch = self._handover.source, self._handover.epoch
        while True:
            self._read()
            self._answered.clear()
            for frame in self._outbox.frames():
                await send(frame)
            if self._outbox.idle:
                break
            if self._refused:
                return False
            if not self._outbox.can_send() and not await self._answer():
                return False
            await asyncio.sleep(PAUSE_S)
        if not self._last:
            return True  # there was nothing in it
        self._answered.clear()
        await send(publish_frame(self._last + 1, b"", source=source, epoch=epoch, last=True))
        return await self._answer()

    def _read(self) -> None:
        """Read on in the record, as far as there is room."""
        while self._outbox.has_room:
            blocks, self._position = self._reader.read(self._position)
            if not blocks:
                return
            for block in blocks:
                self._last = block.last
                self._outbox.next_number = block.last + 1
                self._outbox.put_recorded(block)

    async def _answer(self) -> bool:
        """Wait until the hub answers; False if it does not."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._answered.wait()
        except TimeoutError:
            return False
        return not self._refused

    def done(self, *, hub_records: bool) -> None:
        """The hub has it: remove the record, or keep it if the hub has no record of its own."""
        self._done = True
        forget(self._path, keep=not hub_records)

    def release(self) -> None:
        """Let somebody else hand it over, or go on from where this one was."""
        if not self._done and self._outbox.acked > self._handover.acked:
            so_far = msgspec.structs.replace(self._handover, acked=self._outbox.acked)
            with suppress(OSError):  # what the hub has is then sent again, and dropped there
                replace_file(self._path / HANDOVER_FILE, msgspec.json.encode(so_far))
        self._lock.release()
