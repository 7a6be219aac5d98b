"""The server over real sockets, with clients of other packages."""

import asyncio
import contextlib
import json
import os
import socket as sockets
import subprocess
import sys
import threading

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from rollcast import BaseAgent
from rollcast.errors import InputError
from rollcast.records import check_events, decode
from rollcast.serve import Limits, ServerSettings, Token, WebSocketStreamingClient, WebSocketStreamingServer
from rollcast.serve.protocol import Cancel, Hello, Ping, Subscribe, encode_frame
from rollcast.stream import StreamingManager
from rollcast.testing import ScriptedBackend, capture_events

V1 = {"subprotocols": ["rollcast.v1"], "proxy": None, "ping_interval": None}


async def closed(socket):
    """The close code, once it comes."""
    async with asyncio.timeout(60):
        try:
            while True:
                await socket.recv()
        except ConnectionClosed as error:
            return error.rcvd.code if error.rcvd else None


async def answer(socket, kind):
    """The next frame of this type."""
    async with asyncio.timeout(60):
        while True:
            frame = json.loads(await socket.recv())
            if frame["type"] == kind:
                return frame


async def send(socket, *frames):
    for frame in frames:
        await socket.send(encode_frame(frame), text=True)


async def plainly(socket, until="run_end"):
    events = []
    async with asyncio.timeout(60):
        async for message in socket:
            events.append(decode(message))
            if events[-1].event_type == until:
                break
    return events


# -- the plain feed ------------------------------------------------------------------------------------------------------


async def test_any_client_reads_one_event_a_message(stage, say):
    """websockets' and aiohttp's, each the whole run as the manager emitted it."""
    server = await stage.serve()
    async with (
        connect(server.url, proxy=None) as one,
        aiohttp.ClientSession() as session,
        session.ws_connect(server.url) as other,
    ):
        with capture_events(stage.manager) as capture:
            async with stage.manager.run() as run:
                say(run, "abc")
        assert await plainly(one) == capture.events
        got = []
        async for message in other:
            assert message.type is aiohttp.WSMsgType.TEXT
            got.append(decode(message.data))
            if got[-1].event_type == "run_end":
                break
        assert got == capture.events


async def test_the_command_line_of_websockets_is_a_complete_client(stage, say, until):
    """`python -m websockets ws://…` prints events."""
    server = await stage.serve()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "websockets", server.url,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"NO_PROXY": "*"},
    )  # fmt: skip
    await until(lambda: server.statistics().subscriptions == 1, timeout=300)  # Python starts
    async with stage.manager.run() as run:
        say(run, ["Hello", " world"])
    out = b""
    async with asyncio.timeout(60):
        while b"run_end" not in out:
            out += await process.stdout.read(4096)
    process.stdin.close()
    await process.wait()
    lines = [line.partition("< ")[2].split("\x1b")[0] for line in out.decode().splitlines() if "< {" in line]
    assert json.loads(lines[0])["event_type"] == "run_start"


async def test_the_url_narrows_the_plain_feed(stage, say, until):
    """Chains and types; an unknown one is refused with a sentence."""
    server = await stage.serve()
    async with connect(f"{server.url}?chain=chain_1&type=chain_start&type=chain_end", proxy=None) as socket:
        async with stage.manager.run() as run:
            for _ in range(3):
                say(run, "abc")
        events = await plainly(socket, "chain_end")
    assert [(e.chain_id, e.event_type) for e in events] == [
        ("chain_1", "chain_start"),
        ("chain_1", "chain_end"),
    ]
    for query, status, says in (
        ("type=shout", 400, b"no event type"),
        ("token=x", 400, b"does not belong in a URL"),
    ):
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{server.url}?{query}", proxy=None)
        assert refused.value.response.status_code == status
        assert says in refused.value.response.body


async def test_a_plain_client_that_comes_late_begins_with_snapshots(stage):
    """Then every later event."""
    server = await stage.serve()
    async with stage.manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            generation.chunk("so far")
            async with connect(server.url, proxy=None) as socket:
                first = decode(await socket.recv())
                assert (first.event_type, first.data["content"]) == ("chain_snapshot", "so far")
                generation.chunk(", and on")
                assert decode(await socket.recv()).data["content"] == ", and on"


