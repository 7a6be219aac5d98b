"""Replaying a record over the wire: `subscribe` with a speed, `seek` and `speed`."""

import asyncio
import json
import time

import pytest
from websockets.asyncio.client import connect

from rollcast.archive import ArchiveObserver
from rollcast.serve.protocol import SUBPROTOCOL

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def recorded(stage, tmp_path):
    """A server, and a record of the same manager."""
    stage.record = ArchiveObserver(tmp_path / "r", masker=False)
    stage.manager.add_observer(stage.record)
    await stage.serve()
    return stage


async def speak(stage, run_id, words=5, pause_s=0.0):
    async with stage.manager.run(chains=1, run_id=run_id) as run:
        with run.chain(chain_id="chain_0") as chain, chain.generation() as generation:
            for number in range(words):
                generation.chunk(f"{number}\n")  # the record merges no lines
                await asyncio.sleep(pause_s)


class Talk:
    """A client that speaks in frames."""

    def __init__(self, connection):
        self.connection = connection

    async def say(self, kind, **fields):
        await self.connection.send(json.dumps({"type": kind} | fields))

    async def hear(self, *types):
        """The next frame of one of these types."""
        async with asyncio.timeout(20):
            while True:
                frame = json.loads(await self.connection.recv())
                if frame["type"] in types:
                    return frame

    async def events(self, last=lambda event: event["event_type"] == "run_end"):
        """Those up to the last one, and the cursor after them."""
        events = []
        while True:
            batch = await self.hear("batch", "error")
            assert batch["type"] == "batch", batch
            events += batch["events"]
            if any(map(last, batch["events"])):
                return events, batch["cursor"]


@pytest.fixture
async def talk(recorded):
    async with connect(recorded.server.url, subprotocols=[SUBPROTOCOL]) as connection:
        talk = Talk(connection)
        await talk.say("hello")
        assert "replay" in (await talk.hear("welcome"))["features"]
        yield talk


def words(events):
    return [e["data"]["content"] for e in events if e["event_type"] == "llm_generation_chunk"]


async def test_a_replay_takes_as_long_as_the_run_divided_by_its_speed(recorded, talk):
    """Each event comes when it is due, also if the memory still has them all."""
    await speak(recorded, "r", words=8, pause_s=0.1)
    took = {}
    for name, speed in (("a", 2), ("b", "max")):
        began = time.monotonic()
        await talk.say("subscribe", id=name, since="start", speed=speed)
        assert (await talk.hear("subscribed", "error"))["recovered"]
        events, _ = await talk.events()
        took[name] = time.monotonic() - began
        assert words(events) == [f"{n}\n" for n in range(8)]
        await talk.say("unsubscribe", id=name)
        await talk.hear("done")
    recorded_s = events[-1]["timestamp"] - events[0]["timestamp"]
    assert took["a"] >= 0.9 * recorded_s / 2
    assert took["b"] < took["a"]


async def test_a_replay_is_paused_and_goes_on(recorded, talk):
    """Nothing comes at speed 0."""
    await speak(recorded, "r")
    await talk.say("subscribe", id="a", since="start", speed=0)
    await talk.hear("subscribed")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(talk.hear("batch"), 0.3)
    await talk.say("speed", id="a", speed="max")
    assert (await talk.hear("done", "error"))["type"] == "done"
    events, _ = await talk.events()
    assert words(events) == [f"{n}\n" for n in range(5)]


async def test_a_replay_seeks_to_a_cursor_and_to_a_time(recorded, talk):
    """And the events from there on come."""
    await speak(recorded, "r1", pause_s=0.02)
    await speak(recorded, "r2")
    await talk.say("subscribe", id="a", since="start", speed="max")
    first = (await talk.hear("subscribed"))["cursor"]
    events, _ = await talk.events(lambda e: e["event_type"] == "run_end" and e["run_id"] == "r2")
    middle = next(e for e in events if e["data"].get("content") == "3\n")
    await talk.say("seek", id="a", time=middle["timestamp"])
    assert (await talk.hear("subscribed", "error"))["recovered"]
    again, _ = await talk.events(lambda e: e["event_type"] == "run_end" and e["run_id"] == "r2")
    assert again == events[events.index(middle) :]
    await talk.say("seek", id="a", cursor=first)
    assert (await talk.hear("subscribed", "error"))["cursor"] == first
    again, _ = await talk.events(lambda e: e["event_type"] == "run_end" and e["run_id"] == "r2")
    assert again == events


async def test_a_replay_goes_on_with_another_filter(recorded, talk):
    """From the next event on, with one answer."""
    await speak(recorded, "r")
    await talk.say("subscribe", id="a", since="start", speed=0, filter={"types": ["chain_start"]})
    await talk.hear("subscribed")
    await talk.say("update", id="a", filter={"types": ["run_end"]})
    assert (await talk.hear("subscribed", "error"))["recovered"]
    await talk.say("speed", id="a", speed="max")
    assert (await talk.hear("done", "subscribed"))["type"] == "done"
    events, _ = await talk.events()
    assert [e["event_type"] for e in events] == ["run_end"]


async def test_a_replay_that_has_come_to_the_end_goes_on_live(recorded, talk):
    """Whoever replays a run that goes on sees what comes then."""
    await speak(recorded, "r1")
    await talk.say("subscribe", id="a", since="start", speed=1000)
    await talk.events()
    await speak(recorded, "r2")
    events, _ = await talk.events()
    assert {e["run_id"] for e in events} == {"r2"}
    assert words(events) == [f"{n}\n" for n in range(5)]


@pytest.mark.parametrize(
    ("frame", "code", "says"),
    [
        ({"type": "seek", "id": "b", "time": 1}, 404, "there is no subscription 'b'"),
        ({"type": "speed", "id": "b", "speed": 1}, 404, "there is no subscription 'b'"),
        ({"type": "seek", "id": "a"}, 400, "seek needs either a cursor or a time"),
        (
            {"type": "seek", "id": "a", "cursor": "x.1", "time": 1},
            400,
            "seek needs either a cursor or a time",
        ),
        ({"type": "seek", "id": "a", "cursor": "x.1"}, 404, "the cursor names no place in the record"),
        ({"type": "speed", "id": "a", "speed": 2}, 404, "this subscription is not a replay"),
    ],
)
async def test_what_cannot_be_replayed_is_an_error_and_the_session_goes_on(recorded, talk, frame, code, says):
    """The frame's id is in it."""
    await talk.say("subscribe", id="a")
    await talk.hear("subscribed")
    await talk.connection.send(json.dumps(frame))
    error = await talk.hear("error")
    assert (error["code"], error["id"]) == (code, frame["id"])
    assert says in error["message"]
    await speak(recorded, "r")
    assert words((await talk.events())[0]) == [f"{n}\n" for n in range(5)]


async def test_without_a_record_there_is_no_replay(stage):
    """The error says so, and the id may be used again."""
    await stage.serve()
    async with connect(stage.server.url, subprotocols=[SUBPROTOCOL]) as connection:
        talk = Talk(connection)
        await talk.say("hello")
        await talk.say("subscribe", id="a", since="start", speed=1)
        error = await talk.hear("error", "subscribed")
        assert (error["code"], error["id"]) == (404, "a")
        assert "there is no record to replay" in error["message"]
        await talk.say("subscribe", id="a", since="start")
        assert (await talk.hear("error", "subscribed"))["recovered"]
