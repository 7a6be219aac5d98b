"""The hub of a process that has runners elsewhere: their events come here, as if they ran here."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Collection

from rollcast.fleet.hub import Hub
from rollcast.serve.environment import HUB, TOKEN
from rollcast.serve.server import WebSocketStreamingServer
from rollcast.serve.settings import ServerSettings, Token
from rollcast.stream import StreamingManager

__all__ = ["RunnersHub", "environment_of_hub"]

LOOK_S = 0.02
READ_S = 2.0  # how long reading what a runner had sent may take after its death


def environment_of_hub() -> dict[str, str]:
    """What makes other processes producers of the hub of which this one is a producer; empty if the environment names none."""
    return {name: os.environ[name] for name in (HUB, TOKEN) if os.environ.get(name)}


class RunnersHub:
    """Relays what runners publish into a manager, whose observers see it. Only they may connect; nobody watches through it.

    Args:
        manager: the manager.
        host: the address at which the runners reach this process.
    """

    def __init__(self, manager: StreamingManager, host: str) -> None:
        self._closings: set[asyncio.Future[None]] = set()  # of the parts of runners that died
        self._token = secrets.token_urlsafe(24)
        self._host = host
        settings = ServerSettings(
            tokens=(Token(self._token, ("publish",)),), hosts=(host,), history_bytes=0, close_s=1.0
        )
        server = WebSocketStreamingServer(host, 0, settings=settings)
        self._hub = Hub(server, manager, viewers=False)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process a producer of this hub."""
        return {HUB: self._hub.server.url, TOKEN: self._token}

    async def start(self) -> None:
        """Listen."""
        await self._hub.start()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._hub.aclose()

    def died(self, source: str) -> None:
        """A runner is dead: once everything that it sent is read, what it left open is closed as lost.

        Its part of a run counts as completed, since its chains run again elsewhere.
        """
        closing = asyncio.ensure_future(self._close_part_of(source))
        self._closings.add(closing)
        closing.add_done_callback(self._closings.discard)

    async def _close_part_of(self, source: str) -> None:
        give_up = time.monotonic() + READ_S
        while self._hub.intake.producers.is_connected(source):
            if time.monotonic() >= give_up:
                break
            await asyncio.sleep(LOOK_S)
        self._hub.lost(source, "completed")

    async def have_ended(self, run_id: str, sources: Collection[str], timeout: float) -> list[str]:
        """Wait until these runners' parts of a run have ended here, and those of runners that died.

        Returns:
            Those that had not within `timeout` seconds; their parts are closed as those of the dead are.
        """
        give_up = time.monotonic() + timeout
        while late := [source for source in sources if not self._hub.intake.runs.has_ended(run_id, source)]:
            if time.monotonic() >= give_up:
                break
            await asyncio.sleep(LOOK_S)
        for source in late:
            self._hub.lost(source, "completed")
        await asyncio.gather(*self._closings)
        return late
