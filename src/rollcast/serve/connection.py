"""A server's connection that limits what a flooding or idle peer can use, and that shows whether bytes are moving."""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame, Opcode

from rollcast.serve.protocol import Rate

__all__ = ["Gate", "GuardedConnection"]

PINGS_PER_S = 10  # each is answered with as many bytes, which wait here if the peer does not read
FRAMES_PER_MESSAGE = 16  # how many frames a message may have, on average
HANDSHAKES = 256  # how many connections may be in their handshake besides the established ones
SPARE_FILES = 2  # connections may take one in so many of the process's files


class Gate:
    """How many TCP connections a server has, and may have. Those that have not sent a request count too.

    They never take more than half the files that the process may open, since a rollout needs files too.

    Args:
        connections: see `ServerSettings`.
        messages_per_s: see `Limits`.
        tls: the TLS context; None: no TLS.
        handshake_s: how many seconds the TLS handshake may take.
    """

    def __init__(
        self,
        connections: int,
        messages_per_s: int,
        tls: ssl.SSLContext | None = None,
        handshake_s: float = 5.0,
    ) -> None:
        files = _files()
        self.most = connections + HANDSHAKES
        if files is not None:
            self.most = max(1, min(self.most, files // SPARE_FILES))
        self.messages_per_s = messages_per_s
        self.tls = tls
        self.handshake_s = handshake_s
        self.open = 0
        self.handshakes: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """End the open TLS handshakes."""
        for task in self.handshakes:
            task.cancel()
        await asyncio.gather(*self.handshakes, return_exceptions=True)


class GuardedConnection(ServerConnection):
    """Limits what websockets does before any of our code runs.

    That includes the TLS handshake: `create_server(ssl=…)` reports a connection only after it, so a thousand clients that
    never finish theirs would be neither counted nor refused.
    """

    def __init__(self, gate: Gate, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._gate = gate
        self._counted = self._ready = self._lost = False
        self.received = 0  # bytes
        self.on_room: Callable[[], object] = lambda: None  # called when the connection can take more again
        self._early: list[bytes] = []  # bytes that came together with the end of the TLS handshake
        self._pings = Rate(PINGS_PER_S, time.monotonic)
        self._frames = Rate(FRAMES_PER_MESSAGE * gate.messages_per_s, time.monotonic)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the connection, or abort it if the server is full."""
        assert isinstance(transport, asyncio.Transport)
        gate = self._gate
        gate.open += 1
        self._counted = True
        full = gate.open > gate.most
        if gate.tls is None:
            self._begin(transport)
            if full:
                transport.abort()
        elif full:
            transport.abort()
        else:
            task = asyncio.get_running_loop().create_task(self._secure(transport, gate.tls))
            gate.handshakes.add(task)
            task.add_done_callback(gate.handshakes.discard)

    async def _secure(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        """Do the TLS handshake, then begin the connection. A failed handshake is the client's problem and is not logged."""
        if self._lost:
            return
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport, self, tls, server_side=True, ssl_handshake_timeout=self._gate.handshake_s
            )
        except OSError:  # including TLS errors, resets and timeouts
            secured = None
        except asyncio.CancelledError:  # the server stops
            transport.abort()
            self._leave()
            raise
        if secured is None or self._lost:
            transport.abort()
            self._leave()
            return
        self._begin(secured)
        for data in self._early:
            super().data_received(data)
        self._early.clear()

    def _begin(self, transport: asyncio.Transport) -> None:
        self._ready = True
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self._ready:
            super().data_received(data)
        else:
            self._early.append(data)

    def resume_writing(self) -> None:
        """Called when most of the waiting bytes were sent."""
        super().resume_writing()
        self.on_room()

    def undelivered(self) -> int:
        """Bytes that wait here or, if the operating system shows it (Linux does), that the peer has not acknowledged."""
        sock = self.transport.get_extra_info("socket")
        return self.transport.get_write_buffer_size() + (0 if sock is None else _in_flight(sock.fileno()))

    def eof_received(self) -> None:
        """Called when the client has sent its last byte."""
        if self._ready:
            super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the connection has ended, perhaps before it began."""
        self._lost = True
        self._leave()
        if self._ready:
            super().connection_lost(exc)

    def _leave(self) -> None:
        if self._counted:
            self._counted = False
            self._gate.open -= 1

    def process_event(self, event: Any) -> None:
        """Called for each request or frame; aborts a connection that sends too many frames."""
        super().process_event(event)
        if not isinstance(event, Frame) or event.opcode is Opcode.CLOSE:
            return
        rate = self._pings if event.opcode is Opcode.PING else self._frames
        if not rate.spend():
            self.transport.abort()


def _in_flight(descriptor: int) -> int:
    """How many bytes of a TCP socket were sent and not acknowledged; 0 if the system does not say."""
    if sys.platform != "linux" or descriptor < 0:
        return 0
    import fcntl  # noqa: PLC0415  (there is none on Windows)
    import termios  # noqa: PLC0415

    try:
        told = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int.from_bytes(told, sys.byteorder)


def _files() -> int | None:
    """How many files the process may have open; None if there is no limit."""
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415  (there is none on Windows)

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
