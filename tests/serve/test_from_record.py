"""Clients whose place is no longer in memory are given what they missed from the record."""

import asyncio
import os
import signal
import threading

import pytest

from growing_records import delete_while_written
from rollcast import EventFilter
from rollcast.archive import ArchiveObserver
from rollcast.records import GrammarChecker
from rollcast.serve.recorded import place_named
from rollcast.stream import StreamObserver

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
    assert texts(events) == {
        (f"run_{n}", "chain_0", 1): "".join(f"{i} " for i in range(100)) for n in range(5)
    }
    assert not [e for e in events if e.event_type == "gap"]


async def read_until(client, run_id):
    """The events up to the end of this run."""
    events = []
    async with asyncio.timeout(40):
        async for event in client:
            events.append(event)
            ended = event.event_type == "run_end" or "run_status" in event.data
            if ended and event.run_id == run_id:
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


async def chatter_until(stage, run_id, stop, chains=4, pause_s=0.004):
    """Several chains that speak until they are stopped."""
    async with stage.manager.run(chains=chains, run_id=run_id) as run, asyncio.TaskGroup() as group:
        for number in range(chains):
            group.create_task(endless_chain(run, number, stop, pause_s))


async def endless_chain(run, number, stop, pause_s):
    with run.chain(chain_id=f"chain_{number}") as chain:
        while not stop.is_set():
            with chain.generation() as generation:
                for word in range(60):
                    generation.chunk(f"{word} " + ("\n" if word % 7 == 3 else ""))
                    await asyncio.sleep(pause_s)


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
    async with client, asyncio.timeout(60):
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


async def away(stage, client, events, until):
    """Read until the client is in the middle of `run_0`, and leave; the session to come back with."""
    async with client, asyncio.timeout(60):
        async for event in client:
            events.append(event)
            if event.seq >= until and not client._events:
                break
    return client._session


def coming_back(stage, session):
    back = stage.client(since=session.cursor)
    back._session = session
    return back


def gaps(events):
    return [e for e in events if e.event_type == "gap"]


def each_once_or_in_a_gap(events, emitted):
    """Asserts that no event comes twice, that their order holds, and that a gap stands for each that does not come."""
    checker = GrammarChecker(late=True)
    for event in events:
        checker.feed(event)
    given = {(e.run_id, e.seq) for e in events if e.event_type not in ("gap", "chain_snapshot")}
    assert len(given) == len([e for e in events if e.event_type not in ("gap", "chain_snapshot")])
    told = [(e.run_id, e.data["from_seq"], e.data["to_seq"]) for e in gaps(events)]
    of_nobody = any(run_id == "" for run_id, _, _ in told)
    for event in emitted:
        if event.event_type == "llm_generation_chunk" or (event.run_id, event.seq) in given or of_nobody:
            continue
        assert any(r == event.run_id and a <= event.seq <= b for r, a, b in told), event
    return told


async def test_a_record_that_was_deleted_meanwhile_leaves_a_gap_and_what_is_open(stage, tmp_path):
    """The client is told what it does not get, and goes on live."""
    recorded, emitted = stage, Everything()
    stage.record = ArchiveObserver(tmp_path / "r", masker=False)
    stage.manager.add_observer(stage.record)
    await stage.serve(history_bytes=64 << 10, behind_bytes=64 << 10)
    recorded.manager.add_observer(emitted)
    stop = asyncio.Event()
    running = asyncio.create_task(chatter_until(recorded, "run_0", stop))
    events = []
    session = await away(recorded, recorded.client(since="start"), events, 300)
    async with asyncio.timeout(60):  # until the memory has no more of what it missed
        while stage.server._broadcaster.history.position(session.cursor) is not None:
            await asyncio.sleep(0.01)
    await asyncio.to_thread(delete_while_written, recorded.record.path)
    back = coming_back(recorded, session)
    async with back:
        reading = asyncio.create_task(read_until(back, "run_0"))
        await stage.watched()
        await asyncio.sleep(0.5)  # it goes on live for a while
        stop.set()
        events += await reading
    await running
    told = each_once_or_in_a_gap(events, emitted.events)
    assert {run_id for run_id, _, _ in told} == {"run_0"}


async def test_a_killed_reader_of_the_record_costs_nothing(recorded):
    """Whoever is given the record is given all of it, from the next process."""
    for number in range(4):
        await speak(recorded, f"run_{number}", words=600)
    await settled(recorded)
    records, killed = recorded.server._queries.records, set()
    events = []
    async with asyncio.timeout(60), recorded.client(since="start") as client:
        async for event in client:
            events.append(event)
            if len(events) in (1, 700, 1400) and (pid := records.pid) is not None:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            if event.event_type == "run_end" and event.run_id == "run_3":
                break
    assert killed
    assert client.recovered
    assert not [event.data for event in events if event.event_type == "gap"]
    assert texts(events) == {
        (f"run_{n}", "chain_0", 1): "".join(f"{i} " for i in range(600)) for n in range(4)
    }


