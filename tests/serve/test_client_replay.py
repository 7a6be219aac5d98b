"""`WebSocketStreamingClient` with a speed: it replays a server's record."""

import asyncio
import math

import pytest

from rollcast import EventFilter
from rollcast.archive import ArchiveObserver
from rollcast.errors import InputError, RefusedError
from rollcast.serve import WebSocketStreamingClient
from rollcast.serve.protocol import Batch, Limits, Subscribed, Welcome


@pytest.fixture
async def recorded(stage, tmp_path):
    """A server, a record of the same manager, and two runs in it."""
    record = ArchiveObserver(tmp_path / "r", masker=False)
    stage.manager.add_observer(record)
    await stage.serve()
    for run_id in ("r1", "r2"):
        await speak(stage, run_id)
    await record.recorded()
    return stage


async def speak(stage, run_id, words=5):
    async with stage.manager.run(chains=1, run_id=run_id) as run:
        with run.chain(chain_id="chain_0") as chain, chain.generation() as generation:
            for number in range(words):
                generation.chunk(f"{number}\n")  # the record merges no lines
                await asyncio.sleep(0.01)


async def read(client, run_id="r2", kind="run_end"):
    """The events up to the first of this kind of this run."""
    events = []
    async with asyncio.timeout(60):
        async for event in client:
            events.append(event)
            if (event.event_type, event.run_id) == (kind, run_id):
                return events
    raise AssertionError(events)


def places(events):
    return [(event.run_id, event.seq) for event in events]


async def test_it_replays_what_is_recorded(recorded):
    """From the start, each event once, as they were; a filter narrows it."""
    async with recorded.client(since="start", speed="max") as client:
        whole = await read(client)
    async with recorded.client(since="start") as client:
        assert places(await read(client)) == places(whole)
    async with recorded.client(since="start", speed="max", filter=EventFilter(runs="r2")) as client:
        assert {event.run_id for event in await read(client)} == {"r2"}


async def test_a_speed_is_waited_for_and_may_change(recorded):
    """At 0 nothing comes; a second task changes it while the first one reads."""
    async with recorded.client(since="start", speed=0) as client:
        reading = asyncio.create_task(read(client))
        await asyncio.sleep(0.2)
        assert not reading.done()
        await client.set_speed("max")
        assert len(await reading) > 10


async def test_it_goes_to_another_place_and_back(recorded):
    """By cursor and by time, in the middle of the loop too; what waited from before does not come."""
    async with recorded.client(since="start", speed=0) as client:
        await client.set_speed("max")
        whole = await read(client)
        middle = next(event for event in whole if event.run_id == "r1" and event.data.get("content") == "3\n")
        await client.seek(time=middle.timestamp)
        cursor = client.cursor
        assert places(await read(client)) == places(whole[whole.index(middle) :])
        await client.seek(time=0.0)
        again = []
        async with asyncio.timeout(60):
            async for event in client:
                again.append(event)
                if len(again) == 3:
                    await client.seek(cursor)
                if event.run_id == "r2" and event.event_type == "run_end":
                    break
        assert places(again) == places(whole[:3] + whole[whole.index(middle) :])
        assert client.recovered


async def test_a_client_that_watches_live_may_go_back(recorded):
    """It replays from then on, and is live again at the end."""
    async with recorded.client() as client:
        reading = asyncio.create_task(read(client))
        await client.seek(time=0.0)
        assert (await reading)[0].event_type == "run_start"
        await speak(recorded, "r3")
        assert places(await read(client, "r3"))[0] == ("r3", 0)


async def test_over_connections_that_are_cut_each_event_comes_once(recorded, proxy):
    """The speed is kept, and the place; runs that ended long ago still come."""
    async with recorded.client(since="start", speed="max") as client:
        whole = await read(client)
    async with proxy(recorded.server.port) as between:
        client = recorded.client(between.url, since="start", speed=0.1)
        got = []
        async with asyncio.timeout(60):
            async for event in client:
                got.append(event)
                if event.data.get("content") in ("1\n", "4\n"):
                    between.cut()
                if (event.event_type, event.run_id) == ("run_end", "r2"):
                    break
        await client.aclose()
    assert client.reconnections >= 1
    assert places(got) == places(whole)


