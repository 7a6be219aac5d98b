"""What hostile, broken and half-dead peers do, and what it does not do to us."""

import asyncio
import contextlib
import json

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from rollcast.errors import DecodeError, InputError, RefusedError
from rollcast.records import EventFilter, StreamEvent
from rollcast.serve import ServerSettings, WebSocketStreamingClient, WebSocketStreamingServer, dialing
from rollcast.serve import client as client_module
from rollcast.serve.broadcast import Broadcaster
from rollcast.serve.client import ClientSession
from rollcast.serve.protocol import (
    Batch,
    FilterFrame,
    Hello,
    RunInfo,
    Subscribe,
    Subscribed,
    Update,
    Welcome,
    decode_client_frame,
    encode_frame,
)
from rollcast.serve.settings import Limits

ESCAPES = "\x1b[31mred\x1b]0;title\x07\u009b2J"
WELCOME = {"type": "welcome", "version": 1, "runs": [], "heartbeat_s": 20.0, "limits": {}, "scopes": ["read"]}


@contextlib.asynccontextmanager
async def pretender(handler, **options):
    """The address of a server that is not ours; it closes quickly."""
    options = {"subprotocols": ["rollcast.v1"], "close_timeout": 0.1} | options
    async with serve(handler, "127.0.0.1", 0, **options) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


async def everything(client):
    async with asyncio.timeout(60):
        return [event async for event in client]


# -- servers that are no friends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "frame", "error"])
async def test_what_a_server_says_cannot_speak_to_the_terminal(how):
    """Its words stand in our sentences, with every escape visible."""

    async def handler(socket):
        await socket.recv()
        if how == "close":
            await socket.close(4500, ESCAPES)
        await socket.send(json.dumps(WELCOME))
        kind = {"type": "error", "code": 400, "message": ESCAPES} if how == "error" else {"type": ESCAPES}
        await socket.send(json.dumps(kind))
        await socket.wait_closed()

    async with pretender(handler) as url:
        client = WebSocketStreamingClient(url)
        with pytest.raises(ValueError if how == "frame" else RefusedError) as caught:
            await everything(client)
        await client.aclose()
    assert str(caught.value).isprintable()
    assert r"\x1b[31m" in str(caught.value)


async def test_what_a_server_says_over_http_cannot_speak_to_the_terminal():
    """Nor fill it."""

    def refuse(connection, _):
        return connection.respond(403, ESCAPES + "x" * 100_000)

    async with pretender(lambda socket: socket.wait_closed(), process_request=refuse) as url:
        with pytest.raises(RefusedError, match="refuses with HTTP 403") as caught:
            await WebSocketStreamingClient(url).connect()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


async def test_a_web_page_is_not_repeated():
    """A web site, or a proxy before the server: what it would show in a browser tells nothing here."""

    def show(connection, _):
        return connection.respond(404, "<!DOCTYPE html>\n<title>Nothing here</title>")

    async with pretender(lambda socket: socket.wait_closed(), process_request=show) as url:
        with pytest.raises(
            RefusedError,
            match=r"refuses with HTTP 404: it answers with a web page; is it a Rollcast server\?$",
        ):
            await WebSocketStreamingClient(url).connect()


