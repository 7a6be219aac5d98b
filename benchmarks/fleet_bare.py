"""A process with the least that can stand for a hub: it passes on every message to every viewer, and looks at no event.

`python -m benchmarks.fleet_bare '{}'`. It speaks as much of `rollcast.v1` as the producers and viewers of a benchmark need, with the
websockets library's own `broadcast`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import msgspec
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

from benchmarks.fleet_hub import TOKEN
from benchmarks.helper import obey
from benchmarks.serve_house import until
from rollcast.serve import ServerSettings
from rollcast.serve.protocol import (
    Ack,
    FilterFrame,
    Hello,
    Interest,
    Publish,
    Subscribe,
    Subscribed,
    Welcome,
    batch_frame,
    decode_client_frame,
    encode_frame,
)

__all__ = ["main"]

FOR_EVER_S = 1e6


class Relay:
    """The viewers, and what they were sent."""

    def __init__(self) -> None:
        self._viewers: set[ServerConnection] = set()
        self._position = 0

    async def talk(self, connection: ServerConnection) -> None:
        """Serve one producer or viewer."""
        with suppress(ConnectionClosed):  # readers do not say that they leave
            async for message in connection:
                match decode_client_frame(message):
                    case Hello(role=role, token=token):
                        assert token == TOKEN
                        await self._greet(connection, role)
                    case Subscribe(id):
                        await _send(connection, Subscribed(id, recovered=True, cursor="0"))
                        self._viewers.add(connection)
                    case Publish(seq, events):
                        self._position += len(events)
                        batch = batch_frame("1", str(self._position), b",".join(events))
                        broadcast(self._viewers, batch, text=True)
                        await _send(connection, Ack(seq + len(events) - 1))

    async def _greet(self, connection: ServerConnection, role: str) -> None:
        limits = ServerSettings().limits_of(role, ("publish",))
        is_producer = role == "producer"
        acked = 0 if is_producer else None
        welcome = Welcome(1, [], FOR_EVER_S, limits, ["publish"], features=["hub"], acked=acked)
        await _send(connection, welcome)
        if is_producer:
            await _send(connection, Interest(1, [FilterFrame()], FOR_EVER_S))

    async def stand(self) -> dict[str, Any]:
        """As of a hub."""
        return {"cpu": time.process_time(), "subscriptions": len(self._viewers), "closed_slow": 0}

    async def settle(self) -> dict[str, Any]:
        """Wait until the operating system has taken everything for the viewers."""
        await until(lambda: not any(each.transport.get_write_buffer_size() for each in self._viewers))
        return await self.stand()


async def _send(connection: ServerConnection, frame: msgspec.Struct) -> None:
    await connection.send(encode_frame(frame), text=True)  # type: ignore[arg-type]  # it is one of the frames


async def main() -> None:
    """Perform the actions on standard input until it closes."""
    relay = Relay()
    async with serve(
        relay.talk, "127.0.0.1", 0, subprotocols=["rollcast.v1"], compression=None, ping_interval=None, max_size=None,
        close_timeout=0.2
    ) as server:  # fmt: skip
        port = next(iter(server.sockets)).getsockname()[1]
        await obey(
            {"url": f"ws://127.0.0.1:{port}", "port": port},
            {"stand": relay.stand, "settle": relay.settle},
        )


if __name__ == "__main__":
    asyncio.run(main())
