"""Servers on port 0, a proxy that misbehaves, and runs to watch."""

import asyncio
import contextlib
import socket
import subprocess
from pathlib import Path

import pytest

from ports import kept_port
from rollcast.errors import RefusedError
from rollcast.serve import (
    ServerSettings,
    WebSocketStreamingClient,
    WebSocketStreamingServer,
    queries,
    record,
    recorded_rows,
    stories,
)
from rollcast.stream import StreamingManager


@pytest.fixture
def port():
    """Of servers that go and come back."""
    with kept_port() as port:
        yield port


@pytest.fixture
def patience(monkeypatch):
    """Answers wait for a record for a minute: a slow machine may need more than the two seconds that they wait otherwise."""
    for waits in (record.caught_up, record.delivered, record.recorded, record.written):
        monkeypatch.setattr(waits, "__defaults__", (60.0,))
    for module in (queries, recorded_rows, stories):
        monkeypatch.setattr(module, "LATE_S", 60.0)
    # Nor does a record that opens its files late lack a run.
    monkeypatch.setattr(queries, "LATE_RECORD_S", 60.0)


class Stage:
    """A manager, and a server that watches it."""

    def __init__(self):
        self.manager = StreamingManager()
        self.server = None

    async def serve(self, *, token=None, host="127.0.0.1", port=0, **options):
        options.setdefault("close_s", 0.5)
        options.setdefault("hello_s", 60.0)  # a slow machine may take longer than the 5 s that are usual
        self.server = WebSocketStreamingServer(host, port, token=token, settings=ServerSettings(**options))
        await self.server.start()
        self.manager.add_observer(self.server.get_observer())
        return self.server

    def client(self, url=None, **options):
        return WebSocketStreamingClient(url or self.server.url, **options)

    async def lets_in(self, **options):
        """Wait until a client comes in: on a slow machine one may be too late for a server that waits for little."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(RefusedError):
                    async with self.client(**options):
                        return

    async def watched(self, subscriptions=1, connections=1):
        """Wait until there are so many and no more: a client is welcomed before it has a subscription, and another may be about to leave."""
        async with asyncio.timeout(60):
            while (found := self.server.statistics()) and (found.subscriptions, found.connections) != (
                subscriptions,
                connections,
            ):
                await asyncio.sleep(0.001)


@pytest.fixture
async def stage():
    stage = Stage()
    yield stage
    await stage.manager.aclose()
    if stage.server is not None:
        await stage.server.stop()


def say(run, words, **options):
    """One chain of one generation."""
    with (
        run.chain([{"role": "user", "content": "Say it."}], **options) as chain,
        chain.generation() as generation,
    ):
        for word in words:
            generation.chunk(word)


@pytest.fixture(name="say")
def say_fixture():
    return say


async def read(client, until="run_end"):
    """The events up to one of this type."""
    events = []
    async with asyncio.timeout(60):
        async for event in client:
            events.append(event)
            if event.event_type == until:
                break
    return events


@pytest.fixture(name="read")
def read_fixture():
    return read


class Proxy:
    """A TCP proxy in front of a server.

    Attributes:
        cut_after: bytes from the server after which the next connection is cut in the middle of whatever comes.
        pause_s: seconds before each piece from the server: a slow link, which holds little on its way.
    """

    def __init__(self, port):
        self.target = port
        self.cut_after = None
        self.mangle = None
        self.pause_s = 0
        self.connections = 0
        self.writers = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"ws://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        self.tasks = set()
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.cut()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def cut(self):
        for writer in self.writers:
            writer.transport.abort()

    async def _serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        self.connections += 1
        try:
            up_reader, up_writer = await asyncio.open_connection(sock=await self._narrow(), limit=4096)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, up_writer}
        self.writers |= both
        cut_after, self.cut_after = self.cut_after, None
        with contextlib.suppress(OSError):
            await asyncio.gather(
                self._pipe(reader, up_writer, None), self._pipe(up_reader, writer, cut_after, self.pause_s)
            )
        for each in both:
            each.transport.abort()
        self.writers -= both

    async def _narrow(self):
        """A connection to the server. What waits for the link is to wait in the server, not here."""
        up = socket.socket()
        if self.pause_s:
            up.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        up.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(up, ("127.0.0.1", self.target))
        except OSError:
            up.close()
            raise
        return up

    async def _pipe(self, reader, writer, cut_after, pause_s=0):
        passed = 0
        while data := await reader.read(4096):
            if pause_s:
                await asyncio.sleep(pause_s)
            if cut_after is not None and passed + len(data) > cut_after:
                writer.write(data[: cut_after - passed])
                await writer.drain()
                break
            if self.mangle is not None and cut_after is None:
                data = self.mangle(data)
            passed += len(data)
            writer.write(data)
            await writer.drain()
        for each in list(self.writers):
            if each is writer:
                each.close()


@pytest.fixture
def proxy():
    return Proxy


def openssl(*args):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, timeout=60)


class Authority:
    """An authority of certificates, in a folder; the `openssl` command makes them.

    Args:
        strict: whether its certificates say all that Python asks for by default from 3.13 on; many private ones do not.

    Attributes:
        cert: its own certificate.
    """

    def __init__(self, folder, name="Test authority", *, strict=False):
        self.folder = Path(folder)
        self.cert, self._key = self.folder / "ca.pem", self.folder / "ca.key"
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign") if strict else ()
        self._more = "authorityKeyIdentifier=keyid\n" if strict else ""
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 30),
            *("-subj", f"/CN={name}", "-keyout", self._key, "-out", self.cert, *usage),
        )

    def certify(self, name, *, days=30, names="DNS:localhost,IP:127.0.0.1", usage="serverAuth"):
        """A certificate and its key."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage={usage}\n{self._more}")
        openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", key, "-out", request),
        )
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self._key, "-set_serial", 7),
            *("-days", days, "-extfile", extensions, "-out", cert),
        )
        return cert, key

    def encrypted(self, key):
        """The key under a passphrase."""
        path = key.with_suffix(".encrypted")
        openssl("pkey", "-in", key, "-aes256", "-passout", "pass:sesame", "-out", path)
        return path


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A private authority of certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def strict_authority(tmp_path_factory):
    """One whose certificates the default context of every Python takes."""
    return Authority(tmp_path_factory.mktemp("strict_authority"), strict=True)


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory):
    """Another one."""
    return Authority(tmp_path_factory.mktemp("other_authority"))


@pytest.fixture(scope="session")
def localhost_pair(authority):
    """A certificate for localhost, and its key."""
    return authority.certify("localhost")
