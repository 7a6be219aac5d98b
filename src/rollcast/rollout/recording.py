"""The record of a run in code: `run_async(…, record="auto")`."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rollcast.errors import InputError
from rollcast.records import EventFilter

if TYPE_CHECKING:
    from rollcast.archive import ArchiveObserver
    from rollcast.stream import StreamingManager

__all__ = ["RunRecording"]

_lock = threading.Lock()
_uses: WeakKeyDictionary[ArchiveObserver, int] = WeakKeyDictionary()  # by runs that go on now


class RunRecording:
    """Records one run while it goes on.

    Args:
        record: a level of `rollcast.archive`, for a new record in `rollcast-runs`; a folder, as a `Path`, for the record; or
            an `ArchiveObserver`, which may record several runs.
        name: of a new record.
        about: what the `run.json` of a new record says.

    Raises:
        InputError: `record` is none of these, or the folder holds a record already.
    """

    def __init__(self, record: Any, *, name: str, about: dict[str, Any]) -> None:
        from rollcast.archive import ArchiveObserver  # noqa: PLC0415  (a run without a record does not load it)

        self._of_one_run = not isinstance(record, ArchiveObserver)
        if isinstance(record, ArchiveObserver):
            self.observer = record
        elif isinstance(record, str):
            self.observer = ArchiveObserver.within(name=name, level=record, about=about)
        elif isinstance(record, os.PathLike):
            self.observer = ArchiveObserver(record, name=name, about=about)
        else:
            raise InputError(
                f"record is {type(record).__name__}; expected a level ('auto', 'turns', 'tokens', 'summary'), the record's "
                "folder as a Path, or an ArchiveObserver"
            )

    def begin(self, manager: StreamingManager, run_id: str) -> None:
        """Have the run recorded.

        Raises:
            InputError: the `ArchiveObserver` is added to another manager.
        """
        observer = self.observer
        if self._of_one_run:
            observer.filter &= EventFilter(runs=run_id)
        with _lock:
            uses = _uses.get(observer, 0)
            if not uses and observer.manager is manager:
                return  # somebody added it, and removes it
            if observer.manager is not manager:
                manager.add_observer(observer)
            _uses[observer] = uses + 1

    async def end(self, manager: StreamingManager) -> Path | None:
        """End the record, unless another run is recorded there. The run's events are delivered by now.

        Returns:
            The record's folder; None if none could be begun.
        """
        observer = self.observer
        with _lock:
            uses = _uses.pop(observer, 0)
            if uses > 1:
                _uses[observer] = uses - 1
            elif uses:
                manager.remove_observer(observer)
        if uses == 1:
            with suppress(TimeoutError):  # the disk hangs, and the run does not wait for it
                async with asyncio.timeout(manager.drain_timeout):
                    await observer.aclose()
        return observer.path if observer.begun else None
