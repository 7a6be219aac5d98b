"""Acknowledges what producers sent, once the record has it, and keeps how far that was for the hub's next life."""

from __future__ import annotations

import asyncio
import logging

from rollcast.fleet.acks_file import AcksFile
from rollcast.fleet.intake import Intake
from rollcast.fleet.sources import Key
from rollcast.serve.protocol import Ack
from rollcast.serve.record import caught_up, record_of
from rollcast.stream import StreamingManager

__all__ = ["Acknowledger"]

logger = logging.getLogger("rollcast.fleet")

GATHER_S = 0.25  # how long events gather before the record is asked whether it has them


class Acknowledger:
    """Sends the `ack` of a hub. Used in one event loop.

    Args:
        manager: into which events are relayed. If it has an `ArchiveObserver`, what is acknowledged is in its record.
        intake: what was taken.
        acks: where to keep how far producers were acknowledged; None: nowhere. It is closed with this.
    """

    def __init__(self, manager: StreamingManager, intake: Intake, acks: AcksFile | None) -> None:
        self._manager = manager
        self._intake = intake
        self._acks = acks
        self._writing = asyncio.Lock()  # one thread at a time writes to the file
        self._unsafe = asyncio.Event()

    async def remember(self, key: Key) -> None:
        """Note a process before its first events are recorded, so that it is known after a restart."""
        if self._acks is not None and key not in self._acks.acked:
            await self._note([(key, self._intake.producers.acked(key))])

    def taken(self) -> None:
        """Events were taken: `follow` has something to acknowledge."""
        self._unsafe.set()

    async def follow(self) -> None:
        """Wait until events were taken, and some more gather, and acknowledge them if they are safe."""
        await self._unsafe.wait()
        await asyncio.sleep(GATHER_S)
        self._unsafe.clear()
        await self.acknowledge()

    async def acknowledge(self) -> None:
        """Tell producers which of their events are on the disk; while it cannot be written to, they keep them."""
        marks = self._intake.marks()
        if not marks:
            return
        if not await self.recorded():
            self._unsafe.set()
            return
        await self._note([((mark.source, mark.epoch), mark.number) for mark in marks])
        for mark in marks:
            if self._intake.safe(mark):
                whose = ("", "") if mark.own else (mark.source, mark.epoch)
                mark.link.send(Ack(mark.number, *whose))

    async def recorded(self) -> bool:
        """Wait until what was relayed is recorded. False if it cannot be; True at once if nothing records."""
        record = record_of(self._manager)
        if record is None:
            return True
        while not await caught_up(self._manager, record):
            logger.debug("the record is behind; producers wait for their acks")
        await record.recorded()
        return record.failing is None

    async def close(self) -> None:
        """Close the file."""
        if self._acks is not None:
            await asyncio.to_thread(self._acks.close)

    async def _note(self, marks: list[tuple[Key, int]]) -> None:
        if self._acks is not None:
            async with self._writing:
                await asyncio.to_thread(self._acks.note, marks)
