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
from collections import Counter
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
EVENT = b'{"event_type":'
HEAD = re.compile(EVENT + rb'"(\w+)","chain_id":"[^"]*","timestamp":([\d.e+]+)')
IDS = re.compile(rb'"token_ids":\[([^\]]*)\]')


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


class Auditor(Reader):
    """One connection whose events are counted by type, with their tokens, and how late each was by its timestamp.

    Args:
        request, frames: as for `Reader`.
        waits: gets the seconds that each event was under way.
    """

    def __init__(self, request: str, frames: list[dict[str, Any]], waits: array[float]) -> None:
        super().__init__(request, frames, waits)
        self.events: Counter[str] = Counter()
        self.event_tokens = 0
        self._tail_came = 0.0

    def data_received(self, data: bytes) -> None:
        now = time.time()
        self.bytes += len(data)
        text, early = self.tail + data, len(self.tail)
        cut = max(text.rfind(EVENT), 0)
        self._take(text[:cut], early, now)
        self.tail = text[cut:]
        if cut >= early:
            self._tail_came = now

    def _take(self, text: bytes, early: int, now: float) -> None:
        """Count whole events; what begins before `early` came with the data before."""
        assert self.waits is not None
        for head in HEAD.finditer(text):
            self.events[head[1].decode()] += 1
            self.waits.append((self._tail_came if head.start() < early else now) - float(head[2]))
        for ids in IDS.finditer(text):
            self.event_tokens += ids[1].count(b",") + 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._take(self.tail, len(self.tail), 0.0)
        super().connection_lost(exc)


async def main(
    port: int,
    readers: int = 1,
    *,
    plain: bool = False,
    deflate: bool = False,
    query: str = "",
    filters: list[dict[str, Any]] | None = None,
    clocked: int = 0,
    audited: int = 0,
    token: str | None = None,
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
        audited: count the events of one reader in this many, and measure their latency by their timestamps; 0: of none.
        token: for the server.

    Returns:
        The `bytes` that came, with handshakes, how many `tokens` were clocked, and percentiles of the latency in milliseconds, as
        `p50`, `p95` and `p99`. If some were audited, `audits` has for each its events by type and its tokens.
    """
    loop, waits = asyncio.get_running_loop(), array("d")
    more = ("" if plain else SUBPROTOCOL) + (DEFLATE if deflate else "")
    request = REQUEST.format(port=port, query=query, more=more)
    audience: list[Reader] = []
    for i in range(readers):
        subscribe = {"type": "subscribe", "id": "1", "filter": filters[i] if filters else {}}
        hello = {"type": "hello"} if token is None else {"type": "hello", "token": token}
        frames: list[dict[str, Any]] = [] if plain else [hello, subscribe]
        if audited and i % audited == 0:
            audience.append(Auditor(request, frames, waits))
        else:
            audience.append(Reader(request, frames, waits if clocked and i % clocked == 0 else None))
        await loop.create_connection(lambda: audience[-1], "127.0.0.1", port)
    await asyncio.wait([reader.gone for reader in audience])
    came: dict[str, Any] = {"bytes": sum(reader.bytes for reader in audience), "tokens": len(waits)}
    if waits:
        ordered = sorted(waits)
        came |= {f"p{p}": ordered[len(ordered) * p // 100] * 1e3 for p in (50, 95, 99)}
    if audited:
        audits = [reader for reader in audience if isinstance(reader, Auditor)]
        came["audits"] = [{"events": audit.events, "tokens": audit.event_tokens} for audit in audits]
    return came


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(**json.loads(sys.argv[1])))))