async def test_an_old_web_server_is_not_taken_for_one_without_http():
    """Python's own speaks HTTP/1.0."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 404 File not found\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RefusedError, match="a web server answers there, and it is not one of Rollcast"):
            async with WebSocketStreamingClient(f"ws://127.0.0.1:{port}"):
                pass


async def test_a_server_that_sends_everybody_away_is_not_run_down(monkeypatch):
    """Welcome and a close, each time: the pauses grow."""
    monkeypatch.setattr(client_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(client_module, "STEADY_S", 600.0)  # no connection lasts, however slow the machine is
    pauses, times = [], 0
    uniform = dialing.random.uniform
    monkeypatch.setattr(
        dialing.random, "uniform", lambda low, high: pauses.append(high) or uniform(low, high)
    )

    async def handler(socket):
        nonlocal times
        times += 1
        await socket.recv()
        await socket.send(json.dumps(WELCOME))
        await socket.close(4500 if times == 7 else 4008)

    async with pretender(handler) as url:
        with pytest.raises(RefusedError):
            await everything(WebSocketStreamingClient(url))
    assert pauses == [0.01 * 2**i for i in range(6)]


async def test_a_server_that_is_none_of_ours_is_said():
    """It speaks WebSocket, and nothing that we know."""
    async with pretender(lambda socket: socket.wait_closed(), subprotocols=None) as url:
        for ask in (WebSocketStreamingClient(url).connect, lambda: WebSocketStreamingClient(url).cancel("r")):
            with pytest.raises(
                RefusedError, match=r"is not a Rollcast server: it does not speak rollcast\.v1"
            ):
                await ask()


async def test_cancel_does_not_wait_for_ever(monkeypatch):
    """A server that takes the frame and is silent."""
    monkeypatch.setattr(client_module, "ANSWER_S", 0.05)

    async def handler(socket):
        async for _ in socket:
            pass

    async with pretender(handler) as url:
        async with asyncio.timeout(60):
            with pytest.raises(RefusedError, match="cannot be reached: no answer came in time"):
                await WebSocketStreamingClient(url).cancel("r")


async def silent_server():
    """A server that takes connections and says nothing, and the event that somebody has come."""
    arrived = asyncio.Event()

    async def handler(reader, writer):
        arrived.set()
        await reader.read()
        writer.close()

    return await asyncio.start_server(handler, "127.0.0.1", 0), arrived


async def test_a_client_can_leave_while_it_connects(monkeypatch):
    """To a port that takes connections and says nothing, for which it would wait for longer than this test does."""
    monkeypatch.setitem(connect.__init__.__kwdefaults__, "open_timeout", 600.0)
    server, arrived = await silent_server()
    client = WebSocketStreamingClient(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    reading = asyncio.create_task(everything(client))
    await arrived.wait()
    await asyncio.sleep(0)
    await client.aclose()
    async with asyncio.timeout(60):
        assert await reading == []
    server.close()
    await server.wait_closed()


async def test_a_client_can_be_cancelled_while_it_connects():
    """The cancellation is the caller's and is passed on."""
    server, arrived = await silent_server()
    client = WebSocketStreamingClient(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    reading = asyncio.create_task(everything(client))
    await arrived.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    "url", ["ws://[::1", "ws://h:99999", "ws://h:x", "ws://h:0", "ws://a..b", "ws://h/#f", "ws://h\x1b[31m", "ws://h\n"]
)  # fmt: skip
def test_what_only_looks_like_an_address_is_said(url):
    """Before anything is tried, and in one sentence."""
    with pytest.raises(InputError, match="is not a WebSocket address") as caught:
        WebSocketStreamingClient(url)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("proxy", ["nonsense://x", "http://[::1", "socks5://127.0.0.1:1"])
