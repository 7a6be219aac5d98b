"""A record that another process wrote or still writes, or a folder of such records, which a server serves in place of runs of its own.

It has no history in memory and no open chains: everything is read from the record, and what is written later is found by looking at
its files. The folder may be on another machine's disk, so nothing waits for a signal of its writer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from rollcast.archive.format import CHAINS_FILE, EVENTS, RUN_FILE, TRAIN_FILE, first_of
from rollcast.archive.index import read_run_file, state_of
from rollcast.archive.readings import RecordOfRunWanted
from rollcast.archive.record_process import RecordProcess
from rollcast.errors import ArchiveError, InputError
from rollcast.text import printable_line

__all__ = ["FOLLOW_S", "Look", "RecordFolder", "RecordOnDisk", "Recorded", "record_at"]

MAX_OPENED = 64  # records whose facts are kept
MAX_RUNS = 65_536  # runs whose record is remembered
FOLLOW_S = 0.25  # how often to look whether a record has grown; its writer writes as often


class Recorded(Protocol):
    """What a server needs of the record that it serves: of one that this process writes, or of one on the disk."""

    @property
    def path(self) -> Path: ...
    @property
    def id(self) -> str: ...
    @property
    def parent(self) -> str | None: ...
    @property
    def level(self) -> str: ...
    @property
    def failing(self) -> str | None: ...
    @property
    def recording(self) -> bool: ...


class Look(NamedTuple):
    """How a record stood at one moment.

    Attributes:
        mark: changes when something is written.
        over: nothing more will be written.
        crashed: its writer died.
    """

    mark: tuple[tuple[str, int], ...]
    over: bool
    crashed: bool


class RecordOnDisk:
    """A record of which this process is not the writer.

    Args:
        path: of its folder.

    Raises:
        ArchiveError: it is no record, or cannot be read.
    """

    failing: str | None = None
    recording = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        facts = read_run_file(self.path)
        self.id = facts.id
        self.parent = facts.parent
        self.level = facts.level
        self.name = facts.name

    def is_there(self) -> bool:
        """Whether this record is still in its folder. It reads the disk."""
        try:
            return read_run_file(self.path).id == self.id
        except ArchiveError:
            return False

    async def look(self) -> Look:
        """How it stands now. Look before reading: what is written afterwards changes the next mark.

        Raises:
            ArchiveError: it was deleted, or cannot be read.
        """
        return await asyncio.to_thread(self._look)

    def _look(self) -> Look:
        state, _ = state_of(read_run_file(self.path))
        sizes: list[tuple[str, int]] = []
        try:
            for folder in (self.path, self.path / EVENTS):
                with suppress(FileNotFoundError), os.scandir(folder) as entries:  # it may just have begun
                    sizes += sorted((each.name, each.stat().st_size) for each in entries if _grows(each.name))
        except OSError as error:
            raise ArchiveError(f"{self.path} cannot be read: {error.strerror or error}") from None
        return Look(tuple(sizes), state in ("ended", "crashed"), state == "crashed")


class RecordFolder:
    """A directory of records. A run is found by its id, and read from the newest record that has it.

    Args:
        path: of the directory.

    Raises:
        ArchiveError: it is not there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        if not self.path.is_dir():
            raise ArchiveError(f"{self.path} is not there; rollcast runs lists the records of a directory")
        self._records: dict[Path, RecordOnDisk] = {}
        self._paths: dict[str, Path] = {}  # by run

    async def record_of(self, run_id: str | None, records: RecordProcess) -> RecordOnDisk:
        """Find the record that has a run.

        Args:
            run_id: the run's id.
            records: the process that reads records.

        Raises:
            InputError: no run is named.
            ArchiveError: no record has it, or it cannot be read.
        """
        if run_id is None:
            raise InputError("this server has a folder of records; name a run of one of them")
        path = self._paths.get(run_id)
        if path is None:
            found = (await records.rows(RecordOfRunWanted(path=str(self.path), run_id=run_id))).rows
            if not found:
                raise ArchiveError(
                    f"no record in {self.path.name} has the run '{printable_line(run_id, 80)}'; "
                    "the query `runs` lists them"
                )
            path = Path(msgspec.json.decode(found[0])["path"])
            self._know(run_id, path)
        return await self._record_at(path)

    async def _record_at(self, path: Path) -> RecordOnDisk:
        record = self._records.pop(path, None)
        if record is None or not await asyncio.to_thread(record.is_there):
            record = await asyncio.to_thread(RecordOnDisk, path)
        self._records[path] = record
        if len(self._records) > MAX_OPENED:
            del self._records[next(iter(self._records))]
        return record

    def knows(self, record: RecordOnDisk, run_ids: Iterable[str]) -> None:
        """Note that a record has these runs."""
        for run_id in run_ids:
            self._know(run_id, record.path)

    def _know(self, run_id: str, path: Path) -> None:
        self._paths.pop(run_id, None)
        self._paths[run_id] = path
        if len(self._paths) > MAX_RUNS:
            del self._paths[next(iter(self._paths))]


def record_at(path: str | os.PathLike[str] | None) -> RecordOnDisk | RecordFolder | None:
    """The record at a path, or the records of a directory that has some; None for None.

    Raises:
        ArchiveError: it is neither, or cannot be read.
    """
    if path is None:
        return None
    folder = Path(path)
    holds_records = not (folder / RUN_FILE).exists() and any(folder.glob(f"*/{RUN_FILE}"))
    return RecordFolder(folder) if holds_records else RecordOnDisk(folder)


def _grows(name: str) -> bool:
    """Whether it is a file in which events or rows are."""
    return name in (CHAINS_FILE, TRAIN_FILE) or first_of(name) is not None
