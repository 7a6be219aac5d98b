"""The process that serves and records is killed, and another goes on: clients come back to their place in the record."""

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import pytest

from rollcast import EventFilter
from rollcast.archive import Archive
from rollcast.serve import WebSocketStreamingClient

pytestmark = pytest.mark.slow
WANTED = EventFilter(types=("llm_generation_end", "run_start"))
PROGRAM = Path(__file__).with_name("recorded_run.py")


@contextlib.asynccontextmanager
async def program(directory, name, port, parent=None):
    """The program, when it serves."""
    command = [sys.executable, str(PROGRAM), str(directory), name, str(port), *([parent] if parent else [])]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        await process.stdout.readline()
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def read_while(client, events, going_on):
    """Add the client's events until nothing more is to come."""
    async with asyncio.timeout(60):
        async for event in client:
            events.append(event)
            if not going_on(event) and not client._events:
                return


def in_order(events):
    """Asserts that each event comes once, in order, and each text goes on where it ended, but for what a gap stands for."""
    last, texts = {}, {}
    for event in events:
        run = event.run_id
        if event.event_type == "gap":
            last[run] = max(last.get(run, -1), event.data["to_seq"])
            continue
        assert event.seq > last.get(run, -1), event
        last[run] = event.seq
        if event.event_type == "llm_generation_chunk":
            key = (run, event.chain_id, event.step)
            assert event.data["offset"] == len(texts.get(key, "")), event
            texts[key] = texts.get(key, "") + event.data["content"]
        elif event.event_type == "llm_generation_end":
            assert event.data["content"] == texts.pop((run, event.chain_id, event.step))


async def goes_on(path, events):
    """Wait until the record has all that the client was given, and more."""
    given = {e.seq for e in events if e.event_type in WANTED.types}
    async with asyncio.timeout(60):
        while not (await asyncio.to_thread(recorded, path)) > given:
            await asyncio.sleep(0.05)


def recorded(path):
    return {e.seq for e in Archive.open(path).events(filter=WANTED)}


@pytest.mark.parametrize("away", ["before the kill", "with the kill"])
@pytest.mark.parametrize("parent", ["by name", "by id"])
async def test_a_client_comes_back_to_the_record_of_the_process_that_was_killed(tmp_path, away, parent, port):
    """It is given the rest of that record, the end of the run that was lost, and then what the next process does."""
    events = []
    async with program(tmp_path, "first", port) as killed:
        client = WebSocketStreamingClient(f"ws://127.0.0.1:{port}", since="start")
        async with client:
            await read_while(client, events, lambda e: e.seq < 700)
            if away == "with the kill":
                killed.kill()
                await killed.wait()
        session = client._session
        if away == "before the kill":
            await goes_on(tmp_path / "first", events)
    record = await asyncio.to_thread(Archive.open, tmp_path / "first")
    named = "first" if parent == "by name" else record.facts.id
    async with program(tmp_path, "second", port, named):
        back = WebSocketStreamingClient(f"ws://127.0.0.1:{port}", since=session.cursor)
        back._session = session
        async with back:
            await read_while(back, events, lambda e: e.run_id != "second" or e.seq < 700)
    assert back.recovered
    in_order(events)
    ends = [e for e in events if e.event_type == "gap"]
    assert [(e.run_id, e.data["run_status"]) for e in ends] == [("first", "unknown")]
    of_second = [e for e in events if e.run_id == "second"]
    assert of_second[0].event_type == "run_start"
    assert events.index(ends[0]) == events.index(of_second[0]) - 1
    in_record = await asyncio.to_thread(recorded, tmp_path / "first")
    given = {e.seq for e in events if e.run_id == "first" and e.event_type in WANTED.types}
    assert in_record <= given
    if away == "before the kill":
        assert in_record == given
