"""A client's end of the way: what it is sent, framed once for all that are sent the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable

from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.protocol import Protocol, Side, State

from rollcast.serve.connection import GuardedConnection
from rollcast.serve.protocol import CloseCode, ErrorFrame, ServerFrame, encode_frame
from rollcast.serve.settings import ServerSettings

__all__ = ["DEFLATE", "REASON_BYTES", "Client", "transmit"]

OPEN = State.OPEN
REASON_BYTES = 123  # of a close, at most (RFC 6455)

# Each message is compressed from nothing, so a batch is compressed once for all clients that share it, and no client holds
# a window (32 to 256 KiB) between messages. Batches repeat themselves enough: 50 events shrink to a seventh
# (benchmarks/serve_wire.py). Level 1 takes half the time of the usual 6.
DEFLATE = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True,
    client_no_context_takeover=True,
    compress_settings={"level": 1},
)


class Client:
    """A connection, as the broadcaster sees it.

    Args:
        connection: after its handshake.
        settings: of the server.
        closing: is told of each task that closes, so that somebody waits for it.
        plain: one event a message and no frames around them.

    Attributes:
        closed: nothing more is to be sent.
        max_message: bytes of the largest message that it is sent.
        parts: whether it knows that a batch may come in parts.
        given: bytes that were written for it.
        encoding: connections that have the same can be sent the same bytes.
        transport, protocol: of the connection. Kept here, and in slots, since each object that is looked through on the way
            to a socket is far away in memory by the time the kernel has copied a batch for the client before.
    """

    __slots__ = (
        "__weakref__", "_answers", "_closing", "_progress", "_settings", "_waited", "closed", "connection", "encoding", "given",
        "max_message", "parts", "plain", "protocol", "transport",
    )  # fmt: skip

    def __init__(
        self,
        connection: GuardedConnection,
        settings: ServerSettings,
        closing: Callable[[asyncio.Task[None]], None],
        *,
        plain: bool,
    ) -> None:
        self.connection = connection
        self.transport = connection.transport
        self.protocol = connection.protocol
        self.plain = plain
        self.closed = False
        self.parts = False
        self.given = 0
        self.max_message = settings.plain_message_bytes
        response = connection.response
        self.encoding = response.headers.get("Sec-WebSocket-Extensions", "") if response else ""
        self._settings = settings
        self._closing = closing
        self._answers = 0  # bytes of frames that wait, at most
        self._progress = (0, 0)  # bytes that came, and that were taken
        self._waited = 0  # bytes that were not delivered, when that was looked at

    def unsent(self) -> int:
        """Bytes that wait here; what the operating system holds is not counted."""
        return self.transport.get_write_buffer_size()

    def keeps_up(self) -> bool:
        """Whether what waits is no more than may."""
        return self.unsent() <= self._settings.client_buffer

    def send(self, frame: ServerFrame) -> None:
        """Send a frame without waiting. A client that asks and never reads the answers is closed."""
        data, most = encode_frame(frame), self._settings.client_buffer
        if self.unsent() <= most:
            self._answers = 0
        self._answers += len(data)
        transmit([self], data)
        if self._answers > most:
            self.close(CloseCode.TOO_SLOW, "this client reads too slowly; reconnect with its cursor")

    def moved(self) -> bool:
        """Whether, since this was last asked, bytes came from the client, or it took some of those that waited for it.

        What it takes at once says nothing: the operating system of a client that hangs takes that too.
        """
        waits = self.connection.undelivered()
        came, taken = self._progress
        self._progress = (self.connection.received, self.given - waits)
        waited, self._waited = self._waited, waits
        return self._progress[0] != came or (self._progress[1] != taken and bool(waited or waits))

    async def ping(self) -> None:
        """Ask a plain client whether it is there; its answer is bytes that come."""
        if not self.unsent():  # else the question would wait behind them
            await self.connection.ping()

    def close(self, code: CloseCode, message: str, short: str | None = None) -> None:
        """Say why, and close. Does not wait.

        Args:
            code: of the close, and of the `error` before it.
            message: why.
            short: the same for the close itself, if the message is longer than that may be.
        """
        if self.closed:
            return
        self.closed = True
        if not self.plain:
            transmit([self], encode_frame(ErrorFrame(code, message)))
        reason = (short or message).encode()[:REASON_BYTES].decode("utf-8", "ignore")
        loop = asyncio.get_running_loop()
        self._closing(loop.create_task(self._close(code, reason), name="rollcast-server-close"))

    async def _close(self, code: CloseCode, reason: str) -> None:
        """Close within `close_s`, whether or not the client reads."""
        try:
            async with asyncio.timeout(self._settings.close_s):
                await self.connection.close(code, reason)
        except TimeoutError:
            self.transport.abort()


def transmit(clients: Iterable[Client], /, *messages: bytes) -> None:
    """Give the messages to each connection, without waiting; those that have closed are passed over.

    As `websockets.broadcast`, which frames each message for each connection and writes it alone. Here frames are made once
    for all connections of one encoding (text is not masked and, with `DEFLATE`, depends on nothing that was sent before)
    and written together, straight to the transports. Nothing here sends a message in fragments, so none is cut in two.
    """
    made: dict[str, bytes] = {}
    for client in clients:
        transport = client.transport
        if client.protocol.state is not OPEN or transport.is_closing():
            continue
        frames = made.get(client.encoding)
        if frames is None:
            frames = made[client.encoding] = _framed(messages, client)
        client.given += len(frames)
        transport.write(frames)


class _Framers(threading.local):
    """A thread's own: the server's side of a connection without sockets, which makes frames that nothing compresses."""

    def __init__(self) -> None:
        self.plain = Protocol(Side.SERVER)


_framers = _Framers()


def _framed(messages: Iterable[bytes], client: Client) -> bytes:
    """The messages as frames, for every client with the encoding of this one."""
    framer = _framers.plain
    if client.encoding:
        framer = Protocol(Side.SERVER)
        framer.extensions = client.protocol.extensions
    for message in messages:
        framer.send_text(message)
    frames = framer.data_to_send()
    return frames[0] if len(frames) == 1 else b"".join(frames)
