"""Clients on real sockets that do not read, read late, or are half dead: bounded, closed with a word, and whole again."""

import asyncio
import contextlib
import json
import socket

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.uri import parse_uri

from rollcast.records import decode
from rollcast.serve.protocol import Hello, Subscribe, Unsubscribe, encode_frame
from rollcast.serve.settings import Limits
from rollcast.testing import capture_events

CHUNK = "llm_generation_chunk"
BUFFER = 64 << 10
BEHIND = 512 << 10


class RawClient:
    """A socket with a tiny buffer, and the protocol without I/O: it reads only when it is told to.

    Attributes:
        events, cursor: of what it has read.
        closed: the code of the close frame that it read; None: it read none.
    """

    def __init__(self, server, *, plain=False):
        self.plain = plain
        self.protocol = ClientProtocol(
            parse_uri(server.url), subprotocols=None if plain else ["rollcast.v1"], max_size=None
        )
        self.port = server.port
        self.events, self.cursor, self.closed, self.ended = [], None, None, False

    async def connect(self):
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.setblocking(False)
        self.loop = asyncio.get_running_loop()
        await self.loop.sock_connect(self.socket, ("127.0.0.1", self.port))
        self.protocol.send_request(self.protocol.connect())
        await self.flush()
        while not self.protocol.handshake_exc and self.protocol.state.name == "CONNECTING":
            await self.read_some()
        if not self.plain:
            await self.say(Hello(), Subscribe("1"))
        return self

    async def say(self, *frames):
        for frame in frames:
            self.protocol.send_text(encode_frame(frame))
        await self.flush()

    async def flush(self):
        for data in self.protocol.data_to_send():
            if data:
                await self.loop.sock_sendall(self.socket, data)

    async def read_some(self):
        """What is there; waits where nothing is."""
        try:
            data = await self.loop.sock_recv(self.socket, 1 << 16)
        except ConnectionError:
            data = b""
        if data:
            self.protocol.receive_data(data)
        else:
            self.protocol.receive_eof()
            self.ended = True
        for frame in self.protocol.events_received():
            if getattr(frame, "opcode", None) is Opcode.TEXT:
                self.take(json.loads(frame.data), bytes(frame.data))
            elif getattr(frame, "opcode", None) is Opcode.CLOSE:
                self.closed = int.from_bytes(frame.data[:2], "big")

    def take(self, frame, data):
        if self.plain:
            self.events.append(decode(data))
        elif frame["type"] == "batch":
            self.events += [decode(json.dumps(event)) for event in frame["events"]]
            self.cursor = frame["cursor"]
        elif frame["type"] == "subscribed":
            self.cursor = frame["cursor"] or self.cursor

    async def read_until(self, condition):
        async with asyncio.timeout(60):
            while not condition() and not self.ended:
                await self.read_some()


@pytest.fixture
async def slow(stage, until):
    """A server with small limits, and raw clients that are closed in the end."""
    clients = []

    async def connect(server, **options):
        before = server.statistics().subscriptions
        clients.append(await RawClient(server, **options).connect())
        await until(lambda: server.statistics().subscriptions > before)
        for each in server._clients:  # so that little hides in the operating system
            each.connection.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, 8192
            )
        return clients[-1]

    yield connect
    for client in clients:
        client.socket.close()


def unsent(server):
    """Bytes that wait for the slowest client."""
    return max((client.unsent() for client in server._clients), default=0)


def behind(server):
    """Whether a client could not take more when there was more."""
    return any(subscription.behind for subscription in server._broadcaster.subscriptions.values())


def text_of(events):
    """Of the one generation: each piece at its offset."""
    text = ""
    for event in events:
        if event.event_type == CHUNK:
            assert event.data["offset"] == len(text)
            text += event.data["content"]
    return text


async def say_until(stage, generation, condition, bounded):
    """Chunks until the state is reached."""
    n = 0
    async with asyncio.timeout(60):
        while not condition():
            generation.chunk(f"{n:04} " * 100)
            n += 1
            if n % 20 == 0:
                await stage.manager.drain()
                await asyncio.sleep(0)
                bounded()