# -- who may enter -------------------------------------------------------------------------------------------------------


async def test_the_plain_feed_asks_for_its_token_in_a_header(stage, say):
    """Missing, wrong and expired ones: 401, and nothing of the run; nor do metrics come without."""
    server = await stage.serve(token="secret", tokens=(Token("old", expires_at=1.0),))
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "secret"},
        {"Authorization": "Bearer old"},
    ):
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.url, proxy=None, additional_headers=headers)
        assert refused.value.response.status_code == 401
        assert refused.value.response.headers["WWW-Authenticate"] == "Bearer"
    http = server.url.replace("ws:", "http:")
    async with aiohttp.ClientSession() as session:
        assert (await session.get(f"{http}/metrics")).status == 401
        bearer = {"Authorization": "Bearer secret"}
        assert (await session.get(f"{http}/metrics", headers=bearer)).status == 200
        assert await (await session.get(f"{http}/healthz")).text() == "ok\n"
    async with connect(server.url, proxy=None, additional_headers=bearer) as socket:
        async with stage.manager.run() as run:
            say(run, "a")
        assert await plainly(socket)


@pytest.mark.parametrize(("token", "code"), [(None, 4500), ("wrong", 4500), ("old", 4003), ("watch", None)])
async def test_a_session_asks_for_its_token_in_hello(stage, token, code):
    """The close code tells whether to come back."""
    server = await stage.serve(tokens=(Token("watch"), Token("old", expires_at=1.0)))
    async with connect(server.url, **V1) as socket:
        await send(socket, Hello(token))
        if code is None:
            assert (await answer(socket, "welcome"))["scopes"] == ["read"]
        else:
            assert (await answer(socket, "error"))["code"] == code
            assert await closed(socket) == code


async def test_foreign_pages_and_rebound_names_are_refused(stage):
    """Origin: 4507. Host: 403, for HTTP too. Own pages come in."""
    server = await stage.serve()
    for protocols in (None, ["rollcast.v1"]):
        async with connect(
            server.url, proxy=None, origin="https://evil.example", subprotocols=protocols
        ) as socket:
            assert await closed(socket) == 4507
    own = server.url.replace("ws:", "http:")
    async with connect(server.url, origin=own, **V1) as socket:
        await send(socket, Hello())
        await answer(socket, "welcome")
    async with aiohttp.ClientSession() as session:
        for path in ("/", "/healthz", "/metrics"):
            rebound = await session.get(own + path, headers={"Host": "evil.example"})
            assert rebound.status == 403
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(server.url, headers={"Host": f"evil.example:{server.port}"})
        assert refused.value.status == 403


async def test_another_version_is_refused(stage):
    """4510: do not come back."""
    server = await stage.serve()
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(server.url, protocols=["rollcast.v9"]) as socket,
    ):
        message = await socket.receive()
        while message.type is aiohttp.WSMsgType.TEXT:
            message = await socket.receive()
        assert socket.close_code == 4510


async def test_slow_hellos_and_bad_frames_are_closed(stage):
    """Each with its code; the server goes on."""
    server = await stage.serve(hello_s=0.2)
    assert await code_of_silence(server) == 4502
    await server.stop()
    server = await stage.serve(hello_s=60, limits=Limits(message_bytes=1000, messages_per_s=10))
    for message, code in (("{", 4501), (b"{}", 4501), ("x" * 2000, 4504), ("x" * 9000, 1009)):
        async with connect(server.url, **V1) as socket:
            await socket.send(message)
            assert await closed(socket) == code
    async with connect(server.url, **V1) as socket:
        await send(socket, Hello(), *[Ping()] * 40)
        assert await closed(socket) == 4504
    async with connect(server.url, **V1) as socket:
        await send(socket, Hello())
        assert await answer(socket, "welcome")


