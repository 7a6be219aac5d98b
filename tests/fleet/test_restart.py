"""A hub that dies and comes back: what it has it does not take twice, and what it lacks it is sent again."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys

import msgspec
import pytest

from fleet.by_hand import (
    GENERATION,
    TOKEN,
    chain,
    chain_end,
    end,
    event,
    folders,
    is_kind,
    producing,
    start,
    talking,
)
from ports import kept_port
from rollcast.archive import Archive, ArchiveObserver
from rollcast.archive.index import read_run_file
from rollcast.fleet.hub import Hub
from rollcast.fleet.restored import Restored
from rollcast.records import decode
from rollcast.serve import ServerSettings, Token, WebSocketStreamingClient, WebSocketStreamingServer
from rollcast.stream import StreamingManager

LEFT_OUT = ("ROLLCAST_RECORDS", "ROLLCAST_TOKEN", "ROLLCAST_HUB", "ROLLCAST_HUB_TOKEN", "SSH_CONNECTION")
ENV = {name: value for name, value in os.environ.items() if name not in LEFT_OUT} | {"PYTHONUNBUFFERED": "1"}


class Commanded:
    """A `rollcast hub` of its own process.

    Attributes:
        url, token: for producers and viewers.
        lines: what it printed first.
    """

    def __init__(self, process):
        self.process = process
        self.lines = []

    def ready(self):
        """Wait until it serves."""
        for line in self.process.stdout:
            self.lines.append(line)
            if "Ctrl-C ends it" in line:
                break
        said = "".join(self.lines)
        self.url = re.search(r"ROLLCAST_HUB=(\S+)", said)[1].replace("localhost", "127.0.0.1")
        self.token = re.search(r"ROLLCAST_HUB_TOKEN=(\S+)", said)[1]
        return self

    def end(self, number):
        """Send a signal, and wait until it has ended; what it said on the standard error."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[1]


