"""A process that opens WebSocket connections, subscribes, and throws away what comes: `readers.py PORT HOW_MANY`.

Only sockets: what a real client does with the events is not the server's cost.
"""

from __future__ import annotations

import asyncio
import sys

__all__ = ["main"]

REQUEST = (
    "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Protocol: rollcast.v1\r\n\r\n"
)
FRAMES = (b'{"type":"hello"}', b'{"type":"subscribe","id":"1"}')


class Reader(asyncio.Protocol):
    """One connection."""

    def __init__(self, port: int, left: list[asyncio.Future[None]]) -> None:
        self.port = port
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        left.append(self.gone)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(REQUEST.format(port=self.port).encode())
        for frame in FRAMES:  # text, masked with zeroes
            transport.write(bytes([0x81, 0x80 | len(frame), 0, 0, 0, 0]) + frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set_result(None)


async def main(port: int, readers: int) -> None:
    """Read until the server closes."""
    loop, left = asyncio.get_running_loop(), []
    for _ in range(readers):
        await loop.create_connection(lambda: Reader(port, left), "127.0.0.1", port)
    await asyncio.wait(left)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
