"""Clients of the hub: those that read, come late, leave and come back, and one that never reads."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from websockets.exceptions import InvalidHandshake

from fault_schedules.deaf_client import subscribe_deaf
from fleet_faults.invariants import Seen
from fleet_faults.plan import ViewerPlan
from fleet_faults.relay import Relay
from rollcast.errors import RollcastError
from rollcast.records import EventFilter, StreamEventType
from rollcast.serve import WebSocketStreamingClient

__all__ = ["DeafViewer", "Viewer"]

T = StreamEventType
FILTERS = {
    "one_chain": EventFilter(chains={"chain_0", "chain_0@w0"}),
    "no_tokens": EventFilter(types=set(T) - {T.LLM_GENERATION_CHUNK}),
}
LEAVES_AFTER = 10  # events


class Viewer:
    """A client that reads, and keeps what it gets.

    Args:
        number, plan: which viewer of the plan it is.
        relay: its way to the hub.
        token: the hub's.
        hubs: gives how often the hub has been started.
    """

    def __init__(
        self, number: int, plan: ViewerPlan, relay: Relay, token: str, hubs: Callable[[], int]
    ) -> None:
        self.plan = plan
        self._hubs = hubs
        self.relay = relay
        self.seen = Seen(
            f"viewer {number} ({plan.manner})",
            [],
            FILTERS.get(plan.manner, EventFilter()),
            from_the_start=plan.manner != "late",
        )
        self.failure: BaseException | None = None
        self.reconnections = 0
        self._token = token
        self._cursor = "live" if plan.manner == "late" else "start"
        self._task: asyncio.Task[None] | None = None
        self._left = plan.manner != "leaves_and_returns"
        self._client: WebSocketStreamingClient | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch(), name=f"fleet-faults-{self.seen.who}")

    async def _watch(self) -> None:
        try:
            while await self._stay():
                self._left = True
        except RollcastError as error:
            self.failure = error

    async def _stay(self) -> bool:
        """Watch until it leaves or is stopped; whether it is to come back."""
        client = self._client = WebSocketStreamingClient(
            self.relay.url, token=self._token, filter=self.seen.filter, since=self._cursor
        )
        came = 0
        try:
            async for event in client:
                if not self.seen.events and self._hubs() > 1:
                    self.seen.from_the_start = False  # for a hub that was restarted, the start is its own
                self.seen.events.append(event)
                came += 1
                if not self._left and came >= LEAVES_AFTER:
                    await (
                        client.aclose()
                    )  # what it has received still comes, and its cursor is the place after that
        finally:
            self.reconnections += client.reconnections
            self._cursor = client.cursor or self._cursor
            await client.aclose()
        return not self._left

    def has(self, run_id: str) -> bool:
        """Whether it has had this run's last event that it wants, or a gap that says that the run has ended."""
        whole = self.seen.filter.wants(T.RUN_END, "", None, run_id)
        return any(
            e.run_id == run_id
            and (e.event_type is (T.RUN_END if whole else T.CHAIN_END) or "run_status" in e.data)
            for e in reversed(self.seen.events)
        )

    async def stop(self) -> None:
        """Leave."""
        self._left = True
        if self._client is not None:
            await self._client.aclose()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task


class DeafViewer:
    """Subscribes to everything, and never reads."""

    def __init__(self, relay: Relay, token: str) -> None:
        self.relay = relay
        self._token = token
        self._socket = socket.socket()
        self._task: asyncio.Task[Any] | None = None

    def start(self) -> None:
        """Connect."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)
        self._task = asyncio.create_task(self._connect(), name="fleet-faults-deaf")

    async def _connect(self) -> None:
        with suppress(OSError, InvalidHandshake):  # the hub may be away: it tries once
            await subscribe_deaf(self._socket, self.relay.url, self._token)

    async def stop(self) -> None:
        """Leave."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._socket.close()
