"""The connection of one client, and sending messages that are framed once for all clients that get the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable

from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.protocol import Protocol, Side, State

from rollcast.serve.clients import TOO_SLOW
from rollcast.serve.connection import GuardedConnection
from rollcast.serve.protocol import CloseCode, ErrorFrame, ServerFrame, encode_frame
from rollcast.serve.settings import ServerSettings

__all__ = ["DEFLATE", "REASON_BYTES", "Client", "transmit"]

OPEN = State.OPEN
REASON_BYTES = 123  # the longest reason of a close (RFC 6455)

# Each message is compressed on its own, so a batch is compressed once for all clients that share it, and no client holds
# a window (32 to 256 KiB) between messages. Batches have enough repetition: 50 events shrink to a seventh
# (benchmarks/serve_wire.py). Level 1 takes half the time of the usual level 6.
DEFLATE = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True,
    client_no_context_takeover=True,
    compress_settings={"level": 1},
)


class Client:
    """A connection, as the broadcaster sees it.

    Args:
        connection: the connection, after its handshake.
        settings: the server's settings.
        closing: called with each task that closes a connection, so that the server can wait for it.
        plain: whether it gets one event per message without frames.

    Attributes:
        closed: whether nothing more may be sent.
        max_message: the size of the largest message that it takes, in bytes.
        parts: whether it understands batches in parts.
        given: how many bytes were written for it.
        encoding: connections with the same value can be sent the same bytes.
        transport, protocol: those of the connection. They are kept here, in slots, since each object on the way to a socket is
            out of the cache by the time the kernel has copied a batch for the client before.
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
        self._answers = 0  # bytes of frames that were sent since the client last kept up
        self._progress = (0, 0)  # bytes that came, and that were taken
        self._waited = 0  # bytes that were not delivered, when that was looked at

    def unsent(self) -> int:
        """How many bytes wait here, without those in the operating system."""
        return self.transport.get_write_buffer_size()

    def keeps_up(self) -> bool:
        """Whether no more than `client_buffer` bytes wait."""
        return self.unsent() <= self._settings.client_buffer

    def send(self, frame: ServerFrame) -> None:
        """Send a frame without waiting. A client that sends requests and never reads the answers is closed."""
        data, most = encode_frame(frame), self._settings.client_buffer
        if self.unsent() <= most:
            self._answers = 0
        elif self._answers > most:
            self.close(CloseCode.TOO_SLOW, TOO_SLOW)
            return
        self._answers += len(data)  # one may be larger than the buffer, such as a long list of runs
        transmit([self], data)

    def moved(self) -> bool:
        """Whether, since the last call, bytes came from the client or it took some of those that waited for it.

        Bytes that it takes at once do not count, since a hanging client's operating system takes those too.
        """
        waits = self.connection.undelivered()
        came, taken = self._progress
        self._progress = (self.connection.received, self.given - waits)
        waited, self._waited = self._waited, waits
        return self._progress[0] != came or (self._progress[1] != taken and bool(waited or waits))

    async def ping(self) -> None:
        """Ping a plain client; its answer counts as bytes that come."""
        if not self.unsent():  # otherwise the ping would wait behind them
            await self.connection.ping()

    def close(self, code: CloseCode, message: str, short: str | None = None) -> None:
        """Send the reason, and close. This does not wait.

        Args:
            code: the code of the close, and of the `error` before it.
            message: the reason.
            short: a shorter reason for the close itself, if the message is too long for that.
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
    """Give the messages to each open connection, without waiting.

    `websockets.broadcast` frames each message for each connection and writes them one by one. Here frames are made once
    for all connections with one encoding (text is not masked and, with `DEFLATE`, does not depend on earlier messages) and
    written together, straight to the transports. No code here sends a message in fragments, so this cannot split one.
    """
    made: dict[str, bytes] = {}
    latest: str | None = None
    frames, size = b"", 0
    for client in clients:
        transport, encoding = client.transport, client.encoding
        if client.protocol.state is not OPEN or transport.is_closing():
            continue
        if encoding is not latest:  # most have that of the one before
            if encoding not in made:
                made[encoding] = _framed(messages, client)
            frames, latest, size = made[encoding], encoding, len(made[encoding])
        client.given += size
        transport.write(frames)


class _Framers(threading.local):
    """A thread's own server side of a connection without sockets, which makes uncompressed frames."""

    def __init__(self) -> None:
        self.plain = Protocol(Side.SERVER)


_framers = _Framers()


def _framed(messages: Iterable[bytes], client: Client) -> bytes:
    """The messages as frames for every client with this client's encoding."""
    framer = _framers.plain
    if client.encoding:
        framer = Protocol(Side.SERVER)
        framer.extensions = client.protocol.extensions
    for message in messages:
        framer.send_text(message)
    frames = framer.data_to_send()
    return frames[0] if len(frames) == 1 else b"".join(frames)
