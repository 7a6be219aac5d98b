"""What a producer's hub does not have yet: in memory, and, beyond what fits there, in a local record. Used on the producer's thread.

    put ──▶ outbox ──────────────▶ hub
               │ ▲
     too much  ▼ │ as the hub takes it
          local record (spool.py)

An event leaves the outbox when the hub acknowledges it. When the hub has a whole record, it is removed, unless the hub keeps none itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from rollcast.serve.producing import Publishing
from rollcast.serve.spool import Spool, block_of, forget

__all__ = ["Backlog"]


class Backlog:
    """The events that the hub does not have yet.

    Args:
        session: the producer's, with the outbox.
        make_spool: makes the local record.
        memory_bytes: how many bytes of events may be in memory.
        directory: of records.
        shut: called with True if no more tokens are to be made for now, and with False if they are wanted again.
        say: tells the user something, once.
        hub: the address of the hub, for messages.

    Attributes:
        spooling: whether what comes goes to the local record, since what came before is there.
        hub_records: whether the hub records what it takes, so that the local record may be removed afterwards.
    """

    def __init__(
        self,
        session: Publishing,
        make_spool: Callable[[], Spool],
        *,
        memory_bytes: int,
        directory: Path,
        shut: Callable[[bool], None],
        say: Callable[[str], None],
        hub: str,
    ) -> None:
        self.spooling = False
        self.hub_records = False
        self._session = session
        self._outbox = session.outbox
        self._make_spool = make_spool
        self._memory_bytes = memory_bytes
        self._directory = directory
        self._shut = shut
        self._say = say
        self._hub = hub
        self._spool: Spool | None = None
        # A position in the local record: what comes before it is in memory, or the hub has it.
        self._read_at = 0

    @property
    def saved(self) -> int:
        """How many events are in the local record."""
        return 0 if self._spool is None else self._spool.position

    @property
    def needs_work(self) -> bool:
        """Whether there is something to write, to read or to remove."""
        return self.spooling or self._spool is not None or self._outbox.bytes > self._memory_bytes

    @property
    def is_empty(self) -> bool:
        """Whether the hub has everything."""
        return not self.spooling and self._outbox.idle

    async def keep_within_memory(
        self, *, more_has_come: Callable[[], bool], progress: Callable[[], None]
    ) -> None:
        """Write what waits to the local record if it does not fit in memory; read it back as the hub takes it.

        Args:
            more_has_come: whether something came that is not in the outbox yet.
            progress: called when something was written or read.
        """
        if not self.spooling:
            self._forget_what_the_hub_has()
            if self._outbox.bytes <= self._memory_bytes:
                return
        spool = self._begin_spooling()
        while (block := self._outbox.take_waiting()) is not None:
            self._outbox.next_number = spool.save(block, self._outbox.next_number)
            progress()
            await asyncio.sleep(0)
        while self._session.welcomed and self._outbox.has_room:
            blocks, self._read_at = spool.read(self._read_at)
            if not blocks:
                if self._outbox.waiting or more_has_come():
                    return
                self._end_spooling(spool)
                progress()
                if not self.spooling:
                    self._forget_what_the_hub_has()
                    return
            for block in blocks:
                self._outbox.put_recorded(block)
            progress()
            await asyncio.sleep(0)

    def _begin_spooling(self) -> Spool:
        """The local record, which is begun if need be."""
        if self.spooling and self._spool is not None:
            return self._spool
        if self._spool is None:
            self._spool = self._make_spool()
            state = "does not keep up" if self._session.welcomed else "is away"
            self._say(
                f"the hub {self._hub} {state}; what does not fit in memory is recorded in {self._directory} until the hub has it"
            )
        self._save_numbered(self._spool)
        self.spooling, self._read_at = True, self._spool.position
        self._shut(True)
        return self._spool

    def _save_numbered(self, spool: Spool) -> None:
        """Write what was sent and is not acknowledged, which stays in memory too, in case this process ends."""
        for block in self._outbox.numbered:
            if block.number > spool.highest:
                spool.save(block, self._outbox.next_number)

    def _end_spooling(self, spool: Spool) -> None:
        """The record was read to its end: go on from memory."""
        spool.finish()
        # A gap that was written just now has the number that was next.
        self._outbox.next_number = max(self._outbox.next_number, spool.next_number)
        if self._read_at < spool.position:  # a gap was written just now, or the record was taken away
            blocks, _ = spool.read(self._read_at)
            if blocks:
                return
            self._read_at = spool.position
            spool.could_not_be_read()
        if gaps := spool.lost():
            self._outbox.put_first(block_of(gaps))
        self.spooling = False
        self._shut(False)

    def _forget_what_the_hub_has(self) -> None:
        spool = self._spool
        if spool is not None and self._outbox.acked >= spool.highest:
            self._spool = None
            forget(spool.path, keep=not self.hub_records)

    def beat(self) -> None:
        """Say in the local record that its writer lives."""
        if self.spooling and self._spool is not None:
            self._spool.beat()

    def leave(self) -> None:
        """At the end: leave what the hub does not have in the local record, and say where it is."""
        if not self.spooling:
            self._forget_what_the_hub_has()
        if self.is_empty:
            return
        if self._spool is None:
            self._spool = self._make_spool()
        spool = self._spool
        if not self.spooling:
            self._save_numbered(spool)
        while (block := self._outbox.take_waiting()) is not None:
            self._outbox.next_number = spool.save(block, self._outbox.next_number)
        spool.finish()
        if spool.begun:
            self._say(
                f"the hub {self._hub} does not have everything; the rest is recorded in {spool.path}, and the next producer with this "
                "record directory hands it over"
            )
        else:
            self._say(
                f"the hub {self._hub} does not have everything, and the rest could not be recorded: {spool.failing}"
            )
