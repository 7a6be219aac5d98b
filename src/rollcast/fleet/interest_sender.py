"""Tells the producers of a hub what its watchers want: when that changes, and again at each heartbeat."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from rollcast.aio import call_in
from rollcast.fleet.interest import interest_of
from rollcast.serve.broadcast import ServerObserver
from rollcast.serve.outlet import Client, transmit
from rollcast.serve.protocol import FilterFrame, Interest, encode_frame
from rollcast.serve.publishing import ProducerLink
from rollcast.stream import StreamingManager

__all__ = ["InterestSender"]

SETTLE_S = 0.02  # after a change, in which others may follow
LOOK_S = 0.5  # how often to look without being told whether what is wanted has changed: each look costs as much as twenty events
EXPIRY = 3  # heartbeats without a renewal after which a producer assumes that nobody watches


class InterestSender:
    """Sends the interest of a manager's observers, and of the clients of those that are servers. Used in one event loop.

    Args:
        manager: whose observers they are.
        links: gives the connections of all producers.
        heartbeat_s: seconds after which the interest is renewed.

    Attributes:
        latest: what producers were told last, and a new one is told first.
    """

    def __init__(
        self,
        manager: StreamingManager,
        links: Callable[[], Iterable[ProducerLink]],
        heartbeat_s: float,
    ) -> None:
        self.latest = Interest(0, [], EXPIRY * heartbeat_s)
        self._manager = manager
        self._links = links
        self._heartbeat_s = heartbeat_s
        self._version = -1  # of the manager's observers, when the servers were looked for
        self._servers: list[ServerObserver] = []
        self._latest_of: object = None  # the state of the readers that it is the interest of
        self._renew_at = time.monotonic() + heartbeat_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        """Wait until what is wanted may have changed, and tell the producers if it has, or if a renewal is due.

        Viewers of a server come and go without a change of the manager's observers, since a server with a history wants everything.
        """
        self._loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._changed.wait()
                await asyncio.sleep(SETTLE_S)
        self._changed.clear()
        version = self._manager.fanout.version
        if version != self._version:
            self._version, self._servers = version, self._find_servers()
            for server in self._servers:
                server.upstream.on_change = self._look_soon
        servers = self._servers
        now = (version, [each.upstream.changes for each in servers])
        if now != self._latest_of:
            self._latest_of = now
            self._tell(self._wanted(servers))
        if time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + self._heartbeat_s
            self._send()

    def _look_soon(self) -> None:
        """What the clients of a server want has changed. Called in any thread."""
        if self._loop is not None:
            call_in(self._loop, self._changed.set)

    def _find_servers(self) -> list[ServerObserver]:
        leaves = [leaf for observer in self._manager.observers for leaf in observer.leaves()]
        return [leaf for leaf in leaves if isinstance(leaf, ServerObserver)]

    def _wanted(self, servers: list[ServerObserver]) -> list[FilterFrame]:
        """What the readers of the manager want; of servers, what their clients do."""
        manager = self._manager
        filters = {each for server in servers for each in server.upstream.client_filters()}
        with manager.lock:
            of_servers = [manager.delivery_of(server) for server in servers]
            readers = [each for each in manager.fanout.deliveries if each.tokens == "wanted"]
            filters |= {each.filter for each in readers if each not in of_servers}
        return interest_of(filters)

    def _tell(self, wanted: list[FilterFrame]) -> None:
        if wanted != self.latest.filters:
            self.latest = Interest(self.latest.version + 1, wanted, EXPIRY * self._heartbeat_s)
            self._send()

    def _send(self) -> None:
        clients = [link for link in self._links() if isinstance(link, Client)]
        transmit(clients, encode_frame(self.latest))
