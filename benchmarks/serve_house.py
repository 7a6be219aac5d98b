"""A server and its audience, which reads in another process, so that its cost is not counted."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rollcast.serve import ServerSettings, WebSocketStreamingServer
from rollcast.stream import GenerationWriter, RunWriter, StreamingManager

__all__ = ["Audience", "House", "until"]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds.

    Raises:
        TimeoutError: it did not hold within a minute.
    """
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (the server does not announce these states)
            await asyncio.sleep(0.001)


class Audience:
    """Clients of `readers.py`; `options` are those of its `main`."""

    def __init__(self, port: int, **options: Any) -> None:
        command = [sys.executable, str(Path(__file__).with_name("readers.py"))]
        self._process = subprocess.Popen(
            [*command, json.dumps({"port": port, **options})], stdout=subprocess.PIPE
        )

    async def left(self) -> dict[str, Any]:
        """Wait until the server has closed; return what came."""
        told, _ = await asyncio.to_thread(self._process.communicate)
        came: dict[str, Any] = json.loads(told)
        return came


class House:
    """A server with its audience.

    Args:
        settings: the server's settings, beside those that make it wait for `flush`, stop soon, and send no pings.
    """

    def __init__(self, **settings: Any) -> None:
        self.manager = StreamingManager()
        usual = {"batch_s": 3600.0, "heartbeat_s": 3600.0, "history_bytes": 8 << 20, "close_s": 0.2}
        settings = {**usual, **settings}
        self.server = WebSocketStreamingServer("127.0.0.1", 0, settings=ServerSettings(**settings))
        self.came: dict[str, Any] = {}
        self._audience: Audience | None = None
        self._readers: list[Any] = []
        self.run: RunWriter

    async def open(self, readers: int = 0, **options: Any) -> None:
        """Begin, and wait until all have subscribed; `options` as in `readers.py`."""
        await self.server.start()
        self.manager.add_observer(self.server.get_observer())
        self.run = self.manager.run().open()  # it begins when clients may be watching
        if readers:
            self._audience = await asyncio.to_thread(
                lambda: Audience(self.server.port, readers=readers, **options)
            )
        await until(lambda: self.server.statistics().subscriptions == readers)
        self._readers = list(self.server._clients)
        await self.sent()

    async def chains(self, count: int) -> list[GenerationWriter]:
        """Open chains of the run, `chain_0` and so on, each with an open generation."""
        return [self.run.chain().start().generation().start() for _ in range(count)]

    async def close(self) -> None:
        """Close everything; then `came` has the audience's report."""
        self.run.close()
        await self.manager.aclose()
        await self.server.stop()
        if self._audience is not None:
            self.came = await self._audience.left()

    async def flush(self) -> None:
        """Send what was emitted, now."""
        await self.manager.drain()
        self.server._broadcaster.flush()

    async def sent(self) -> None:
        """Wait until the operating system has taken everything for the audience."""
        await until(lambda: not any(client.unsent() for client in self._readers))