async def test_an_environment_with_a_wrong_proxy_is_one_sentence(monkeypatch, proxy):
    """Whatever the proxy is, nobody sees a traceback of another package."""
    for name in ("ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "WS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("all_proxy", proxy)
    monkeypatch.setenv("ws_proxy", proxy)
    with pytest.raises((InputError, RefusedError)):
        await WebSocketStreamingClient("ws://rollcast.invalid:1").connect()


# -- clients that watch for long -------------------------------------------------------------------------------------------


def test_a_session_that_watches_for_ever_does_not_grow(monkeypatch):
    """Its filter hides that runs end, so that it cannot know which are open."""
    monkeypatch.setattr(client_module, "MAX_OPEN_RUNS", 10)
    session = ClientSession(EventFilter(chains="chain_0"))
    session.receive(Welcome(1, [], 20.0, Limits(), ["read"]))
    for i in range(100):
        event = {"event_type": "error", "chain_id": "chain_0", "timestamp": 1.0, "seq": 3, "run_id": f"r{i}"}
        data = {"error": "e", "error_type": "E", "where": "backend"}
        session.receive(Batch("1", f"x.{i}", [StreamEvent.from_dict(event | {"data": data})]))
    assert len(session._last) == 10
    session.receive(Welcome(1, [RunInfo("r99", None, "running", 1)], 20.0, Limits(), ["read"]))
    _, gaps = session.receive(Subscribed("1", False, None))
    assert [gap.run_id for gap in gaps] == [f"r{i}" for i in range(90, 99)]


# -- clients that are no friends -----------------------------------------------------------------------------------------


HANDSHAKE = (
    b"GET %b HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%b\r\n"
)


@contextlib.asynccontextmanager
async def raw(server, path=b"/", headers=b""):
    """A connection that has asked for a handshake."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HANDSHAKE % (path, headers))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def rest(reader):
    """What comes until the server ends it."""
    async with asyncio.timeout(60):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


@pytest.mark.parametrize(
    "frame", [b"\x89\xfd\0\0\0\0" + b"x" * 125, b"\x00\x80\0\0\0\0"], ids=["pings", "fragments"]
)
async def test_a_flood_of_frames_ends_the_connection(stage, frame, until):
    """Pongs and fragments would be kept here for a client that does not read."""
    server = await stage.serve()
    async with raw(server) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x01\x80\0\0\0\0" if frame[0] == 0 else b"")
        writer.write(frame * 5000)
        await until(lambda: server.statistics().connections == 0)
        assert len(await rest(reader)) < 100_000


async def test_connections_that_say_nothing_do_not_take_all_the_files(stage, monkeypatch, until):
    """More than the server may have are ended at once; the others leave their places again."""
    monkeypatch.setattr("rollcast.serve.connection._files", lambda: 8)
    server = await stage.serve()
    silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(4)]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    assert await rest(reader) == b""
    writer.close()
    for _, each in silent:
        each.transport.abort()

    async def enters():
        async with raw(server) as (reader, _):
            return b"101" in await rest_of_head(reader)

    async with asyncio.timeout(60):
        while not await enters():
            await asyncio.sleep(0.001)


async def rest_of_head(reader):
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        return await reader.readuntil(b"\r\n\r\n")
    return b""


async def test_what_is_no_url_and_no_origin_is_refused_and_not_logged(stage, caplog):
    """Strangers can't fill the log."""
    server = await stage.serve()
    for path in (b"//[::1", b"http://[/"):
        async with raw(server, path) as (reader, _):
            assert (await rest(reader)).startswith(b"HTTP/1.1 404 ")
    for origin in (b"http://[::1", b"http://localhost:x", b"\xff"):
        async with raw(server, headers=b"Origin: " + origin + b"\r\n") as (reader, _):
            assert b"pages of this origin may not connect" in await rest(reader)
    assert not caplog.records


# -- stopping --------------------------------------------------------------------------------------------------------------


async def test_stopping_gives_everybody_the_rest(stage, say):
    """Also to one that is more than one portion behind: the end of the run is not cut off."""
    server = await stage.serve(close_s=20)
    async with stage.manager.run() as run:
        for _ in range(100):
            with run.chain([{"role": "user", "content": "x" * 20_000}]):
                pass
    expected = server.statistics().history_events
    got = []
    async with stage.client(since="start") as client:

        async def watch():
            async for event in client:
                got.append(event)

        reading = asyncio.create_task(watch())
        while not got:
            await asyncio.sleep(0)
        await server.stop()
        async with asyncio.timeout(60):
            while len(got) < expected:
                await asyncio.sleep(0.001)
        await client.aclose()
        await reading
    assert [event.event_type for event in got].count("chain_end") == 100
    assert got[-1].event_type == "run_end"


async def test_who_comes_while_the_server_stops_does_not_hold_it_up():
    """Whatever the moment between the handshake and the first frame."""
    for moment in range(20):
        server = WebSocketStreamingServer("127.0.0.1", 0, settings=ServerSettings(close_s=0.05))
        await server.start()
        async with raw(server), raw(server, headers=b"Sec-WebSocket-Protocol: rollcast.v1\r\n"):
            for _ in range(moment):
                await asyncio.sleep(0)
            async with asyncio.timeout(60):
                await server.stop()
            assert server.statistics().connections == 0


def test_a_server_is_stopped_where_it_was_started():
    """From another event loop it says so, and goes on."""
    with WebSocketStreamingServer("127.0.0.1", 0) as server:
        with pytest.raises(InputError, match=r"use stop_thread\(\)"):
            asyncio.run(server.stop())

        async def watch():
            async with WebSocketStreamingClient(server.url) as client:
                return client.reconnections

        assert asyncio.run(watch()) == 0


async def test_a_server_that_is_started_twice_at_once_listens_once():
    """The second start waits for the first."""
    server = WebSocketStreamingServer("127.0.0.1", 0)
    before = len(asyncio.all_tasks())
    listening = []
    listen = server._listen
    server._listen = lambda: listening.append(1) or listen()
    await asyncio.gather(server.start(), server.start())
    assert len(listening) == 1
    await server.stop()
    assert len(asyncio.all_tasks()) == before


# -- clients that ask for much ---------------------------------------------------------------------------------------------


async def test_a_client_is_not_heard_again_before_it_has_taken_what_it_asked_for(stage, until):
    """Snapshots of everything for a message of thirty bytes, and nobody who reads them."""
    server = await stage.serve(client_buffer=1000)
    async with stage.manager.run() as run:
        with run.chain([{"role": "user", "content": "x" * 4_000_000}]):
            async with raw(server, headers=b"Sec-WebSocket-Protocol: rollcast.v1\r\n") as (reader, writer):
                await reader.readuntil(b"\r\n\r\n")
                writer.transport.pause_reading()
                for frame in (Hello(), *(Subscribe(str(i)) for i in range(16))):
                    writer.write(masked(encode_frame(frame)))
                await until(lambda: server.statistics().sent > 0)
                (client,) = server._clients
                await until(lambda: client.unsent() > 1000)  # the operating system takes some
                heard = server.statistics().subscriptions
                for _ in range(20):
                    await asyncio.sleep(0.005)
                    assert server.statistics().subscriptions == heard < 16
                writer.transport.resume_reading()
                reading = asyncio.create_task(rest(reader))
                await until(lambda: server.statistics().subscriptions == 16)
                await until(lambda: client.unsent() == 0)
                writer.transport.abort()
                await reading


async def test_one_that_is_closed_while_it_is_not_heard_is_not_heard_any_more(
    stage, monkeypatch, until, caplog
):
    """What it said last concerns a subscription that it has no more."""
    server = await stage.serve()
    clients, held = server._broadcaster.clients, []

    def owes(outlet):
        held.extend(clients.keys_of(outlet))
        return bool(held)

    monkeypatch.setattr(clients, "owes", owes)
    monkeypatch.setattr("rollcast.serve.conversation.HELD_S", 60)
    async with raw(server, headers=b"Sec-WebSocket-Protocol: rollcast.v1\r\n") as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for frame in (Hello(), Subscribe("1"), Update("1", FilterFrame(types=["reward"]))):
            writer.write(masked(encode_frame(frame)))
        await until(lambda: held)
        with server._broadcaster.lock:
            clients.too_slow(clients.subscriptions[held[0]])
        await until(lambda: server.statistics().connections == 0)
        assert b"reads too slowly" in await rest(reader)
    assert clients.closed_slow == 1
    assert "connection handler failed" not in caplog.text


def masked(payload):
    """A text frame of a client, its mask zero."""
    assert len(payload) < 126
    return bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "subscribe", "id": "x" * 129},
        {"type": "subscribe", "id": "1", "filter": {"chains": ["c"] * 1025}},
        {"type": "subscribe", "id": "1", "filter": {"runs": ["r" * 257]}},
        {"type": "cancel", "run_id": "r", "id": "x" * 129},
        {"type": "subscribe", "id": "\ud800"},
    ],
    ids=["id", "names", "name", "cancel", "surrogate"],
)
def test_what_the_server_would_keep_or_repeat_is_bounded(frame):
    """An id comes back in every batch; names stay in memory."""
    with pytest.raises(DecodeError):
        decode_client_frame(json.dumps(frame))


def test_many_filters_are_one_wide_filter_to_the_manager():
    """Without a history it is told what clients want; a thousand of them must not cost a thousand looks an event."""
    broadcaster = Broadcaster(ServerSettings(history_bytes=0))
    for i in range(1000):
        broadcaster.subscribe(object(), "1", EventFilter(chains=f"chain_{i}", types="reward"))
    assert broadcaster.upstream.wanted() == EventFilter(types="reward")
    broadcaster.subscribe(object(), "1", EventFilter(chains="chain_0"))
    assert broadcaster.upstream.wanted() == EventFilter()
