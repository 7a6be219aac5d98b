"""A record that another process wrote, or still writes, and that a server serves in place of runs of its own.

It has no history in memory and no open chains: everything is read from the record, and what is written later is found by looking at
its files. The folder may be on another machine's disk, so nothing waits for a signal of its writer.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from rollcast.archive.format import CHAINS_FILE, EVENTS, TRAIN_FILE, first_of
from rollcast.archive.index import read_run_file, state_of
from rollcast.errors import ArchiveError

__all__ = ["FOLLOW_S", "Look", "RecordOnDisk", "Recorded"]

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


def _grows(name: str) -> bool:
    """Whether it is a file in which events or rows are."""
    return name in (CHAINS_FILE, TRAIN_FILE) or first_of(name) is not None