async def test_one_that_reads_late_has_its_chunks_merged_then_reads_4008_and_comes_back_whole(
    stage, slow, until
):
    """What waits for it is bounded all the while; its cursor brings the rest, and nothing is missing or doubled."""
    server = await stage.serve(client_buffer=BUFFER, behind_bytes=BEHIND, close_s=60, heartbeat_s=600)
    largest = 0

    def bounded():
        nonlocal largest
        largest = max(largest, unsent(server))

    with capture_events(stage.manager) as capture:
        client = await slow(server)
        async with stage.manager.run() as run:
            with run.chain() as chain, chain.generation() as generation:
                await client.read_until(lambda: client.events)
                await say_until(stage, generation, lambda: behind(server), bounded)
                for _ in range(10):
                    generation.chunk("waits ")
                await stage.manager.drain()
                await client.read_until(lambda: client.events[-1].data.get("content", "").endswith("waits "))
                assert any("from_seq" in e.data for e in client.events if e.event_type == CHUNK)
                await say_until(stage, generation, lambda: server.statistics().closed_slow, bounded)
                generation.chunk("after it was closed")
        await client.read_until(lambda: client.closed)
        assert client.closed == 4008
        assert largest < BUFFER + BEHIND + (512 << 10)
        again = []
        async with stage.client(since=client.cursor) as back:
            async with asyncio.timeout(60):
                async for event in back:
                    again.append(event)
                    if event.event_type == "run_end":
                        break
        assert back.recovered
    whole = client.events + again
    assert text_of(whole) == text_of(capture.events)
    assert [e for e in whole if e.event_type != CHUNK] == [e for e in capture.events if e.event_type != CHUNK]


@pytest.mark.parametrize("plain", [False, True])
async def test_one_that_never_reads_is_cut_off_and_costs_nothing(stage, slow, until, plain):
    """Its connection goes within `close_s`, whether or not it reads the close frame; the others have all."""
    server = await stage.serve(
        client_buffer=BUFFER, behind_bytes=BEHIND, history_bytes=1 << 20, heartbeat_s=600
    )
    await slow(server, plain=plain)
    largest = 0

    def bounded():
        nonlocal largest
        largest = max(largest, unsent(server))
        assert server.statistics().history_bytes <= (1 << 20) + 2000

    async with stage.manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            await say_until(stage, generation, lambda: server.statistics().closed_slow, bounded)
            await until(lambda: server.statistics().connections == 0)
    assert server.statistics().subscriptions == 0
    assert largest < BUFFER + BEHIND + (512 << 10)


async def test_one_that_asks_and_never_reads_the_answers_is_cut_off(stage, slow, until):
    """Long questions, each answered at length: the answers do not pile up."""
    server = await stage.serve(
        client_buffer=BUFFER, close_s=0.2, heartbeat_s=600, limits=Limits(messages_per_s=100_000)
    )
    client = await slow(server)
    largest = 0
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(60):
            while server.statistics().connections:
                await client.say(Unsubscribe("x" * 60_000))
                largest = max(largest, unsent(server))
    await until(lambda: server.statistics().connections == 0)
    assert largest < 4 * BUFFER


# -- half dead -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
async def test_one_that_stops_answering_without_a_word_is_let_go(stage, slow, until, plain):
    """No FIN, no pong, and nothing is read: not even the close can be sent, and the connection goes all the same."""
    server = await stage.serve(client_buffer=BUFFER, close_s=0.2, heartbeat_s=0.5, behind_bytes=64 << 20)
    gone = lambda: not server.statistics().connections  # noqa: E731
    async with stage.manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            has_been_behind = False
            while not has_been_behind:  # on a slow machine it may be let go before it is: then another comes
                client = await slow(server, plain=plain)
                await say_until(stage, generation, lambda: behind(server) or gone(), lambda: None)
                has_been_behind = behind(server)
            await until(lambda: server.statistics().connections == 0, timeout=60)
    assert server.statistics().subscriptions == 0
    assert server.statistics().closed_slow == 0  # not for slowness
    await client.read_until(lambda: client.ended)
    assert client.closed in (4012, None)