async def test_from_a_cursor_over_a_cut_connection_what_comes_after_it_comes(recorded, proxy):
    """Also of runs that had ended when the client first connected."""
    async with recorded.client(since="start", speed="max") as client:
        whole = await read(client)
    async with recorded.client(since="start", speed=0) as client:
        first = asyncio.create_task(read(client, "r1", "run_start"))
        await client.set_speed(0.05)  # the other events come much later
        await first
        cursor = client.cursor
    async with proxy(recorded.server.port) as between:
        client = recorded.client(between.url, since=cursor, speed=0.1)
        got = []
        async with asyncio.timeout(60):
            async for event in client:
                got.append(event)
                if event.data.get("content") == "1\n" and event.run_id == "r1":
                    between.cut()
                if (event.event_type, event.run_id) == ("run_end", "r2"):
                    break
        await client.aclose()
    assert client.reconnections >= 1
    assert places(got) == places(whole[-len(got) :])
    assert {event.run_id for event in got} == {"r1", "r2"}


async def test_a_place_that_is_not_there_is_refused_and_the_replay_goes_on(recorded):
    """What came meanwhile is not lost."""
    async with recorded.client(since="start", speed="max") as client:
        with pytest.raises(RefusedError, match="does not change the replay: the cursor names no place"):
            await client.seek("x.1")
        events = await read(client)
    assert places(events)[0] == ("r1", 0)
    assert len(places(events)) == len(set(places(events)))


async def test_what_is_no_replay_has_no_speed(recorded):
    """Nor is there one without a record, or with a server of an earlier version."""
    async with recorded.client() as client:
        with pytest.raises(RefusedError, match="this subscription is not a replay"):
            await client.set_speed(2)
    client = recorded.client(since="start", speed=1)
    with pytest.raises(RefusedError, match="of an earlier version, which cannot replay"):
        client._session.receive(Welcome(1, [], 20.0, Limits(), []))
    await client.aclose()
    with pytest.raises(RefusedError, match="is closed"):
        await client.seek(time=1.0)


async def test_without_a_record_a_replay_is_refused(stage):
    """In the server's words."""
    await stage.serve()
    async with stage.client(since="start", speed=1) as client:
        with pytest.raises(RefusedError, match="there is no record to replay here"):
            await read(client)


@pytest.mark.parametrize("speed", [-1, math.nan, math.inf, 1e7, True, "fast", [1]])
def test_a_speed_that_is_none_is_said(speed):
    """Before anything is connected."""
    with pytest.raises(InputError, match="expected a number from 0 to 1,000,000, or 'max'"):
        WebSocketStreamingClient("ws://localhost:1", since="start", speed=speed)


async def test_a_replay_of_what_is_live_and_a_seek_to_nowhere_are_refused():
    """One sentence each."""
    with pytest.raises(InputError, match="since is 'live', which cannot be replayed"):
        WebSocketStreamingClient("ws://localhost:1", speed=2)
    client = WebSocketStreamingClient("ws://localhost:1")
    for places_given in ({}, {"cursor": "a", "time": 1.0}):
        with pytest.raises(InputError, match="either a cursor or a time"):
            await client.seek(**places_given)


async def test_a_server_that_does_not_answer_a_seek_is_left(recorded, monkeypatch):
    """The client says so, begins anew at its cursor, and misses nothing."""
    async with recorded.client(since="start", speed="max") as client:
        whole = await read(client)
        receive = client._session.receive
        monkeypatch.setattr("rollcast.serve.client.ANSWER_S", 0.2)

        def deaf(frame):
            asked = client._session._request is not None
            return ([], []) if asked and isinstance(frame, Subscribed | Batch) else receive(frame)

        client._session.receive = deaf
        with pytest.raises(RefusedError, match="did not answer within 0 s"):
            await client.seek(time=0.0)
        monkeypatch.undo()
        await speak(recorded, "r3")
        rest = await read(client, "r3")
    assert client.reconnections == 1
    assert {event.run_id for event in rest} == {"r3"}
    assert len(whole) == len(places(whole))
