"""A process with a hub: `python -m benchmarks.fleet_hub '{"history_bytes": 1048576}'`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.helper import obey
from benchmarks.serve_house import until
from rollcast.archive import ArchiveObserver
from rollcast.fleet.collector import collect_seldom
from rollcast.fleet.hub import Hub
from rollcast.serve import ServerSettings, WebSocketStreamingServer
from rollcast.serve.settings import Token
from rollcast.stream import StreamingManager

__all__ = ["TOKEN", "main"]

TOKEN = "of-this-benchmark"


class Stage:
    """A hub, and what can be asked of it."""

    def __init__(self, record: str | None, settings: dict[str, Any]) -> None:
        token = Token(TOKEN, ("read", "publish"))
        self.server = WebSocketStreamingServer(
            "127.0.0.1", 0, settings=ServerSettings(tokens=(token,), close_s=0.2, **settings)
        )
        self.manager = StreamingManager(drain_timeout=60)
        if record is not None:
            self.manager.add_observer(ArchiveObserver(Path(record) / "record", lossless=True))
        self.hub = Hub(self.server, self.manager)

    async def stand(self) -> dict[str, Any]:
        """What the hub has taken so far, and what it cost."""
        statistics, totals = self.server.statistics(), self.manager.totals()
        return {
            "cpu": time.process_time(),
            "connections": statistics.connections,
            "subscriptions": statistics.subscriptions,
            "open_chains": totals.open_chains,
            "open_runs": totals.open_runs,
            "events": totals.emitted,
            "closed_slow": statistics.closed_slow,
        }

    async def settle(self) -> dict[str, Any]:
        """Wait until the operating system has taken everything for the viewers."""
        await self.manager.drain()
        self.server._broadcaster.flush()
        clients = list(self.server._clients)
        await until(lambda: not any(client.unsent() for client in clients))
        return await self.stand()


async def main() -> None:
    """Perform the actions on standard input until it closes."""
    options = json.loads(sys.argv[1])
    stage = Stage(options.pop("record", None), options)
    async with stage.hub:
        collect_seldom()  # as `rollcast hub` does
        await obey(
            {"url": stage.server.url, "port": stage.server.port},
            {"stand": stage.stand, "settle": stage.settle},
        )
    await stage.manager.aclose()


if __name__ == "__main__":
    asyncio.run(main())
