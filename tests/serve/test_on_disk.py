"""A server over a record of another process: queries, replay, and following one that goes on."""

import asyncio
import itertools
import json
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from rollcast.archive import ArchiveObserver
from rollcast.errors import ArchiveError, InputError
from rollcast.records import StreamEvent
from rollcast.serve import ServerSettings, Token, WebSocketStreamingClient, WebSocketStreamingServer
from rollcast.serve.protocol import SUBPROTOCOL
from rollcast.stream import StreamingManager
from rollcast.testing import capture_events
from serve.talk import Talk

TOKEN = "t"


class Writer:
    """A manager whose runs leave a record."""

    def __init__(self, path):
        self.path = path
        self.manager = StreamingManager()
        self.record = ArchiveObserver(path, level="tokens", masker=False)
        self.manager.add_observer(self.record)

    async def run(self, run_id="r", chains=2, words=5, group="g"):
        async with self.manager.run(chains=chains, run_id=run_id) as run:
            for number in range(chains):
                with run.chain(chain_id=f"chain_{number}", group_id=group) as chain:
                    with chain.generation() as generation:
                        for word in range(words):
                            generation.chunk(f"{word}\n")  # a record merges no lines
                    chain.reward(float(number))

    async def written(self):
        await self.manager.drain()
        await self.record.recorded()


@pytest.fixture
async def writer(tmp_path):
    writer = Writer(tmp_path / "records" / "one")
    yield writer
    await writer.manager.aclose()


@pytest.fixture
async def complete(writer):
    """The path of a record with two runs and a training step, and its events."""
    with capture_events(writer.manager) as capture:
        await writer.run("r1")
        await writer.run("r2", chains=3)
        writer.manager.emit(
            StreamEvent.now("train_step", train_step=1, policy_version=1, metrics={"loss": 0.5})
        )
        await writer.manager.drain()
    await writer.manager.aclose()
    return writer.path, capture.events


@pytest.fixture
async def open_record():
    """Serves a record, as `rollcast open` does."""
    servers = []

    async def serve(path, **settings):
        settings = ServerSettings(tokens=(Token(TOKEN),), close_s=0.5, hello_s=60.0, **settings)
        server = await asyncio.to_thread(
            WebSocketStreamingServer, "127.0.0.1", 0, settings=settings, record=path
        )
        servers.append(server)
        return await server.start()

    yield serve
    for server in servers:
        await server.stop()


@pytest.fixture
async def talk_to():
    sockets = []

    async def talk(server):
        socket = await connect(server.url, subprotocols=[SUBPROTOCOL], proxy=None)
        sockets.append(socket)
        talk = Talk(socket)
        await talk.say("hello", token=TOKEN, role="page", features=["parts"])
        await talk.hear("welcome")
        return talk

    yield talk
    for socket in sockets:
        await socket.close()


def is_train_step(event):
    return event["event_type"] == "train_step"


def ends(run_id):
    return lambda event: event["event_type"] == "run_end" and event["run_id"] == run_id


async def test_queries_answer_from_the_record(complete, open_record, talk_to):
    """Runs, chains by filter and order, the story of one, and training steps; nothing is missing."""
    path, events = complete
    talk = await talk_to(await open_record(path))
    rows, done = await talk.ask("runs")
    assert [row["run_id"] for row in rows] == ["r2", "r1"]
    assert "missing" not in done
    rows, done = await talk.ask("chains", run="r2", sort="-reward")
    assert [(row["chain_id"], row["reward"], row["state"]) for row in rows] == [
        ("chain_2", 2.0, "ended"), ("chain_1", 1.0, "ended"), ("chain_0", 0.0, "ended")
    ]  # fmt: skip
    assert "missing" not in done
    story, done = await talk.ask("chain", run="r1", chain="chain_1")
    assert [(e["event_type"], e["seq"]) for e in story] == [
        (e.event_type, e.seq) for e in events if e.run_id == "r1" and e.chain_id == "chain_1"
    ]
    assert "missing" not in done
    rows, done = await talk.ask("steps")
    assert [row["train_step"] for row in rows] == [1]
    _, refused = await talk.ask("chain", chain="chain_9")
    assert refused["type"] == "error"


