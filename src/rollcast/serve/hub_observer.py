"""Publishes the events of a manager to a hub: `HubStreamObserver(url)`, or `ROLLCAST_HUB` in the environment (docs/publishing.md)."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import msgspec

from rollcast.aio import follower
from rollcast.records import EventFilter, encode_lines
from rollcast.records.secrets import Masker, masker_of
from rollcast.serve.address import hub_address
from rollcast.serve.environment import token_for_hub
from rollcast.serve.history import encoded, masked
from rollcast.serve.producer import HubProducer, producer_for
from rollcast.serve.producing import Block
from rollcast.stream import StreamingManager
from rollcast.stream.merging import tokens_together
from rollcast.stream.observer import EncodingObserver
from rollcast.stream.waiting import Encodable, EncodableChunk, event_of

__all__ = ["HubStreamObserver", "attach"]

logger = logging.getLogger("rollcast.serve")

GATHER_S = 0.1  # in which events gather that are sent together
LARGE_BYTES = 1 << 20  # of a block; most have a hundredth
LOOK_S = 0.02  # how often to look whether there is room again
CLOSING_SHARE = 0.8  # of the manager's `drain_timeout` may pass while it waits for the hub
_source_of = attrgetter("source")


class HubStreamObserver(EncodingObserver):
    """Publishes what happens in this process to a hub (`rollcast hub`), and never makes a run wait.

    Everything but tokens travels. Tokens travel only for chains that somebody watches at the hub: the others are not even made
    for it. If the hub is away, events wait in memory, then in a local record, and are handed over when it is back.

    All observers of one hub in a process share one connection.

    Args:
        url: of the hub: `HOST:PORT`, `ws://…` or `wss://…`.
        token: with the scope `publish`; None: `ROLLCAST_HUB_TOKEN`.
        source: the name of this process in the fleet, which no other process has; None: the manager's own, or `ROLLCAST_SOURCE`,
            or one made of the host's name and the pid.
        tls_ca: a PEM file with the authority of the hub's certificate; None: the authorities that the system trusts.
        directory: where the local record goes; None: what `ROLLCAST_RECORDS` names, or `rollcast-runs` in the current folder.
        masker: of secrets; None masks known shapes and the values of environment variables that look secret. Give `False` to
            mask nothing.

    Raises:
        InputError: `url` cannot be the address of a hub, or has a token in it, or `masker` is not a masker.
    """

    threaded = True
    queue_limit_bytes = 16 << 20
    rest_s = GATHER_S

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        source: str | None = None,
        tls_ca: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        masker: Masker | bool | None = None,
    ) -> None:
        self._connect = partial(
            producer_for, hub_address(url), token=token or token_for_hub(), tls_ca=tls_ca, directory=directory
        )
        self._given_source = source or None
        self._producer = self._connect(source=self._given_source)
        self._masker = masker_of(masker)
        self._manager: StreamingManager | None = None
        self._foreign: set[str] = set()
        self._is_second = False  # another observer publishes the same to the same hub, as ROLLCAST_HUB asks
        self._producer.join(self)  # which sets the filter

    @property
    def producer(self) -> HubProducer:
        """The producer of this process for the hub."""
        return self._producer

    @property
    def manager(self) -> StreamingManager | None:
        """The manager that it is added to, or None."""
        return self._manager

    @manager.setter
    def manager(self, manager: Any) -> None:
        self._manager = manager
        if manager is None:
            return
        own = manager.fanout.source
        if not own:
            manager.fanout.source = self._producer.source
        elif self._given_source is None and own != self._producer.source:
            self._producer = self._connect(source=own)
            self._producer.join(self)
        others = [each for each in manager.observers if isinstance(each, HubStreamObserver)]
        self._is_second = any(each is not self and each.producer is self._producer for each in others)

    def narrow(self, wanted: EventFilter) -> None:
        """Have this filter from now on."""
        self.filter = wanted
        manager = self._manager
        if manager is not None:
            manager.refresh(self)

    async def on_run_opened(self, run_id: str) -> None:
        """Connect, if there is no connection yet."""
        self._producer.start()
        if self.filter != self._producer.wanted:  # it changed while this observer was being added
            self.narrow(self._producer.wanted)

    async def on_encodable(self, events: Sequence[Encodable]) -> None:
        """Have the events published. If too much waits already, they wait in this observer's queue."""
        own = self._own(events)
        if not own or self._is_second:
            return
        for block in self._blocks(tokens_together(own)):
            room = self._producer.put(block)
            if room is not None:
                await asyncio.wrap_future(follower(room))

    def _own(self, events: Sequence[Encodable]) -> Sequence[Encodable]:
        """The events of this process, under its name. Events that are relayed here are published by their own process."""
        source = self._producer.source
        sources = set(map(_source_of, events))
        if sources == {source}:
            return events
        foreign = sources - {source, ""}
        if foreign - self._foreign:
            self._foreign |= foreign
            logger.warning(
                "events of other processes (%s) are not published from here; their own processes publish them",
                ", ".join(sorted(foreign)),
            )
        return [
            event if event.source else msgspec.structs.replace(event, source=source)
            for event in events
            if event.source not in foreign
        ]

    def _blocks(self, events: Sequence[Encodable]) -> Iterator[Block]:
        """The events in blocks that are not large, unless a single event is."""
        block = self._block(events)
        if len(block.data) <= LARGE_BYTES or len(events) == 1:
            yield block
            return
        half = len(events) // 2
        yield from self._blocks(events[:half])
        yield from self._blocks(events[half:])

    def _block(self, events: Sequence[Encodable]) -> Block:
        masker = self._masker
        try:
            data = encode_lines(events)[:-1].replace(b"\n", b",")
        except Exception:  # noqa: BLE001  (user-made data: whatever its encoding raises, the other events are published)
            data = b""
        if not data or (masker is not None and masker.may_hold(data)):
            data = b",".join([_one(event, masker) for event in events])
        return Block(data, len(events))

    async def published(self, timeout: float) -> bool:
        """Wait until the hub has everything that was published from this process, after `await manager.drain()`.

        Returns:
            Whether it has; False if that takes longer than `timeout` seconds, or the hub refuses.
        """
        give_up = time.monotonic() + timeout
        while not self._producer.is_up_to_date:
            if time.monotonic() >= give_up or self._producer.refused is not None:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    async def aclose(self) -> None:
        """Wait until the hub has what was published, if it is there, for less than the manager waits for its observers."""
        if self._producer.connected:
            manager = self._manager
            longest = self._producer.drain_timeout if manager is None else manager.drain_timeout
            with self._producer.waiting() as give_up:
                await self.published(min(CLOSING_SHARE * longest, give_up - time.monotonic()))


def _one(event: Encodable, masker: Masker | None) -> bytes:
    data = encoded(event)
    if masker is None or isinstance(event, EncodableChunk):
        return data
    return masked(event_of(event), data, masker)


def attach(manager: StreamingManager, url: str) -> None:
    """Have the manager publish to the hub that the environment names.

    Raises:
        InputError: `url` cannot be the address of a hub, or has a token in it.
    """
    manager.add_observer(HubStreamObserver(url, source=manager.fanout.source or None))
