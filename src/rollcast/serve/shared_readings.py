"""Readings of a record that several clients wait for together.

Every page asks for the rows of the runs when a run begins or ends. A reading goes through the whole record, so it is made once for all
who ask for the same before it begins; who asks while it goes on waits for the next one, since this one may not have what came last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from rollcast.archive.pages import Rows
from rollcast.archive.readings import RecordsWanted, RunsWanted, StepsWanted

__all__ = ["SharedReadings"]

Wanted = RunsWanted | StepsWanted | RecordsWanted


class SharedReadings:
    """Reads each thing once at a time, for all who ask. Use it in one event loop.

    Args:
        read: makes one reading.
    """

    def __init__(self, read: Callable[[Wanted], Awaitable[Rows]]) -> None:
        self._read = read
        self._waiting: dict[bytes, asyncio.Task[Rows]] = {}  # readings that have not begun
        self._latest: dict[bytes, asyncio.Task[Rows]] = {}
        self._tasks: set[asyncio.Task[Rows]] = set()

    async def rows(self, wanted: Wanted) -> Rows:
        """The rows as they stand now or later. Raises what `read` raises."""
        key = msgspec.json.encode(wanted)
        task = self._waiting.get(key)
        if task is None:
            before = self._latest.get(key)
            task = asyncio.get_running_loop().create_task(
                self._one(key, wanted, before), name="rollcast-server-reading"
            )
            self._waiting[key] = self._latest[key] = task
            self._tasks.add(task)
            task.add_done_callback(lambda done: self._over(key, done))
        return await asyncio.shield(task)

    async def _one(self, key: bytes, wanted: Wanted, before: asyncio.Task[Rows] | None) -> Rows:
        if before is not None:
            await asyncio.wait([before])
        del self._waiting[key]
        return await self._read(wanted)

    def _over(self, key: bytes, task: asyncio.Task[Rows]) -> None:
        self._tasks.discard(task)
        for tasks in (self._waiting, self._latest):
            if tasks.get(key) is task:
                del tasks[key]
        if not task.cancelled():
            task.exception()  # nobody may be left to hear it

    async def aclose(self) -> None:
        """End every reading."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
