"""A TCP relay that does to a connection what a bad network does.

    async with Relay("127.0.0.1", hub_port, seed=7) as relay:
        connect(relay.url)
        relay.weather = Weather(delay_s=0.2, loss=0.05, resend_s=0.2)
        relay.cut()      # every connection is reset, and new ones are too, until
        relay.mend()
        relay.vanish()   # bytes go nowhere any more, and nobody is told: connections that were open stay so for ever

A relay of TCP cannot lose bytes. What loss looks like above TCP is that a segment comes late, after it was sent again, and that all
that follows it waits for it; that is what `loss` does.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

__all__ = ["CLEAR", "Relay", "Weather"]

SEGMENT = 1448  # bytes of a TCP segment on Ethernet
WINDOW = 256 << 10  # bytes that are on their way in one direction; beyond that the sender waits
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


@dataclass(frozen=True)
class Weather:
    """How the network is.

    Attributes:
        delay_s: how long each byte takes, in either direction.
        loss: the share of segments, from 0 to 1, that get lost and are sent again.
        resend_s: how long that takes; what follows waits for it.
    """

    delay_s: float = 0.0
    loss: float = 0.0
    resend_s: float = 0.2


CLEAR = Weather()


class Relay:
    """Listens on loopback, and passes on to another port there what comes, in both directions.

    Args:
        host, port: where it passes connections on to. The attribute `target` may change; connections that are open stay.
        seed: of the loss.

    Attributes:
        weather: how the network is from now on.
        passed: how many bytes it has passed on, in both directions together.
        opened: how many connections there were.
    """

    def __init__(self, host: str, port: int, seed: int = 0) -> None:
        self.target = (host, port)
        self.weather = CLEAR
        self.passed = 0
        self.opened = 0
        self._rng = random.Random(seed)
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._is_cut = False
        self._cut_at: int | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=WINDOW)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._is_cut = True
        while self._links:
            for link in list(self._links):
                link.end()
            await asyncio.sleep(0)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """The WebSocket address at which it listens."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """How many connections there are, those that have vanished included."""
        return len(self._links)

    # -- what goes wrong -----------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset every connection, and each that is opened before `mend`."""
        self._is_cut = True
        for link in list(self._links):
            link.end()

    def cut_after(self, more: int) -> None:
        """Cut once so many more bytes have passed: after that very byte, wherever in a frame it is."""
        self._cut_at = self.passed + more

    def stall(self) -> None:
        """Pass on nothing until `mend`; nothing is lost, and nothing is closed."""
        self._flowing.clear()

    def vanish(self) -> None:
        """Pass on nothing of the connections that are open, ever again, and close none of them. New ones work."""
        for link in self._links:
            link.vanished = True

    def mend(self) -> None:
        """End a `cut` or a `stall`."""
        self._is_cut, self._cut_at = False, None
        self._flowing.set()

    # -- a connection --------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        self._links.add(link)
        self.opened += 1
        try:
            if not self._is_cut:
                there, back = await asyncio.open_connection(*self.target, limit=WINDOW)
                link.writers.append(back)
                self._end_if_cut(link)  # meanwhile
                async with asyncio.TaskGroup() as group:
                    link.tasks = [
                        group.create_task(self._pass_on(link, reader, back)),
                        group.create_task(self._pass_on(link, there, writer)),
                    ]
        except* OSError:
            pass  # an end is gone: so is the other
        finally:
            link.end()
            for each in link.writers:
                with suppress(OSError):
                    await each.wait_closed()
            self._links.discard(link)

    async def _pass_on(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, until its sender closes it."""
        way = _Way()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deliver(link, way, writer))
            while data := await reader.read(WINDOW):
                await way.put(data, self._due(way, len(data)))
            await way.put(b"", way.last_due)

    def _due(self, way: _Way, size: int) -> float:
        """When data that is sent now arrives."""
        now = asyncio.get_running_loop().time()
        weather = self.weather
        late = 0.0
        if weather.loss:
            segments = -(-size // SEGMENT)
            late = weather.resend_s * any(self._rng.random() < weather.loss for _ in range(segments))
        return max(way.last_due, now + weather.delay_s + late)

    async def _deliver(self, link: _Link, way: _Way, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            data, due = await way.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            await self._flowing.wait()
            if link.vanished:
                await asyncio.Event().wait()  # until the link is ended
            if not data:
                with suppress(OSError, RuntimeError):
                    writer.write_eof()
                return
            data = self._up_to_the_cut(data)
            writer.write(data)
            self.passed += len(data)
            await writer.drain()
            if self._cut_at is not None and self.passed >= self._cut_at:
                self._cut_at = None
                self.cut()

    def _end_if_cut(self, link: _Link) -> None:
        if self._is_cut:
            link.end()

    def _up_to_the_cut(self, data: bytes) -> bytes:
        return data if self._cut_at is None else data[: max(0, self._cut_at - self.passed)]


class _Link:
    """The two connections that a client and its server believe to be one."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers = [writer]
        self.tasks: list[asyncio.Task[None]] = []
        self.vanished = False

    def end(self) -> None:
        """Reset both."""
        for writer in self.writers:
            with suppress(OSError):
                end: socket.socket | None = writer.get_extra_info("socket")
                if end is not None:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        for task in self.tasks:
            task.cancel()


class _Way:
    """What is on its way in one direction, with the time when it arrives."""

    def __init__(self) -> None:
        self.last_due = 0.0
        self._items: deque[tuple[bytes, float]] = deque()
        self._size = 0
        self._changed = asyncio.Condition()

    async def put(self, data: bytes, due: float) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._size < WINDOW)
            self.last_due = due
            self._size += len(data)
            self._items.append((data, due))
            self._changed.notify_all()

    async def get(self) -> tuple[bytes, float]:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._items))
            data, due = self._items.popleft()
            self._size -= len(data)
            self._changed.notify_all()
            return data, due