async def test_from_the_start_every_event_comes_and_a_cursor_goes_on(complete, open_record, talk_to):
    """By `rollcast.v1`, and by the Python client, which checks the order; a filter applies."""
    path, events = complete
    server = await open_record(path)
    talk = await talk_to(server)
    await talk.say("subscribe", id="a", since="start")
    answer = await talk.hear("subscribed")
    assert answer["recovered"]
    given, _ = await talk.events(is_train_step)
    assert [(e["event_type"], e["seq"]) for e in given] == [(e.event_type, e.seq) for e in events]
    await talk.say("subscribe", id="b", since="start", filter={"runs": ["r1"], "types": ["chain_end"]})
    some, _ = await talk.events(lambda event: event["chain_id"] == "chain_1")
    assert [e["chain_id"] for e in some] == ["chain_0", "chain_1"]
    await talk.say("unsubscribe", id="b")
    await talk.say("subscribe", id="c", since=answer["cursor"].replace(".0", ".5"))
    rest, _ = await talk.events(is_train_step)
    assert rest == given[5:]
    async with WebSocketStreamingClient(server.url, token=TOKEN, since="start") as client:
        async with asyncio.timeout(60):
            async for event in client:
                if event.event_type == "train_step":
                    break
    assert client.recovered is not False


async def test_a_replay_seeks_changes_its_speed_and_its_filter(complete, open_record, talk_to):
    """At the end too, after which nothing comes until it seeks."""
    path, events = complete
    talk = await talk_to(await open_record(path))
    await talk.say("subscribe", id="a", since="start", speed=0)
    first = (await talk.hear("subscribed"))["cursor"]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(talk.hear("batch"), 0.2)
    await talk.say("speed", id="a", speed="max")
    assert (await talk.hear("done", "error"))["type"] == "done"
    given, _ = await talk.events(is_train_step)
    assert len(given) == len(events)
    for _ in range(2):
        await talk.say("seek", id="a", cursor=first)
        assert (await talk.hear("subscribed", "error"))["cursor"] == first
        again, _ = await talk.events(is_train_step)
        assert again == given
    await asyncio.sleep(0.4)  # it has certainly come to the end
    await talk.say("update", id="a", filter={"types": ["chain_end"]})
    assert (await talk.hear("subscribed", "error"))["type"] == "subscribed"
    await talk.say("seek", id="a", time=given[0]["timestamp"])
    await talk.hear("subscribed")
    ended, _ = await talk.events(lambda event: event["run_id"] == "r2" and event["chain_id"] == "chain_2")
    assert {event["event_type"] for event in ended} == {"chain_end"}


async def test_a_record_that_goes_on_is_followed(writer, open_record, talk_to):
    """`live` begins at its end, `start` at its beginning; both go on until the record ends, under changing filters."""
    await writer.run("r1")
    await writer.written()
    talk = await talk_to(await open_record(writer.path))
    await talk.say("subscribe", id="live", since="live")
    await talk.hear("subscribed")
    await talk.say("subscribe", id="start", since="start", filter={"types": ["run_end"]})
    await talk.hear("subscribed")
    batch = await talk.hear("batch")
    assert (batch["id"], batch["events"][0]["run_id"]) == ("start", "r1")
    await talk.say("update", id="start", filter={"types": ["chain_end"]})
    await talk.hear("subscribed")
    await writer.run("r2")
    got = {"live": [], "start": []}
    while not any(map(ends("r2"), got["live"])) or len(got["start"]) < 2:
        batch = await talk.hear("batch")
        got[batch["id"]] += batch["events"]
    assert {event["run_id"] for event in got["live"]} == {"r2"}
    assert got["live"][0]["event_type"] == "run_start"
    assert [(e["event_type"], e["run_id"]) for e in got["start"]] == [("chain_end", "r2")] * 2