async def code_of_silence(server):
    """The code that a client which says nothing is closed with. On a slow machine its handshake may be too late as well: then another tries."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(InvalidHandshake, ConnectionError, EOFError):
                async with connect(server.url, **V1) as socket:
                    return await closed(socket)


async def test_garbage_on_the_port_does_no_harm(stage, caplog):
    """Not HTTP, half a request, nothing at all; and it does not fill the log."""
    server = await stage.serve(hello_s=0.2)
    for data in (b"\x00\xff" * 100, b"GET / HTTP/1.1\r\nHost: localhost", b"", b"POST / HTTP/1.1\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(data)
        async with asyncio.timeout(60):
            await reader.read()
        writer.close()
    assert not [r for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")]
    await stage.lets_in()


async def test_the_silent_are_closed(stage):
    """A ping is asked; without a word: 4012."""
    server = await stage.serve(heartbeat_s=0.1)
    async with connect(server.url, **V1) as socket:
        await send(socket, Hello())
        await answer(socket, "ping")
        assert await closed(socket) == 4012


async def test_only_so_many_may_connect(stage):
    """One more is told so, and may come when another left."""
    server = await stage.serve(connections=2)
    async with connect(server.url, proxy=None), connect(server.url, proxy=None):
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.url, proxy=None)
        assert refused.value.response.status_code == 503


# -- control --------------------------------------------------------------------------------------------------------------


async def test_cancel_reaches_the_run(stage, until):
    """With the control scope; what is not there is answered."""
    server = await stage.serve(token="rule", tokens=(Token("watch"),))
    asked = []
    async with stage.manager.run(on_cancel=asked.append) as run:
        with run.chain(chain_id="chain_0"):
            async with connect(server.url, **V1) as socket:
                await send(socket, Hello("rule"))
                welcome = await answer(socket, "welcome")
                assert [r["run_id"] for r in welcome["runs"]] == [run.run_id]
                await send(socket, Cancel(run.run_id, "chain_0", "x"))
                assert await answer(socket, "done") == {
                    "type": "done",
                    "id": "x",
                    "run_id": run.run_id,
                    "chain_id": "chain_0",
                }
                await send(socket, Cancel(run.run_id))
                await answer(socket, "done")
                for frame in (Cancel("nowhere"), Cancel(run.run_id, "chain_9")):
                    await send(socket, frame)
                    assert (await answer(socket, "error"))["code"] == 404
            async with connect(server.url, **V1) as socket:
                await send(socket, Hello("watch"), Cancel(run.run_id))
                assert (await answer(socket, "error"))["code"] == 403
    assert asked == ["chain_0", None]


async def test_cancel_of_a_group_ends_its_open_chains_alone(stage):
    """`done` names and counts them, and so it does for a run; a group that is not there, and two names at once, are answered."""
    server = await stage.serve(token="rule")
    asked = []
    async with stage.manager.run(on_cancel=asked.append) as run:
        with (
            run.chain(chain_id="a", group_id="g"),
            run.chain(chain_id="b", group_id="g"),
            run.chain(chain_id="c", group_id="h"),
            run.chain(chain_id="d"),
        ):
            with run.chain(chain_id="over", group_id="g"):
                pass
            run.announce("later", "g")
            async with connect(server.url, **V1) as socket:
                await send(socket, Hello("rule"), Cancel(run.run_id, group_id="g", id="x"))
                done = await answer(socket, "done")
                assert done == {
                    "type": "done", "id": "x", "run_id": run.run_id, "group_id": "g", "chains": ["a", "b"], "ending": 2,
                    "not_begun": 1, "over": 1,
                }  # fmt: skip
                await send(socket, Cancel(run.run_id, group_id="nowhere", id="y"))
                refused = await answer(socket, "error")
                assert (refused["code"], refused["id"]) == (404, "y")
                assert "no open chain in a group 'nowhere'" in refused["message"]
                await send(socket, Cancel(run.run_id, "a", "z", group_id="g"))
                assert (await answer(socket, "error"))["code"] == 400
            client = stage.client(token="rule")
            assert await client.cancel(run.run_id, group_id="h") == ["c"]
            assert await client.cancel(run.run_id, "d") == ["d"]
            assert await client.cancel(run.run_id) == ["a", "b", "c", "d"]
    assert asked == ["later", "a", "b", "c", "d", None]


async def test_a_group_that_cannot_be_cancelled_is_one_sentence(stage):
    """Nobody can tell the producer, no chain of the group is open, or two things are named."""
    async with stage.manager.run(run_id="r") as run:
        with run.chain(chain_id="a", group_id="g"):
            with pytest.raises(InputError, match="gave no on_cancel"):
                stage.manager.cancel("r", group_id="g")
            with pytest.raises(InputError, match="no open chain in a group 'h'"):
                stage.manager.cancel("r", group_id="h")
            with pytest.raises(InputError, match="name one of them"):
                stage.manager.cancel("r", "a", "g")


async def test_a_disconnect_cancels_nothing(stage, until):
    """Clients come and go."""
    server = await stage.serve(token="rule")
    asked = []
    async with stage.manager.run(on_cancel=asked.append):
        socket = await connect(server.url, **V1)
        await send(socket, Hello("rule"), Subscribe("1"))
        await answer(socket, "subscribed")
        socket.transport.abort()
        await until(lambda: not server.statistics().connections)
    assert asked == []


# -- slow clients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [True, False])
async def test_a_client_that_never_reads_is_closed_and_hurts_nobody(stage, say, until, plain):
    """4008, and the other client has every event."""
    server = await stage.serve(client_buffer=64 << 10, behind_bytes=256 << 10)
    options = {} if plain else {"subprotocols": ["rollcast.v1"]}
    dead = await connect(server.url, proxy=None, ping_interval=None, max_queue=1, compression=None, **options)
    if not plain:
        await send(dead, Hello(), Subscribe("1"))
    await until(lambda: server.statistics().subscriptions == 1)
    dead.transport.pause_reading()
    client = stage.client()
    reading = asyncio.create_task(_read_all(client))
    await until(lambda: server.statistics().subscriptions == 2)
    with capture_events(stage.manager) as capture:
        async with stage.manager.run() as run:
            while server.statistics().closed_slow == 0:
                say(run, ["x" * 2000] * 50)
                await stage.manager.drain()
                await asyncio.sleep(0)
    events = await reading
    assert events == capture.events
    check_events(events)
    dead.transport.abort()
    await until(lambda: server.statistics().connections == 0)


async def _read_all(client):
    events = []
    async with client:
        async for event in client:
            events.append(event)
            if event.event_type == "run_end":
                break
    return events


async def test_two_hundred_clients_get_the_same_bytes(stage, say, until):
    """Each the whole run."""
    server = await stage.serve(hello_s=60)
    clients = await asyncio.gather(*(connect(server.url, **V1) for _ in range(200)))
    for socket in clients:
        await send(socket, Hello(), Subscribe("1"))
    await until(lambda: server.statistics().subscriptions == 200)
    async with stage.manager.run() as run:
        say(run, ["x"] * 100)

    async def batches(socket):
        events = []
        while not events or events[-1]["event_type"] != "run_end":
            events += (await answer(socket, "batch"))["events"]
        return json.dumps(events)

    got = await asyncio.gather(*map(batches, clients))
    assert len(set(got)) == 1
    assert len(json.loads(got[0])) == 106
    for socket in clients:
        socket.transport.abort()


# -- its life --------------------------------------------------------------------------------------------------------------


async def test_a_port_in_use_is_one_sentence(stage):
    """With what to do."""
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=rf"127.0.0.1, port {port}, is in use; .* or choose another port"
        ):
            await WebSocketStreamingServer("127.0.0.1", port).start()
    with pytest.raises(InputError, match=r"cannot listen on 203\.0\.113\.7"):
        await WebSocketStreamingServer("203.0.113.7", 0, token="x").start()


async def test_it_tells_clients_that_it_stops_and_can_start_again(stage, say, port):
    """4001; then on the same port, with its history."""
    server = await stage.serve(port=port)
    url = server.url
    async with connect(url, **V1) as socket:
        await send(socket, Hello(), Subscribe("1"))
        cursor = (await answer(socket, "subscribed"))["cursor"] or (await answer(socket, "batch"))["cursor"]
        await server.stop()
        assert await closed(socket) == 4001
    await server.stop()
    async with stage.manager.run() as run:
        say(run, "abc")
    await server.start()
    assert server.url == url
    async with connect(url, **V1) as socket:
        await send(socket, Hello(), Subscribe("1", since=cursor))
        assert (await answer(socket, "subscribed"))["recovered"]
        batch = await answer(socket, "batch")
        assert batch["events"][-1]["event_type"] == "run_end"


async def test_localhost_means_both_families():
    """One port on each address that it has."""
    async with WebSocketStreamingServer(port=0) as server:
        assert server.url == f"ws://localhost:{server.port}"
        async with connect(server.url, proxy=None):
            assert server.statistics().connections == 1


def test_on_a_thread_of_its_own_beside_synchronous_code(say):
    """The trainer never awaits; a client in another loop has the whole run."""
    manager = StreamingManager()
    with WebSocketStreamingServer("127.0.0.1", 0) as server:
        manager.add_observer(server.get_observer())
        thread = server._thread
        assert thread.is_alive()
        with capture_events(manager) as capture, manager.run() as run:
            for _ in range(3):
                say(run, "abc")
        manager.drain_sync()

        async def watch():
            async with WebSocketStreamingClient(server.url, since="start") as client:
                return await _read_all(client)

        assert asyncio.run(watch()) == capture.events
    assert not thread.is_alive()
    manager.close()


def test_on_a_thread_beside_an_event_loop(say):
    """A trainer that awaits in its own loop; watchers in a third; every event arrives, and `cancel` finds its way."""

    async def hang(request, token):
        if token == 10:
            await asyncio.Event().wait()

    agent = BaseAgent(backend=ScriptedBackend("word " * 100, before_token=hang))
    watched = []

    def watch(url):
        async def until_the_end():
            async with WebSocketStreamingClient(url, token="rule", since="start") as client:
                async for event in client:
                    watched.append(event)
                    if len(watched) == 20:
                        await client.cancel(event.run_id, "chain_1")
                        await client.cancel(event.run_id)
                    if event.event_type == "run_end":
                        return

        asyncio.run(until_the_end())

    with WebSocketStreamingServer("127.0.0.1", 0, token="rule") as server:
        agent.streaming_manager.add_observer(server.get_observer())
        watcher = threading.Thread(target=watch, args=(server.url,))
        watcher.start()
        result = agent.run(1, [{"role": "user", "content": "Go on."}], num_chains=2, enable_streaming=True)
        watcher.join(timeout=120)
        assert not watcher.is_alive()
    assert result.status == "cancelled"
    assert {t.finish_reason for t in result} == {"cancelled"}
    check_events(watched)
    agent.streaming_manager.close()


def test_on_a_thread_it_tells_of_a_port_in_use():
    """In the caller's thread."""
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        server = WebSocketStreamingServer("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(InputError, match="is in use"):
            server.start_thread()


@pytest.mark.parametrize("compression", [True, False, None])
async def test_compression_is_one_setting(stage, say, compression):
    """None: not on loopback."""
    server = await stage.serve(compression=compression)
    async with connect(server.url, **V1) as socket, connect(server.url, proxy=None) as plain:
        assert ("Sec-WebSocket-Extensions" in socket.response.headers) is bool(compression)
        assert "Sec-WebSocket-Extensions" not in plain.response.headers
        await send(socket, Hello(), Subscribe("1"))
        async with stage.manager.run() as run:
            say(run, "abc")
        assert await plainly(plain)


def test_settings_are_one_typed_object():
    """Frozen, with the documented defaults."""
    settings = ServerSettings()
    assert (settings.batch_s, settings.batch_bytes, settings.batch_events) == (0.025, 64 << 10, 256)
    assert (settings.history_bytes, settings.client_buffer, settings.hello_s) == (64 << 20, 1 << 20, 5.0)
    with pytest.raises(AttributeError):
        settings.batch_s = 1


@pytest.mark.parametrize("buffer", [1, 1000])
async def test_a_buffer_smaller_than_an_answer_lets_clients_in(stage, say, read, buffer):
    """The list of runs is larger; who takes it is not slow."""
    await stage.serve(client_buffer=buffer)
    runs = [stage.manager.run().open() for _ in range(50)]
    async with stage.client() as client:
        reading = asyncio.create_task(read(client))
        while not stage.server.statistics().subscriptions:
            await asyncio.sleep(0.001)
        async with stage.manager.run() as run:
            say(run, "abc")
        assert {event.run_id for event in await reading} == {run.run_id}
        assert client.reconnections == 0
    for each in runs:
        each.close()
