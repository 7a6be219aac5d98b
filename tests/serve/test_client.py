"""The client: it comes back, and misses nothing."""

import asyncio
from collections import Counter

import pytest

from rollcast.errors import DecodeError, FilterError, GrammarError, InputError, RefusedError
from rollcast.records import EventFilter, StreamEvent, check_events
from rollcast.serve import ServerSettings, Token, WebSocketStreamingClient, WebSocketStreamingServer
from rollcast.serve.client import ClientSession
from rollcast.serve.protocol import Batch, Ping, Pong, RunInfo, Subscribe, Subscribed, Welcome
from rollcast.serve.settings import Limits
from rollcast.testing import capture_events


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Coming back takes no time here."""
    monkeypatch.setattr("rollcast.serve.client.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("rollcast.serve.client.LONGEST_PAUSE_S", 0.01)


def event(kind, seq, chain="", run="r", **data):
    return StreamEvent.from_dict(
        {"event_type": kind, "chain_id": chain, "timestamp": 1.0, "data": data, "seq": seq, "run_id": run}
    )


async def test_it_sees_the_whole_run(stage, say, read):
    """Event by event what the manager emitted; with a filter, what that wants."""
    await stage.serve()
    whole, some = stage.client(), stage.client(filter=EventFilter(types=["chain_start", "run_end"]))
    async with whole, some:
        reading = asyncio.gather(read(whole), read(some))
        await asyncio.sleep(0)
        with capture_events(stage.manager) as capture:
            async with stage.manager.run() as run:
                while stage.server.statistics().subscriptions < 2:
                    await asyncio.sleep(0)
                for _ in range(3):
                    say(run, "abc")
        everything, part = await reading
    assert everything == [e for e in capture.events if e in everything]
    assert len(everything) >= 18
    assert [e.event_type for e in part] == ["chain_start"] * 3 + ["run_end"]
    assert whole.recovered


@pytest.mark.parametrize("seed", range(6))
async def test_over_a_connection_that_is_cut_nothing_is_missed_or_repeated(stage, say, proxy, seed):
    """Cut in the middle of handshakes, frames and batches, again and again."""
    server = await stage.serve(batch_s=0.001)
    async with proxy(server.port) as between:
        between.cut_after = 50 + 400 * seed
        client = stage.client(between.url, since="start")
        got = []
        finished = asyncio.Event()

        async def watch():
            async for event in client:
                got.append(event)
                if len(got) % 37 == seed:
                    between.cut_after = 700 * (seed + 1)
                    between.cut()
                if event.event_type == "run_end":
                    finished.set()
                    return

        task = asyncio.create_task(watch())
        with capture_events(stage.manager) as capture:
            async with stage.manager.run() as run:
                for i in range(40):
                    say(run, [f"{i}.{j} " for j in range(10)])
                    await asyncio.sleep(0.001)
        async with asyncio.timeout(60):
            await task
        await client.aclose()
    assert got == capture.events
    assert client.reconnections >= 3
    check_events(got)


async def test_bytes_that_were_doubled_end_the_connection_and_not_the_client(stage, say, proxy):
    """It comes back to its cursor."""
    server = await stage.serve(batch_s=0.001)
    async with proxy(server.port) as between:
        mangled = 0

        def mangle(data):
            nonlocal mangled
            if b"batch" in data and mangled < 5:
                mangled += 1
                return data[: len(data) // 2] + data
            return data

        between.mangle = mangle
        client = stage.client(between.url, since="start")
        with capture_events(stage.manager) as capture:
            async with stage.manager.run() as run:
                say(run, ["word "] * 200)
        got = []
        async with asyncio.timeout(60):
            async for event in client:
                got.append(event)
                if event.event_type == "run_end":
                    break
        await client.aclose()
    assert mangled == 5
    assert got == capture.events


async def test_it_goes_on_after_the_server_was_restarted(stage, say, until, port):
    """The same server: nothing is missing. Another one: a gap stands for what is."""
    server = await stage.serve(port=port)
    client = stage.client()
    got = []

    async def watch():
        async for event in client:
            got.append(event)

    task = asyncio.create_task(watch())
    await until(lambda: server.statistics().subscriptions == 1)
    with capture_events(stage.manager):  # so that what the server misses is an event
        await _restart(stage, server, client, got, until)
    check_events(got, late=True)
    await client.aclose()
    await task


async def _restart(stage, server, client, got, until):
    port = server.port
    async with stage.manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            generation.chunk("one ")
            await until(lambda: got and got[-1].event_type == "llm_generation_chunk")
            await server.stop()
            generation.chunk("two ")
            await server.start()
            await until(lambda: len(got) == 5)
            assert [e.seq for e in got] == [0, 1, 2, 3, 4]
            assert client.recovered

            await server.stop()
            stage.manager.remove_observer(server.get_observer())
            generation.chunk("three ")
            stage.server = WebSocketStreamingServer(
                "127.0.0.1", port, settings=ServerSettings(close_s=0.5, hello_s=60.0)
            )
            stage.manager.add_observer(stage.server.get_observer())
            await stage.server.start()
            await until(lambda: got[-1].event_type == "chain_snapshot")
            assert not client.recovered
            assert got[-2].event_type == "gap"
            assert got[-2].data["from_seq"] == 5
            assert got[-1].data["content"] == "one two three "
    await until(lambda: got[-1].event_type == "run_end")


async def test_it_waits_for_a_server_that_is_not_there_yet(stage, say, until, caplog, port):
    """And says so once."""
    client = WebSocketStreamingClient(f"ws://127.0.0.1:{port}")
    got = []

    async def watch():
        async for event in client:
            got.append(event)

    task = asyncio.create_task(watch())
    await until(lambda: client._failures > 3)
    assert (
        len([r for r in caplog.records if "cannot be reached" in r.message and r.levelname == "WARNING"]) == 1
    )
    await stage.serve(port=port)
    await until(lambda: stage.server.statistics().subscriptions == 1)
    async with stage.manager.run() as run:
        say(run, "a")
    await until(lambda: got and got[-1].event_type == "run_end")
    await client.aclose()
    await task


async def test_as_a_context_manager_it_raises_where_nobody_listens(port):
    """One sentence."""
    with pytest.raises(RefusedError, match=rf"ws://127.0.0.1:{port} cannot be reached: "):
        async with WebSocketStreamingClient(f"ws://127.0.0.1:{port}"):
            pass


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, r"token is missing or wrong \(4500\)"),
        ("wrong", r"\(4500\)"),
        ("old", r"token has expired; .* \(4003\)"),
    ],
)
async def test_a_refusal_for_good_is_raised(stage, read, token, says):
    """It does not come back."""
    await stage.serve(token="secret", tokens=(Token("old", expires_at=1.0),))
    client = stage.client(token=token)
    with pytest.raises(RefusedError, match=says):
        await read(client)
    await client.aclose()
    assert stage.server.statistics().connections <= 1


async def test_a_new_token_can_be_had_for_each_connection(stage, say, read):
    """Where they expire."""
    await stage.serve(token="secret", tokens=(Token("old", expires_at=1.0),))
    tokens = iter(["old", "old", "secret"])
    client = stage.client(token=lambda: next(tokens), since="start")
    async with stage.manager.run() as run:
        say(run, "a")
    assert (await read(client))[-1].event_type == "run_end"
    assert client.reconnections == 2
    await client.aclose()


async def test_it_answers_pings(stage, say, until):
    """So that it is not taken for gone: a second ping would not come."""
    server = await stage.serve(heartbeat_s=1)
    client = stage.client()
    got = []

    async def watch():
        async for event in client:
            got.append(event)

    task = asyncio.create_task(watch())
    await until(lambda: server.statistics().subscriptions == 1)
    pings = Counter()  # by connection: one that stands still for a while may be ended

    def count(frame):
        pings[client.reconnections] += isinstance(frame, Ping)
        return receive(frame)

    receive, client._session.receive = client._session.receive, count
    await until(lambda: max(pings.values(), default=0) > 1)
    await client.aclose()
    await task


async def test_it_cancels(stage):
    """With the scope for it."""
    await stage.serve(token="rule", tokens=(Token("watch"),))
    asked = []
    async with stage.manager.run(on_cancel=asked.append) as run:
        await stage.client(token="rule").cancel(run.run_id)
        with pytest.raises(
            RefusedError, match="does not cancel: cancel needs a token with the control scope"
        ):
            await stage.client(token="watch").cancel(run.run_id)
        with pytest.raises(RefusedError, match="has no open chain 'x'"):
            await stage.client(token="rule").cancel(run.run_id, "x")
    assert asked == [None]


def test_what_is_no_address_is_said():
    """Before anything is tried."""
    for url in ("http://localhost:1", "localhost:8765", "ws://", ""):
        with pytest.raises(InputError, match="is not a WebSocket address"):
            WebSocketStreamingClient(url)
    with pytest.raises(FilterError, match="union"):
        WebSocketStreamingClient("ws://x", filter=EventFilter(chains="a") | EventFilter(types="reward"))


# -- without a socket --------------------------------------------------------------------------------------------------------


def welcomed(session, *running):
    runs = [RunInfo(run_id, None, "running", 1) for run_id in running]
    (subscribe,), _ = session.receive(Welcome(1, runs, 20.0, Limits(), ["read"]))
    return subscribe.since


def test_a_session_resumes_from_the_last_batch():
    """Not from what it asked for at first."""
    session = ClientSession(EventFilter(), "start")
    assert welcomed(session) == "start"
    session.receive(Subscribed("1", True, None))
    assert session.cursor is None
    session.receive(Batch("1", "x.7", []))
    assert welcomed(session) == "x.7"
    assert session.receive(Ping()) == ([Pong()], [])
    assert isinstance(session.receive(Welcome(1, [], 20.0, Limits(), []))[0][0], Subscribe)


def test_what_is_lost_is_a_gap():
    """Up to the snapshot, or the next event; for a run that has ended meanwhile, at once."""
    session = ClientSession(EventFilter())
    welcomed(session)
    session.receive(Subscribed("1", True, "x.0"))
    start = {"chains": 1, "groups": 1, "agent": "", "model": "", "backend": "", "policy_version": 0}
    session.receive(
        Batch("1", "x.2", [event("run_start", 0, run="a", **start), event("run_start", 0, run="b", **start)])
    )
    welcomed(session, "a")
    _, told = session.receive(Subscribed("1", False, None))
    assert [(e.event_type, e.run_id, e.data["from_seq"]) for e in told] == [("gap", "b", 1)]
    assert not session.recovered
    snapshot = event("chain_snapshot", 9, "chain_0", "a", messages=[], content=None, tool_calls=[], as_of=9)
    _, told = session.receive(Batch("1", "y.1", [snapshot]))
    assert [(e.event_type, e.data.get("from_seq"), e.data.get("to_seq")) for e in told] == [
        ("gap", 1, 9),
        ("chain_snapshot", None, None),
    ]


def test_what_breaks_the_grammar_is_raised_unless_told_otherwise():
    """An event that comes twice."""
    twice = [event("reward", 4, "chain_0", reward=1.0, metrics={})] * 2
    with pytest.raises(GrammarError):
        ClientSession(EventFilter()).receive(Batch("1", "x.1", twice))
    assert ClientSession(EventFilter(), check=False).receive(Batch("1", "x.1", twice))[1] == twice


def test_a_batch_with_a_wrong_event_leaves_the_cursor_before_it():
    """Its other events did not reach the caller, who may come back for them."""
    session = ClientSession(EventFilter())
    session.receive(Batch("1", "h.1", []))
    with pytest.raises(DecodeError):
        session.receive(Batch("1", "h.2", [event("chain_end", 0, "chain_0")]))  # it has no data
    assert session.cursor == "h.1"