@pytest.fixture
def command(tmp_path):
    """Starts a hub that records in one directory, at one port."""
    started = []
    stack = contextlib.ExitStack()
    port = stack.enter_context(kept_port())

    def start(*args):
        arguments = ["hub", "--record-dir", str(tmp_path / "records"), "--port", str(port), *args]
        process = subprocess.Popen(
            [sys.executable, "-m", "rollcast", *arguments],
            env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
        started.append(process)
        return Commanded(process).ready()

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
    stack.close()


def facts_of(directory):
    """What the records in it say, in the order in which they began."""
    found = [(read_run_file(path), path) for path in folders(directory)]
    return sorted(found, key=lambda each: each[0].started_at)


def events_in(path):
    """The events of a record, as type and `seq`."""
    return [(str(each.event_type), each.seq) for each in Archive.open(path).events()]


BEGUN = [start(0), chain(1, "chain_0"), event("llm_generation_start", 2, "chain_0", step=1, **GENERATION)]
GENERATED = {
    "content": "Hello",
    "completion_tokens": 2,
    "finish_reason": "stop",
    "duration_s": 1.0,
    "prompt_tokens": 1,
    "ttft_s": 0.1,
}
REST = [chain_end(9, "chain_0"), end(10)]


async def test_a_hub_that_was_killed_goes_on(command, tmp_path):
    """It keeps its token, knows what was acknowledged, shows what is open, and drops what its record has."""
    hub = await asyncio.to_thread(command)
    async with producing(hub.url, token=hub.token) as producer:
        await producer.publish(1, *BEGUN)
        await producer.acked(3)
    await asyncio.to_thread(hub.end, signal.SIGKILL)

    again = await asyncio.to_thread(command)
    assert again.token == hub.token
    async with producing(again.url, token=hub.token) as producer:
        assert producer.welcome["acked"] == 3
        async with talking(again.url, token=hub.token) as viewer:
            assert [run["run_id"] for run in viewer.welcome["runs"]] == ["r"]
            await viewer.say("subscribe", id="s")
            (snapshot,) = await viewer.events(is_kind("chain_snapshot"))
            assert (snapshot["chain_id"], snapshot["seq"]) == ("chain_0", 2)
            await producer.publish(2, *BEGUN[1:], *REST)
            seen = await viewer.events(is_kind("run_end"))
            assert [each["event_type"] for each in seen] == ["chain_end", "run_end"]
            await producer.acked(5)
    said = await asyncio.to_thread(again.end, signal.SIGTERM)
    assert again.process.returncode == 0
    (first, before), (second, path) = await asyncio.to_thread(facts_of, tmp_path / "records")
    assert (first.status, second.status, second.parent) == ("crashed", "completed", before.name)
    assert re.search(rf"recorded: .*rollcast show records/{path.name}", said)
    assert [seq for kind, seq in await asyncio.to_thread(events_in, path) if kind != "gap"] == [0, 2, 9, 10]


async def test_what_was_recorded_and_not_acknowledged_is_taken_once(command, tmp_path):
    """The numbers are forgotten then, but the record knows."""
    hub = await asyncio.to_thread(command)
    async with producing(hub.url, token=hub.token) as producer:
        await producer.publish(1, *BEGUN)
        await producer.acked(3)
    await asyncio.to_thread(hub.end, signal.SIGKILL)
    acks = tmp_path / "records" / "hub.jsonl"
    await asyncio.to_thread(acks.write_text, '["w", "e1", 0]\n')  # as if it had died before the ack was noted

    again = await asyncio.to_thread(command)
    async with producing(again.url, token=hub.token) as producer:
        assert producer.welcome["acked"] == 0
        await producer.publish(1, *BEGUN, *REST)
        await producer.acked(5)
        async with talking(again.url, token=hub.token) as viewer:
            (row,) = await viewer.rows("sources")
    assert (row["events"], row["duplicates"]) == (2, 3)


async def test_a_viewer_goes_on_where_it_was(command):
    """From its cursor, through the record of the hub that died and into that of the next one; nothing comes twice."""
    hub = await asyncio.to_thread(command)
    seen = []

    async def watch(client):
        async for each in client:
            if each.event_type not in ("gap", "chain_snapshot"):
                seen.append((str(each.event_type), each.seq))
            if each.event_type == "run_end":
                return

    async with WebSocketStreamingClient(hub.url, token=hub.token) as client:
        watching = asyncio.create_task(watch(client))
        async with producing(hub.url, token=hub.token) as producer:
            await producer.publish(1, *BEGUN)
            await producer.acked(3)
        while len(seen) < 3:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(hub.end, signal.SIGKILL)
        again = await asyncio.to_thread(command)
        async with producing(again.url, token=hub.token) as producer:
            await producer.publish(4, event("llm_generation_end", 3, "chain_0", step=1, **GENERATED), *REST)
            await producer.acked(6)
            async with asyncio.timeout(60):
                await watching
    kinds = ["run_start", "chain_start", "llm_generation_start", "llm_generation_end", "chain_end", "run_end"]
    assert seen == list(zip(kinds, [0, 1, 2, 3, 9, 10], strict=True))


async def lacking(hub):
    """What the hub says that its rows of chains lack."""
    async with talking(hub.url, token=hub.token) as viewer:
        await viewer.say("query", id="q", what="chains")
        return (await viewer.hear("done")).get("missing") or []


async def test_a_viewer_is_given_what_the_last_hub_recorded_before_the_next_has_anything(command):
    """The record of the new hub begins with its first run: until then it is not there, and nothing went on."""
    hub = await asyncio.to_thread(command)
    async with producing(hub.url, token=hub.token) as producer, talking(hub.url, token=hub.token) as viewer:
        await viewer.say("subscribe", id="s")
        await viewer.hear("subscribed")
        await producer.publish(1, start(0, run="one"), end(1, run="one"))
        batch = await viewer.hear("batch", where=lambda frame: any(map(is_kind("run_end"), frame["events"])))
        await viewer.say("unsubscribe", id="s")
        await producer.publish(3, start(0, run="two"), end(1, run="two"))
        await producer.acked(4)
    await asyncio.to_thread(hub.end, signal.SIGTERM)

    again = await asyncio.to_thread(command)
    async with talking(again.url, token=hub.token) as viewer:
        await viewer.say("subscribe", id="s", since=batch["cursor"])
        assert (await viewer.hear("subscribed"))["recovered"]
        seen = await viewer.events(is_kind("run_end"))
        assert [(each["event_type"], each["run_id"]) for each in seen] == [
            ("run_start", "two"),
            ("run_end", "two"),
        ]
        async with producing(again.url, token=hub.token, epoch="e2") as producer:
            await producer.publish(1, start(0, run="three"), end(1, run="three"))
            seen = await viewer.events(is_kind("run_end"))
            assert [each["run_id"] for each in seen] == ["three", "three"]


async def test_only_a_run_that_went_on_through_a_restart_lacks_its_beginning(command):
    """Not one whose producer has a clock that is slow, or that kept the run while the hub was away."""
    hub = await asyncio.to_thread(command)
    async with producing(hub.url, token=hub.token) as producer:
        early = [each | {"timestamp": each["timestamp"] - 3600} for each in BEGUN]
        await producer.publish(1, *early)
        await producer.acked(3)
        assert await lacking(hub) == []
    await asyncio.to_thread(hub.end, signal.SIGKILL)

    again = await asyncio.to_thread(command)
    (sentence,) = await lacking(again)
    assert "begins after some of the runs did" in sentence


async def test_a_run_whose_producer_does_not_come_back_ends(tmp_path):
    """Once the hub has waited for it, viewers see a `gap` for its end, and the run's status is unknown."""
    opened = [decode(msgspec.json.encode(each)) for each in BEGUN[:2]]
    before = Restored(recorded={("r", "w"): 1}, open=opened)
    manager = StreamingManager(publish=False)
    manager.add_observer(ArchiveObserver(tmp_path / "record", lossless=True))
    settings = ServerSettings(tokens=(Token(TOKEN, ("read", "publish")),), close_s=0.5, hello_s=60.0)
    server = WebSocketStreamingServer("127.0.0.1", 0, settings=settings)
    async with Hub(server, manager, restored=before, return_s=0.0), talking(server.url) as viewer:
        await viewer.say("subscribe", id="s", since="start")
        last = (await viewer.events(lambda each: "run_status" in each["data"]))[-1]
        assert (last["event_type"], last["run_id"], last["data"]["run_status"]) == ("gap", "r", "unknown")
        async with asyncio.timeout(60):
            while (await viewer.rows("runs"))[0]["status"] == "running":  # the record is behind
                await asyncio.sleep(0.05)
        assert (await viewer.rows("runs"))[0]["status"] == "unknown"
    await manager.aclose()