@pytest.mark.parametrize("cut", ["torn", "gone"])
async def test_what_of_a_record_is_damaged_is_a_gap_and_the_rest_is_given(recorded, cut):
    """A segment lost its middle, or all."""
    emitted = Everything()
    recorded.manager.add_observer(emitted)
    for number in range(3):
        await chatter(recorded, f"run_{number}", words=30)
        await settled(recorded)
        await asyncio.to_thread(seal, recorded.record)
    segments = sorted((recorded.record.path / "events").glob("*.zst"))
    assert len(segments) == 3
    await asyncio.to_thread(damage, segments[1], cut)
    async with recorded.client(since="start") as client:
        events = await read_until(client, "run_2")
    assert [e.event_type for e in events if e.run_id == "run_0"][-1] == "run_end"
    told = each_once_or_in_a_gap(events, [e for e in emitted.events if e.run_id != "run_1"])
    assert {run_id for run_id, _, _ in told} <= {"run_1", "run_2", ""}
    assert texts(e for e in events if e.run_id != "run_1") == texts(
        e for e in emitted.events if e.run_id != "run_1"
    )


def seal(observer):
    """End the live segment, as a full one is ended."""
    observer._recorder._events._end_segment()
    observer._recorder._events.seal_what_is_left()


def damage(segment, cut):
    if cut == "gone":
        segment.unlink()
        return
    data = bytearray(segment.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    segment.write_bytes(data)


async def test_a_record_without_chunks_does_not_lead_to_the_live_tail(stage, tmp_path):
    """Who wants chunks gets snapshots, as without a record; who does not is given what it missed."""
    stage.record = ArchiveObserver(tmp_path / "r", masker=False, level="turns")
    stage.manager.add_observer(stage.record)
    await stage.serve(**TINY)
    for number in range(3):
        await speak(stage, f"run_{number}")
    await settled(stage)
    ends = EventFilter(types=("run_start", "run_end", "llm_generation_end"))
    async with stage.client(since="start", filter=ends) as client:
        events = await read_until(client, "run_2")
    assert client.recovered
    assert [e.run_id for e in events] == [f"run_{n}" for n in range(3) for _ in range(3)]
    async with stage.client(since="start") as client:
        await asyncio.wait_for(anext(aiter(client)), 60)
    assert not client.recovered


async def test_a_client_that_takes_nothing_holds_up_nobody(recorded):
    """It costs a few windows, the others are given the record and the live tail, and it gets the rest when it reads again."""
    for number in range(20):
        await speak(recorded, f"run_{number}", words=300)
    await settled(recorded)
    stalled = recorded.client(since="start")
    await stalled.connect()
    stalled._connection.transport.pause_reading()
    stalled._connection.transport.pause_reading = lambda: None
    async with recorded.client(since="start") as client:
        events = await read_until(client, "run_19")
    assert len({e.run_id for e in events}) == 20
    async with recorded.client() as live:
        await anext_when_live(recorded, live)
    unsent = max(c.unsent() for c in recorded.server._clients)
    assert unsent < 1 << 20
    stalled._connection.transport.resume_reading()
    async with stalled:
        assert texts(await read_until(stalled, "run_19")) == texts(events)


async def anext_when_live(stage, client):
    task = asyncio.create_task(read_until(client, "live"))
    await stage.watched(connections=2)  # the one that takes nothing has asked for nothing
    await speak(stage, "live", words=3)
    await task


async def test_another_client_goes_on_at_the_cursor_of_one_that_has_gone(recorded, monkeypatch):
    """It knows nothing of what the other had, and is not given it again, although the record was behind."""
    emitted = Everything()
    recorded.manager.add_observer(emitted)
    recorder, may_write = recorded.record._recorder, threading.Event()
    write = recorder.record
    monkeypatch.setattr(recorder, "record", lambda *what: may_write.wait(60) and write(*what))
    may_write.set()
    events = []
    async with recorded.manager.run(chains=2, run_id="run_0") as run:
        with (
            run.chain(chain_id="a") as a,
            run.chain(chain_id="b") as b,
            a.generation() as first,
            b.generation() as second,
        ):
            first.chunk("before ")
            await settled(recorded)
            may_write.clear()
            async with recorded.client(since="start") as client, asyncio.timeout(60):
                for number in range(4):
                    first.chunk(f"{number} ")
                    second.chunk(f"{number} ")
                    async for event in client:
                        events.append(event)
                        if event.data.get("content") == f"{number} " and event.chain_id == "b":
                            break
            seen = place_named(client.cursor).seen
            assert seen is not None
            assert sorted(seen.ends.values()) == [8, 15]
            first.chunk("after ")
            second.chunk("after ")
            may_write.set()
    await speak(recorded, "run_1")
    await settled(recorded)
    assert recorded.server._broadcaster.history.position(client.cursor) is None
    async with recorded.client(since=client.cursor) as other:
        events += await read_until(other, "run_1")
    assert other.recovered
    everything_once(events, emitted.events)


async def test_a_record_is_still_there_when_its_manager_is_closed(recorded):
    """As after the end of a command that keeps serving: who comes late is given everything, and may ask."""
    for number in range(3):
        await speak(recorded, f"run_{number}")
    await recorded.manager.aclose()
    async with recorded.client(since="start") as client:
        events = await read_until(client, "run_2")
    assert [e.run_id for e in events if e.event_type == "run_start"] == ["run_0", "run_1", "run_2"]
    assert gaps(events) == []
    runs = [row["run_id"] async for rows in recorded.client().query("runs") for row in rows.rows]
    assert runs == ["run_2", "run_1", "run_0"]
