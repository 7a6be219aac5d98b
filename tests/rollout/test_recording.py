"""`run_async(…, record=…)`: a run of one's own code leaves a record."""

import asyncio
import logging
import re

import pytest

from rollcast import BaseAgent, InputError, StreamingManager
from rollcast.archive import Archive, ArchiveObserver, list_records
from rollcast.testing import ScriptedBackend, capture_events

ASK = [{"role": "user", "content": "What is 2 + 2?"}]


def agent_that_says(text="Four.", **options):
    return BaseAgent(backend=ScriptedBackend(text), name="sums", **options)


@pytest.fixture
def records(tmp_path, monkeypatch):
    """Where records go."""
    monkeypatch.setenv("ROLLCAST_RECORDS", str(tmp_path / "records"))
    return tmp_path / "records"


async def recorded(path):
    return await asyncio.to_thread(lambda: list(Archive.open(path).events()))


async def test_a_level_leaves_a_new_record(records):
    """It is whole when the run returns, which says where it is; no observer is left, and streaming was switched on for it."""
    agent = agent_that_says()
    result = await agent.run_async(3, ASK, 2, record="auto", seed=5, sampling={"max_tokens": 9})
    assert result.record.parent == records
    archive = await asyncio.to_thread(Archive.open, result.record)
    facts = archive.facts
    assert (archive.state, facts.status, facts.name, facts.seed) == ("ended", "completed", "sums", 5)
    assert facts.settings["num_chains"] == 2
    assert facts.settings["sampling"]["max_tokens"] == 9
    assert facts.totals.chains == 2
    assert agent.streaming_manager.observers == []
    kinds = {event.event_type for event in await recorded(result.record)}
    assert "llm_generation_end" in kinds
    assert "llm_generation_chunk" not in kinds
    trajectory = await asyncio.to_thread(archive.trajectory, "chain_1")
    assert trajectory.token_ids == result["chain_1"].token_ids


async def test_by_default_nothing_is_recorded(records):
    """Nor anything made into events."""
    result = await agent_that_says().run_async(3, ASK)
    assert result.record is None
    assert not records.exists()


async def test_a_path_is_the_folder(tmp_path):
    """Which must not hold a record yet."""
    agent = agent_that_says()
    result = await agent.run_async(3, ASK, record=tmp_path / "r")
    assert result.record == tmp_path / "r"
    with pytest.raises(InputError, match="holds a record already"):
        await agent.run_async(3, ASK, record=tmp_path / "r")


def test_without_an_event_loop(records):
    """`run` takes it too."""
    assert Archive.open(agent_that_says().run(3, ASK, record="turns").record).facts.level == "turns"


async def test_as_events_that_come(records):
    """`run_async_streaming` takes it too."""
    agent = agent_that_says()
    async with agent.run_async_streaming(3, ASK, record="tokens") as stream:
        seen = [event.event_type async for event in stream]
    assert [event.event_type for event in await recorded(stream.result.record)] == seen


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("nonsense", "there is no level 'nonsense' of recording; the levels are auto, turns"),
        (True, "record is bool; expected a level"),
        (7, "record is int; expected a level"),
    ],
)
async def test_what_is_no_record_is_refused(records, record, says):
    """Before a chain starts."""
    with pytest.raises(InputError, match=re.escape(says)):
        await agent_that_says().run_async(3, ASK, record=record)
    assert not records.exists()


async def test_runs_of_one_manager_at_once_are_recorded_each_for_itself(records):
    """Neither has events or trajectories of the other."""
    manager = StreamingManager()
    one, two = (agent_that_says(text, streaming_manager=manager) for text in ("One.", "Two."))
    results = await asyncio.gather(
        one.run_async(3, ASK, 3, record="auto"),
        two.run_async(3, ASK, 2, record="auto"),
        two.run_async(3, ASK, 4, True),
    )
    assert results[2].record is None
    for result in results[:2]:
        archive = await asyncio.to_thread(Archive.open, result.record)
        assert {event.run_id for event in await recorded(result.record)} == {result.run_id}
        assert archive.facts.totals.chains == len(result)
        rows = (await asyncio.to_thread(archive.chains)).rows
        assert sorted(row["trajectory"] for row in rows) == list(range(len(result)))


async def test_an_observer_records_several_runs(tmp_path):
    """At once or one after another; between them it is not added."""
    observer = ArchiveObserver(tmp_path / "r", tags=["a"])
    agent = agent_that_says()
    results = await asyncio.gather(*(agent.run_async(3, ASK, n, record=observer) for n in (1, 5)))
    assert agent.streaming_manager.observers == []
    results.append(await agent.run_async(3, ASK, 2, record=observer))
    assert {result.record for result in results} == {tmp_path / "r"}
    archive = await asyncio.to_thread(Archive.open, tmp_path / "r")
    assert (archive.state, archive.facts.totals.runs, archive.facts.totals.chains) == ("ended", 3, 8)
    assert "gap" not in {event.event_type for event in await recorded(tmp_path / "r")}


async def test_an_observer_that_is_added_stays(tmp_path):
    """Who added it removes it."""
    observer = ArchiveObserver(tmp_path / "r")
    agent = agent_that_says()
    agent.streaming_manager.add_observer(observer)
    await agent.run_async(3, ASK, record=observer)
    assert agent.streaming_manager.observers == [observer]
    with pytest.raises(InputError, match="already added"):
        await agent_that_says().run_async(3, ASK, record=observer)
    await agent.aclose()


async def test_others_see_the_run_too(records):
    """`record` switches streaming on."""
    agent = agent_that_says()
    with capture_events(agent.streaming_manager) as events:
        await agent.run_async(3, ASK, record="summary")
    assert "run_end" in {event.event_type for event in events.events}


async def test_a_run_that_is_cancelled_is_recorded_as_such(records, until):
    """Also by its caller."""
    agent = BaseAgent(backend=ScriptedBackend("a b c d", delay=30))
    task = asyncio.create_task(agent.run_async(3, ASK, record="auto"))
    await until(lambda: agent.streaming_manager.totals().open_chains)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (entry,) = await asyncio.to_thread(list_records, records)
    assert (entry.state, entry.facts.status) == ("ended", "cancelled")


async def test_a_record_that_cannot_be_written_costs_the_run_nothing(tmp_path, caplog):
    """But one warning."""
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        result = await agent_that_says().run_async(3, ASK, record=tmp_path / "file" / "r")
    assert (result.record, result.status) == (None, "completed")
    assert sum("the run goes on without its record" in line for line in caplog.messages) == 1