async def test_rows_of_a_record_that_goes_on_follow_while_they_are_watched(writer, open_record, talk_to):
    """New chains, and chains that end; a row that no longer fits comes once more."""
    await writer.run("r1")
    await writer.written()
    talk = await talk_to(await open_record(writer.path))
    await talk.say("query", id="all", what="chains", run="r2", watch=True)
    assert (await talk.hear("rows"))["rows"] == []
    await talk.say("query", id="open", what="chains", filter={"state": ["running"]}, watch=True)
    assert (await talk.hear("rows"))["rows"] == []
    last = {}
    async with writer.manager.run(run_id="r2", chains=1) as run:
        with run.chain(chain_id="c") as chain:
            while len(last) < 2:
                frame = await talk.hear("rows")
                assert frame["changed"]
                last[frame["id"]] = frame["rows"][-1]
            assert {row["state"] for row in last.values()} == {"running"}
            chain.reward(1.0)
    while {row["state"] for row in last.values()} != {"ended"}:
        frame = await talk.hear("rows")
        last[frame["id"]] = frame["rows"][-1]
    assert last["all"]["reward"] == 1.0
    for name in ("all", "open"):
        await talk.say("stop", id=name)
        assert (await talk.hear("done"))["id"] == name


async def test_a_story_of_an_open_chain_goes_on_at_its_cursor(writer, open_record, talk_to):
    """What the query gave, and then what comes: nothing twice, nothing missing."""
    async with writer.manager.run(run_id="r", chains=1) as run:
        with run.chain(chain_id="c") as chain, chain.generation() as generation:
            generation.chunk("a\n")
            await writer.written()
            talk = await talk_to(await open_record(writer.path))
            story, done = await talk.ask("chain", run="r", chain="c")
            await talk.say("subscribe", id="s", since=done["cursor"], filter={"chains": ["c"]})
            await talk.hear("subscribed")
            generation.chunk("b\n")
    rest, _ = await talk.events(lambda event: event["event_type"] == "chain_end")
    words = [e["data"]["content"] for e in story + rest if e["event_type"] == "llm_generation_chunk"]
    assert words == ["a\n", "b\n"]
    seqs = [e["seq"] for e in story + rest]
    assert seqs == sorted(set(seqs))


async def test_a_cursor_of_another_record_begins_at_the_end_and_says_so(writer, open_record, talk_to):
    """`recovered` is false, and what comes later is given."""
    await writer.run("r1")
    await writer.written()
    talk = await talk_to(await open_record(writer.path))
    for name, cursor in (("a", "0123456789ab.3"), ("b", "nonsense"), ("c", "5.3.0123456789ab.7")):
        await talk.say("subscribe", id=name, since=cursor, filter={"types": ["run_start"]})
        answer = await talk.hear("subscribed")
        assert (answer["id"], answer["recovered"]) == (name, False)
    await writer.run("r2")
    came = {}
    while len(came) < 3:
        batch = await talk.hear("batch")
        came[batch["id"]] = [event["run_id"] for event in batch["events"]]
    assert came == {name: ["r2"] for name in "abc"}


