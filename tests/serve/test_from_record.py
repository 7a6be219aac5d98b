"""Clients whose place is no longer in memory are given what they missed from the record."""

import asyncio
import json
import shutil

import pytest

from rollcast import EventFilter
from rollcast.archive import Archive, ArchiveObserver
from rollcast.records import GrammarChecker
from rollcast.serve import WebSocketStreamingClient

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
            key = (event.run_id, event.chain_id)
            assert event.data["offset"] == len(found.get(key, "")), event
            found[key] = found.get(key, "") + event.data["content"]
    return found


async def test_who_comes_late_is_given_the_record_from_the_start(recorded, read):
    """Though the memory holds only the end of the last run."""
    for number in range(5):
        await speak(recorded, f"run_{number}")
    await settled(recorded)
    async with recorded.client(since="start") as client:
        events = await read_until(client, "run_4")
    assert client.recovered
    assert [e.run_id for e in events if e.event_type == "run_start"] == [f"run_{n}" for n in range(5)]
    assert texts(events) == {(f"run_{n}", "chain_0"): "".join(f"{i} " for i in range(100)) for n in range(5)}
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
