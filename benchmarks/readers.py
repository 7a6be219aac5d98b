"""A process that opens WebSocket connections, subscribes, and discards what comes: `readers.py '{"port": 8765}'`.

It uses only sockets, since what a real client does with the events is not the server's cost. At the end it prints what came, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from array import array
from typing import Any

__all__ = ["main"]

REQUEST = (
    "GET /{query} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)
SUBPROTOCOL = "Sec-WebSocket-Protocol: rollcast.v1\r\n"
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
SENT_AT = re.compile(rb"t(\d+\.\d{6}) ")  # the clock that all processes share, as the token's text
TAIL = 40  # bytes that may hold the beginning of such a token


class Reader(asyncio.Protocol):
    """One connection.

    Args:
        request: the request of the handshake.
        frames: the frames to send after it.
        waits: gets the seconds that each token was under way, if they are measured.
    """

    def __init__(self, request: str, frames: list[dict[str, Any]], waits: array[float] | None) -> None:
        self.request = request
        self.frames = frames
        self.waits = waits
        self.bytes = 0
        self.tail = b""
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self.request.encode())
        for frame in self.frames:  # text, masked with zeroes
            text = json.dumps(frame).encode()
            size = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xfe" + len(text).to_bytes(2)
            transport.write(b"\x81" + size + bytes(4) + text)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.bytes += len(data)
        if self.waits is None:
            return
        text, end = self.tail + data, 0
        for found in SENT_AT.finditer(text):
            self.waits.append(now - float(found[1]))
            end = found.end()
        self.tail = text[max(end, len(text) - TAIL) :]

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set_result(None)


async def main(
    port: int,
    readers: int = 1,
    *,
    plain: bool = False,
    deflate: bool = False,
    query: str = "",
    filters: list[dict[str, Any]] | None = None,
    clocked: int = 0,
) -> dict[str, Any]:
    """Read until the server closes.

    Args:
        port: the server's port, on this machine.
        readers: how many connections.
        plain: without the subprotocol.
        deflate: offer compression.
        query: the URL's query, with its question mark.
        filters: one per reader.
        clocked: measure the latency of tokens for one reader in this many; 0: for none.

    Returns:
        The `bytes` that came, with handshakes, how many `tokens` were clocked, and the median and 99th percentile of their
        latency, in milliseconds.
    """
    loop, waits = asyncio.get_running_loop(), array("d")
    more = ("" if plain else SUBPROTOCOL) + (DEFLATE if deflate else "")
    request = REQUEST.format(port=port, query=query, more=more)
    audience = []
    for i in range(readers):
        subscribe = {"type": "subscribe", "id": "1", "filter": filters[i] if filters else {}}
        frames: list[dict[str, Any]] = [] if plain else [{"type": "hello"}, subscribe]
        audience.append(Reader(request, frames, waits if clocked and i % clocked == 0 else None))
        await loop.create_connection(lambda: audience[-1], "127.0.0.1", port)
    await asyncio.wait([reader.gone for reader in audience])
    came: dict[str, Any] = {"bytes": sum(reader.bytes for reader in audience), "tokens": len(waits)}
    if waits:
        ordered = sorted(waits)
        came |= {f"p{p}": ordered[len(ordered) * p // 100] * 1e3 for p in (50, 99)}
    return came


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(**json.loads(sys.argv[1])))))
