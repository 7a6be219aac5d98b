"""A line between a browser and a server that a test can cut, or freeze as a dead network does."""

import asyncio
import contextlib


class Line:
    """A TCP proxy on loopback. Its methods are called from any thread.

    Args:
        loop: a running loop of another thread.
        port: the server's; it may be changed, for what connects from then on.

    Attributes:
        port: where it listens.
    """

    def __init__(self, loop, port):
        self._loop = loop
        self.to = port
        self._pipes = set()
        self._cut_after = None  # bytes that still come from the server before the line is cut
        self._call(self._open())

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _open(self):
        self._flows = asyncio.Event()
        self._flows.set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"

    def freeze(self):
        """Pass on nothing more, without closing anything; what connects now is not answered either."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def thaw(self):
        self._loop.call_soon_threadsafe(self._flows.set)

    def cut(self):
        """Reset all connections."""

        async def cut():
            self._reset()

        self._call(cut())

    def cut_after(self, count):
        """Reset all connections once so many bytes more have come from the server, in the middle of a frame or not."""

        async def arm():
            self._cut_after = count

        self._call(arm())

    def close(self):
        async def close():
            self._server.close()
            self._reset()
            self._flows.set()

        self._call(close())

    def _reset(self):
        for writer in list(self._pipes):
            writer.transport.abort()

    async def _connected(self, reader, writer):
        self._pipes.add(writer)
        try:
            await self._flows.wait()
            try:
                from_server, to_server = await asyncio.open_connection("127.0.0.1", self.to)
            except OSError:
                return
            self._pipes.add(to_server)
            try:
                await asyncio.gather(
                    self._pass_on(reader, to_server, False), self._pass_on(from_server, writer, True)
                )
            finally:
                self._pipes.discard(to_server)
                to_server.close()
        except asyncio.CancelledError:
            pass
        finally:
            self._pipes.discard(writer)
            writer.close()

    async def _pass_on(self, reader, writer, is_from_server):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flows.wait()
                if is_from_server and self._cut_after is not None:
                    data = data[: self._cut_after]
                    self._cut_after -= len(data)
                writer.write(data)
                await writer.drain()
                if self._cut_after == 0:
                    self._cut_after = None
                    self._reset()
                    return
        writer.close()