@pytest.mark.skipif(sys.platform == "win32", reason="it kills with a signal")
async def test_runs_of_a_writer_that_is_killed_end_with_a_gap(tmp_path, open_record, talk_to):
    """And the rows of their chains become `lost` for those who watch."""
    program = Path(__file__).with_name("recorded_run.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), str(tmp_path), "killed", "0", stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            await process.stdout.readline()
            while not (tmp_path / "killed" / "chains.jsonl").exists():
                await asyncio.sleep(0.05)
        talk = await talk_to(await open_record(tmp_path / "killed"))
        await talk.say("subscribe", id="s", since="start")
        await talk.hear("subscribed")
        await talk.hear("batch")
        rows, watched = [], []
        await talk.say("query", id="q", what="chains", watch=True)
        while len(rows) < 4:
            rows += (await talk.hear("rows"))["rows"]
        process.send_signal(signal.SIGKILL)
        gap = None
        while gap is None or len(watched) < 4:
            frame = await talk.hear("batch", "rows")
            if frame["type"] == "rows":
                watched += [row["chain_id"] for row in frame["rows"] if row["state"] == "lost"]
            else:
                gaps = [e for e in frame["events"] if e["event_type"] == "gap"]
                gap = next((e for e in gaps if "run_status" in e["data"]), gap)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()
    assert gap["data"]["run_status"] == "unknown"
    assert sorted(set(watched)) == [f"chain_{n}" for n in range(4)]


async def test_it_asks_for_its_token_and_has_nothing_to_cancel(complete, open_record, talk_to):
    """Recordings are as secret as runs."""
    server = await open_record(complete[0])
    async with connect(server.url, subprotocols=[SUBPROTOCOL], proxy=None) as socket:
        await socket.send('{"type":"hello"}')
        assert json.loads(await socket.recv())["code"] == 4500
    talk = await talk_to(server)
    await talk.say("cancel", run_id="r1", id="x")
    assert (await talk.hear("error"))["code"] == 403
    with pytest.raises(InputError, match="this server serves a record"):
        server.get_observer()


async def test_the_process_that_reads_starts_with_the_server(complete, open_record, talk_to, until):
    """So that the first client need not wait for it; it is the one that answers."""
    server = await open_record(complete[0])
    records = server._broadcaster.feeds.records
    await until(lambda: records.pid is not None)
    first = records.pid
    rows, _ = await (await talk_to(server)).ask("runs")
    assert {row["run_id"] for row in rows} == {"r1", "r2"}
    assert records.pid == first


async def test_clients_that_ask_while_it_stops_leave_no_process(complete, open_record, talk_to, until):
    """A page that is just seeking, or coming back; nobody would end the process that reads for it."""
    server = await open_record(complete[0])
    talk = await talk_to(server)

    async def asks():
        with suppress(ConnectionClosed):
            for number in itertools.count():
                await talk.say("subscribe", id=f"s{number}", since="start", speed=1.0)
                await talk.say("query", id=f"q{number}", what="runs")
                await talk.say("unsubscribe", id=f"s{number}")
                await asyncio.sleep(0)

    asking = asyncio.create_task(asks())
    await until(lambda: server._queries.running)
    await server.stop()
    assert server._queries.records._holder.child is None
    await asking


async def test_a_stop_that_is_cancelled_leaves_no_process(complete, open_record, talk_to):
    """As if somebody gave it only so much time, and a client that says nothing takes longer. It can be started again."""
    server = await open_record(complete[0])
    talk = await talk_to(server)
    await talk.ask("runs")
    talk.socket.transport.pause_reading()
    stopping = asyncio.create_task(server.stop())
    await until_closing(server)
    stopping.cancel()
    with suppress(asyncio.CancelledError):
        await stopping
    assert server._queries.records._holder.child is None
    talk.socket.transport.abort()
    await server.start()
    rows, _ = await (await talk_to(server)).ask("runs")
    assert {row["run_id"] for row in rows} == {"r1", "r2"}


async def until_closing(server):
    """Wait until it waits for its clients to go."""
    async with asyncio.timeout(60):
        while not server._closing:
            await asyncio.sleep(0.001)


async def test_a_server_of_runs_starts_no_process_that_reads_before_it_is_asked():
    """It would take memory from those who never ask."""
    async with WebSocketStreamingServer("127.0.0.1", 0) as server:
        assert server._broadcaster.feeds.records._holder.child is None


def test_what_is_not_a_record_is_one_sentence(tmp_path):
    """Nothing there, and a folder that is none."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ArchiveError, match="rollcast runs lists the records"):
            WebSocketStreamingServer(port=0, record=path)
