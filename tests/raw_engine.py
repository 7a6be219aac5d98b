"""An engine that plays bytes, and callers that compare bytes."""

import asyncio
import contextlib
from dataclasses import dataclass, field


@dataclass
class Asked:
    """One request as the engine got it."""

    line: str
    headers: list
    body: bytes
    closed: asyncio.Event = field(
        default_factory=asyncio.Event
    )  # the other side closed while the answer was played

    @property
    def path(self):
        return self.line.split(" ")[1]

    def header(self, name):
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return values[0] if values else None


class Engine:
    """Plays bytes: each request is answered by `plays`, a function of the request that yields bytes, or awaitables to wait for.

    It ends the connection after an answer with `Connection: close` in its head, or without a length.
    """

    def __init__(self):
        self.asked = []
        self.connections = 0
        self.plays = lambda asked: [answer(b'{"ok": true}')]
        self._tasks = set()
        self.server = None

    async def start(self, port=0):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return self

    @property
    def port(self):
        return self.server.sockets[0].getsockname()[1]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def stop(self):
        self.server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.wait_closed()

    async def _serve(self, reader, writer):
        self.connections += 1
        self._tasks.add(task := asyncio.current_task())
        try:
            while (asked := await self._read(reader, writer)) is not None:
                self.asked.append(asked)
                if not await self._play(asked, reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _read(self, reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        line, *rest = head.decode("latin-1").split("\r\n")[:-2]
        headers = [tuple(each.split(": ", 1)) for each in rest]
        asked = Asked(line, headers, b"")
        if (asked.header("Expect") or "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if (length := asked.header("Content-Length")) is not None:
            asked.body = await reader.readexactly(int(length))
        elif asked.header("Transfer-Encoding") == "chunked":
            asked.body = await chunked(reader)
        return asked

    async def _play(self, asked, reader, writer):
        """False if the connection is over."""
        watching = asyncio.ensure_future(self._closed(asked, reader))
        ended = b""
        try:
            for piece in self.plays(asked):
                if isinstance(piece, bytes):
                    writer.write(piece)
                    ended += piece if len(ended) < 4096 else b""
                    await writer.drain()
                else:
                    await piece
        finally:
            watching.cancel()
        start = ended.partition(b"\r\n\r\n")[0].lower()
        return b"connection: close" not in start and any(
            each in start for each in (b"content-length", b"chunked", b" 204 ")
        )

    async def _closed(self, asked, reader):
        while not reader.at_eof() and reader.exception() is None:
            await asyncio.sleep(0.002)
        asked.closed.set()


def answer(body, status="200 OK", *headers):
    """The bytes of a whole answer."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def head(*headers, status="200 OK"):
    """The head of an answer whose body is chunked."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "Transfer-Encoding: chunked"]).encode() + b"\r\n\r\n"


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


async def chunked(reader):
    body = b""
    while size := int((await reader.readline()).partition(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while (await reader.readline()) not in (b"\r\n", b""):
        pass
    return body


@dataclass
class Got:
    """What a caller got: the status line, the headers that are not of the connection, the body, and whether it was whole."""

    line: str
    headers: list
    body: bytes
    whole: bool

    def header(self, name):
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


async def call(url, data=b"", method="POST", path="/v1/chat/completions", headers=(), *, raw=None):
    """Send bytes, read until the answer is whole or the connection closes."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", *headers]
        if data:
            lines.append(f"Content-Length: {len(data)}")
        writer.write(raw or "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data)
        return await read_answer(reader, bodiless=method == "HEAD")
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


_OF_ONE_CONNECTION = ("transfer-encoding", "connection", "keep-alive")


async def read_answer(reader, *, bodiless=False):
    """One answer; `100 Continue` before it is skipped."""
    text = b"HTTP/1.1 100 "
    while text.startswith(b"HTTP/1.1 100 "):
        text = await reader.readuntil(b"\r\n\r\n")
    line, *rest = text.decode("latin-1").split("\r\n")[:-2]
    every = [tuple(each.split(": ", 1)) for each in rest]
    got = Got(line, [pair for pair in every if pair[0].lower() not in _OF_ONE_CONNECTION], b"", True)
    names = {key.lower(): value for key, value in every}
    if bodiless or line.split(" ")[1] in ("204", "304"):
        return got
    try:
        if "content-length" in names:
            size = int(names["content-length"])
            while len(got.body) < size:
                piece = await reader.read(size - len(got.body))
                if not piece:
                    got.whole = False
                    break
                got.body += piece
        elif names.get("transfer-encoding") == "chunked":
            while size := int((await reader.readline()).partition(b";")[0] or b"x", 16):
                while size:
                    piece = await reader.read(size)
                    if not piece:
                        raise ConnectionError
                    got.body += piece
                    size -= len(piece)
                await reader.readexactly(2)
            while (line := await reader.readline()) != b"\r\n":
                if not line:
                    raise ConnectionError
        else:
            got.body = await reader.read()
    except (ValueError, ConnectionError, asyncio.IncompleteReadError):
        got.whole = False
    return got
