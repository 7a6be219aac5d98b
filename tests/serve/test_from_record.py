"""Clients whose place is no longer in memory are given what they missed from the record."""

import asyncio
import json
import shutil

import pytest

from rollcast import EventFilter
from rollcast.archive import Archive, ArchiveObserver
from rollcast.records import GrammarChecker
from rollcast.serve import WebSocketStreamingClient
from rollcast.stream import StreamObserver

pytestmark = pytest.mark.timeout(60)

TINY = {"history_bytes": 4096, "behind_bytes": 4096}  # some twenty events


@pytest.fixture
async def recorded(stage, tmp_path):
    """A server with a small memory, and a record of the same manager."""
    observer = ArchiveObserver(tmp_path / "r", masker=False)
    stage.manager.add_observer(observer)
    stage.record = observer
    await stage.serve(**TINY)
    return stage


async def settled(stage):
    """Until all that was emitted is recorded, and the server knows it."""
    await stage.manager.drain()
    await asyncio.wrap_future(stage.record._worker.flush())


async def speak(stage, run_id, words=100):
    async with stage.manager.run(chains=1, run_id=run_id) as run:
        with run.chain(chain_id="chain_0") as chain, chain.generation() as generation:
            for number in range(words):
                generation.chunk(f"{number} ")
                await asyncio.sleep(0)


def texts(events):
    """By run and chain, the text of the chunks; each must go on where the one before ended."""
    found = {}
    for event in events:
        if event.event_type == "llm_generation_chunk":
            key = (event.run_id, event.chain_id, event.step)
            assert event.data["offset"] == len(found.get(key, "")), event
            found[key] = found.get(key, "") + event.data["content"]
    return found


class Everything(StreamObserver):
    """All that was emitted."""

    mode = "lossless"

    def __init__(self):
        self.events = []

    async def on_event(self, event):
        self.events.append(event)


async def test_who_comes_late_is_given_the_record_from_the_start(recorded, read):
    """Though the memory holds only the end of the last run."""
    for number in range(5):
        await speak(recorded, f"run_{number}")
    await settled(recorded)
    async with recorded.client(since="start") as client:
        events = await read_until(client, "run_4")
    assert client.recovered
    assert [e.run_id for e in events if e.event_type == "run_start"] == [f"run_{n}" for n in range(5)]
    assert texts(events) == {(f"run_{n}", "chain_0", 1): "".join(f"{i} " for i in range(100)) for n in range(5)}
    assert not [e for e in events if e.event_type == "gap"]


async def read_until(client, run_id):
    """The events up to the end of this run."""
    events = []
    async with asyncio.timeout(20):
        async for event in client:
            events.append(event)
            if event.event_type == "run_end" and event.run_id == run_id:
                break
    return events


def everything_once(events, emitted):
    """Asserts that the events are those that were emitted, each once: chunks may be merged, and none is missing or torn."""
    checker = GrammarChecker(late=True)
    for event in events:
        checker.feed(event)
    assert not [e for e in events if e.event_type == "gap"]
    assert texts(events) == texts(emitted)
    quiet = [(e.run_id, e.seq) for e in events if e.event_type != "llm_generation_chunk"]
    assert quiet == [(e.run_id, e.seq) for e in emitted if e.event_type != "llm_generation_chunk"]


async def chatter(stage, run_id, chains=4, words=60, pause_s=0.0):
    """Several chains that speak in turns."""
    async with stage.manager.run(chains=chains, run_id=run_id) as run, asyncio.TaskGroup() as group:
        for number in range(chains):
            group.create_task(one_chain(run, number, words, pause_s))


async def one_chain(run, number, words, pause_s):
    with run.chain(chain_id=f"chain_{number}") as chain:
        for turn in range(2):
            with chain.generation() as generation:
                for word in range(words):
                    generation.chunk(f"{turn}:{word} " + ("\n" if word % 7 == 3 else ""))
                    await asyncio.sleep(pause_s)


@pytest.mark.parametrize("cut_after", [3, 40, 200, 400])
async def test_who_comes_back_in_the_middle_of_generations_misses_nothing(recorded, cut_after):
    """The place is no longer in memory: the record leads to it, and then the live tail goes on."""
    emitted = Everything()
    recorded.manager.add_observer(emitted)
    running = asyncio.create_task(chatter(recorded, "run_0", pause_s=0.002))
    events = []
    client = recorded.client(since="start")
    async with client, asyncio.timeout(20):
        async for event in client:
            events.append(event)
            if event.seq >= cut_after and not client._events:
                break
    session = client._session
    await asyncio.sleep(0.4)
    await chatter(recorded, "run_1", words=30)
    back = recorded.client(since=session.cursor)
    back._session = session
    last = asyncio.create_task(later(chatter(recorded, "run_2", words=40, pause_s=0.002)))
    async with back:
        events += await read_until(back, "run_2")
    await asyncio.gather(running, last)
    assert back.recovered
    everything_once(events, emitted.events)


async def later(work):
    await asyncio.sleep(0.1)
    await work

