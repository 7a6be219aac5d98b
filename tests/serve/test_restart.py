"""Servers that go and come back while a run goes on, and tokens that end while somebody watches."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import types

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from rollcast.errors import RefusedError
from rollcast.records import EventFilter, StreamEvent
from rollcast.serve import Token
from rollcast.serve.client import ClientSession
from rollcast.serve.protocol import Batch, Subscribed, Welcome
from rollcast.serve.settings import Limits
from rollcast.testing import capture_events

# A program with a run that opens when it is told "open", says a word for every further line, and ends with its input.
PROGRAM = """
import asyncio, sys
from rollcast.serve import ServerSettings, WebSocketStreamingServer
from rollcast.stream import StreamingManager

async def main(port):
    manager = StreamingManager()
    server = WebSocketStreamingServer("127.0.0.1", port, settings=ServerSettings(close_s=0.5, hello_s=60.0))
    await server.start()
    manager.add_observer(server.get_observer())
    print(server.port, flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            while line := await lines.readline():
                generation.chunk(line.decode())
    await manager.aclose()
    await server.stop()

asyncio.run(main(int(sys.argv[1])))
"""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Coming back takes no time here."""
    monkeypatch.setattr("rollcast.serve.client.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("rollcast.serve.client.LONGEST_PAUSE_S", 0.01)


async def program(port):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(port), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    )  # fmt: skip
    async with asyncio.timeout(60):
        await process.stdout.readline()  # it serves
        return process


async def test_another_process_on_the_same_port_is_told_by_a_gap_and_a_snapshot(stage, until, port):
    """The first is killed in the middle of its run: what is known of it ends with a gap, and the other's run goes on."""
    first = await program(port)
    second = None
    client = stage.client(f"ws://127.0.0.1:{port}")
    got = []

    async def watch():
        async for event in client:
            got.append(event)

    task = asyncio.create_task(watch())
    try:
        await until(lambda: client.runs, timeout=60)
        first.stdin.write(b"one\n")
        await until(lambda: any(e.data.get("content", "").endswith("one\n") for e in got), timeout=60)
        first.kill()
        await first.wait()
        killed = len(got)
        second = await program(port)
        second.stdin.write(b"two\n")
        await until(lambda: any("two" in (e.data.get("content") or "") for e in got[killed:]), timeout=60)
        second.stdin.write_eof()
        await until(lambda: got[-1].event_type == "run_end", timeout=60)
        await second.wait()
    finally:
        for process in (first, second):
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
        await client.aclose()
        await task
    assert not client.recovered
    runs = [e.run_id for e in got]
    gap = got[killed]
    assert (gap.event_type, gap.run_id, gap.data["from_seq"]) == ("gap", runs[0], got[killed - 1].seq + 1)
    assert set(runs[: killed + 1]) == {runs[0]}
    assert len(set(runs[killed + 1 :])) == 1
    assert runs[-1] != runs[0]


class Clock:
    """Stands for `time` in the server: the epoch is the test's."""

    def __init__(self, monkeypatch):
        import time

        self.now = 1000.0
        stands = types.SimpleNamespace(monotonic=time.monotonic, time=lambda: self.now)
        monkeypatch.setattr("rollcast.serve.server.time", stands)


async def test_a_token_that_ends_while_somebody_watches_is_replaced_and_nothing_is_missed(
    stage, until, monkeypatch
):
    """4003, and the client asks for a new one; one whose token is fixed is told so, and stays away."""
    clock = Clock(monkeypatch)
    tokens = (Token("a", expires_at=2000.0), Token("b", expires_at=3000.0), Token("c"))
    server = await stage.serve(tokens=tokens, heartbeat_s=0.5)
    given = itertools.chain("ab", itertools.repeat("c"))  # a slow machine may come back once more
    client, fixed = stage.client(token=lambda: next(given)), stage.client(token="a")
    got, told = [], []

    async def watch(client, into):
        async for event in client:
            into.append(event)
            if event.event_type == "run_end":
                return

    tasks = [asyncio.create_task(watch(client, got)), asyncio.create_task(watch(fixed, told))]
    await until(lambda: server.statistics().subscriptions == 2)
    with capture_events(stage.manager) as capture:
        async with stage.manager.run() as run:
            with run.chain() as chain, chain.generation() as generation:
                for when in (1000.0, 2000.0, 3000.0):
                    clock.now = when
                    generation.chunk(f"{when} ")
                    await until(lambda when=when: client.reconnections >= when // 1000 - 1)
                    await until(lambda when=when: any(f"{when} " == e.data.get("content") for e in got))
        async with asyncio.timeout(60):
            await tasks[0]
    assert got == capture.events
    with pytest.raises(RefusedError, match=r"the token has expired; .* \(4003\)"):
        await tasks[1]
    assert told == capture.events[: len(told)]
    await client.aclose()
    await fixed.aclose()


async def test_a_plain_client_whose_token_ends_is_closed(stage, until, monkeypatch):
    """4003, and no further event."""
    clock = Clock(monkeypatch)
    server = await stage.serve(tokens=(Token("a", expires_at=2000.0),), heartbeat_s=0.5)
    bearer = {"Authorization": "Bearer a"}
    async with connect(server.url, proxy=None, additional_headers=bearer) as socket:
        await until(lambda: server.statistics().subscriptions == 1)
        clock.now = 2000.0
        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(60):
                await socket.recv()
    assert closed.value.rcvd.code == 4003


async def test_a_server_that_is_full_or_begins_is_tried_again(stage, say, read, until):
    """503 is no refusal for good."""
    server = await stage.serve(connections=1)
    async with stage.manager.run() as run:
        say(run, "abc")
    first = await connect(server.url, proxy=None)
    client = stage.client(since="start")
    reading = asyncio.create_task(read(client))
    await until(lambda: client._failures > 2)
    await first.close()
    assert (await reading)[-1].event_type == "run_end"
    await client.aclose()


# -- without a socket ------------------------------------------------------------------------------------------------------


def event(kind, seq, run="r", **data):
    fields = {"event_type": kind, "chain_id": "", "timestamp": 1.0, "data": data, "seq": seq, "run_id": run}
    return StreamEvent.from_dict(json.loads(json.dumps(fields)))


START = {"chains": 1, "groups": 1, "agent": "", "model": "", "backend": "", "policy_version": 0}
END = {
    "status": "completed",
    "chains": 1,
    "failed": 0,
    "mean_reward": None,
    "completion_tokens": 0,
    "duration_s": 0.1,
}


def again(session, recovered=True, cursor=None):
    """The connection is made again."""
    (subscribe,), _ = session.receive(Welcome(1, [], 20.0, Limits(), ["read"]))
    _, told = session.receive(Subscribed("1", recovered, cursor))
    return subscribe.since, told


def test_a_run_that_ended_before_the_cut_has_no_gap():
    """Nothing of it is missing."""
    session = ClientSession(EventFilter())
    again(session)
    session.receive(Batch("1", "x.2", [event("run_start", 0, **START), event("run_end", 1, **END)]))
    assert again(session, recovered=False) == ("x.2", [])


def test_a_cut_before_the_first_batch_comes_back_to_the_last_cursor():
    """Snapshots that were to come did not; nothing was read since."""
    session = ClientSession(EventFilter(), check=False)
    again(session, cursor="x.1")
    session.receive(Batch("1", "x.7", []))
    again(session, recovered=False)
    assert session.cursor == "x.7"
    assert again(session)[0] == "x.7"
