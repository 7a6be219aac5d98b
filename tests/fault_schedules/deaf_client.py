"""A server with a client that subscribes to everything and never reads."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from rollcast.serve import ServerSettings, WebSocketStreamingServer
from rollcast.serve.protocol import Hello, Subscribe, encode_frame
from rollcast.stream import StreamingManager

__all__ = ["deaf_client", "subscribe_deaf"]


@asynccontextmanager
async def deaf_client(manager: StreamingManager) -> AsyncIterator[None]:
    """Both are there while the block runs."""
    server = WebSocketStreamingServer("127.0.0.1", 0, settings=ServerSettings(close_s=0.01))
    await server.start()
    manager.add_observer(server.get_observer())
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await subscribe_deaf(client, server.url)
        try:
            yield
        finally:
            manager.remove_observer(server.get_observer())
            await server.stop()


async def subscribe_deaf(client: socket.socket, url: str, token: str | None = None) -> None:
    """Connect to the server and subscribe to everything; what it answers is for somebody else to read, or for nobody.

    Raises:
        OSError: it cannot be reached.
    """
    loop = asyncio.get_running_loop()
    protocol = ClientProtocol(parse_uri(url), subprotocols=["rollcast.v1"], max_size=None)  # type: ignore[list-item]
    await loop.sock_connect(client, (protocol.uri.host, protocol.uri.port))
    protocol.send_request(protocol.connect())
    while protocol.state.name == "CONNECTING":
        for data in protocol.data_to_send():
            await loop.sock_sendall(client, data)
        if not (received := await loop.sock_recv(client, 1 << 12)):
            raise ConnectionResetError("the server closed the connection")
        protocol.receive_data(received)
        if protocol.handshake_exc is not None:
            raise protocol.handshake_exc
    for frame in (Hello(token), Subscribe("1")):
        protocol.send_text(encode_frame(frame))
    for data in protocol.data_to_send():
        await loop.sock_sendall(client, data)
