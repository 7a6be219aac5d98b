"""The file in which a hub keeps how far each producer was acknowledged, so that its next life knows: `hub.jsonl` beside its records."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec

from rollcast.archive.owner import FolderLock
from rollcast.archive.segments import replace_file
from rollcast.archive.writer import prepare_directory
from rollcast.errors import ArchiveError, InputError
from rollcast.fleet.sources import Key
from rollcast.records.jsonable import JSON_ERRORS

__all__ = ["ACKS_FILE", "AcksFile"]

ACKS_FILE, LOCK_FILE = "hub.jsonl", ".hub.lock"
MOST_PROCESSES = 65_536  # that are remembered, the latest ones
LARGE_BYTES = 8 << 20  # at which the file is written anew

logger = logging.getLogger("rollcast.fleet")

_decoder = msgspec.json.Decoder(tuple[str, str, int])


class AcksFile:
    """A line for each acknowledgement: `["source", "epoch", number]`. The last one of a process counts.

    One hub at a time has it. It may be used from any thread, but not from two at once. If the disk takes nothing more, a warning
    says so, and producers that come back after a restart send more than they need to.

    Args:
        directory: of the hub's records; it is made if it is not there.

    Attributes:
        path: of the file.
        acked: the number of the last event that was safe of each process, the latest process last.

    Raises:
        InputError: another hub records there, or nothing can be written there.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / ACKS_FILE
        self.acked: dict[Key, int] = {}
        self._file: BinaryIO | None = None
        self._told = False
        self._lock = FolderLock(directory / LOCK_FILE)
        try:
            prepare_directory(directory)
            self._lock.take()
            self._read()
            self._write_anew()
        except ArchiveError:
            raise InputError(
                f"another hub records in {directory}; give this one a folder of its own with --record-dir"
            ) from None
        except OSError as error:
            self._lock.release()
            raise InputError(
                f"{self.path} cannot be written: {error.strerror or error}; name another folder with --record-dir, or give "
                "--no-record"
            ) from None

    def note(self, marks: Iterable[tuple[Key, int]]) -> None:
        """Remember up to which number the events of these processes are safe."""
        lines = bytearray()
        for (source, epoch), number in marks:
            self.acked.pop((source, epoch), None)  # the latest come last
            self.acked[source, epoch] = number
            lines += _line(source, epoch, number)
        if self._file is None:
            return
        try:
            if self._file.tell() + len(lines) > LARGE_BYTES:
                self._write_anew()
            else:
                self._file.write(lines)
            self._told = False
        except OSError as error:
            if not self._told:
                self._told = True
                logger.warning("%s cannot be written: %s", self.path, error.strerror or error)

    def close(self) -> None:
        """Close the file, and let another hub have it."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()

    def _read(self) -> None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        for line in data.split(b"\n"):
            try:
                source, epoch, number = _decoder.decode(line)
            except JSON_ERRORS:
                continue  # a torn line, or the empty one at the end
            self.acked.pop((source, epoch), None)
            self.acked[source, epoch] = number

    def _write_anew(self) -> None:
        """Write one line for each process that is remembered."""
        for key in list(self.acked)[:-MOST_PROCESSES]:
            del self.acked[key]
        data = b"".join(_line(*key, number) for key, number in self.acked.items())
        replace_file(self.path, data, sync=False)
        if self._file is not None:
            self._file.close()
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))
        self._file = os.fdopen(fd, "ab", buffering=0)


def _line(source: str, epoch: str, number: int) -> bytes:
    return msgspec.json.encode((source, epoch, number)) + b"\n"
