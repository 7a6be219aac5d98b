"""Replaying a record over the wire: `subscribe` with a speed, `seek` and `speed`."""

import asyncio
import itertools
import json
import time
from unittest.mock import ANY

import pytest
from websockets.asyncio.client import connect

from rollcast.archive import ArchiveObserver
from rollcast.records.codec import event_from_dict
from rollcast.records.view import ChainView
from rollcast.serve.protocol import SUBPROTOCOL
from serve.talk import Talk


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


@pytest.fixture
async def talk(recorded):
    async with connect(recorded.server.url, subprotocols=[SUBPROTOCOL]) as connection:
        talk = Talk(connection)
        await talk.say("hello")
        assert "replay" in (await talk.hear("welcome"))["features"]
        yield talk


def words(events):
    return [e["data"]["content"] for e in events if e["event_type"] == "llm_generation_chunk"]


async def test_a_replay_takes_as_long_as_the_run_divided_by_its_speed(recorded, talk, monkeypatch):
    """Each event comes when it is due, also if the memory still has them all; at "max" it is due at once, whatever the pauses were."""
    await speak(recorded, "r", words=8, pause_s=0.1)
    minutes = itertools.count(time.time(), 60.0)
    with monkeypatch.context() as slow:
        slow.setattr(time, "time", lambda: next(minutes))
        await speak(recorded, "long", words=8)
    took, recorded_s = {}, {}
    for run_id, speed in (("r", 0.5), ("long", "max")):
        began = time.monotonic()
        await talk.say("subscribe", id=run_id, since="start", speed=speed, filter={"runs": [run_id]})
        assert (await talk.hear("subscribed", "error"))["recovered"]
        events, _ = await talk.events()
        took[run_id] = time.monotonic() - began
        assert words(events) == [f"{n}\n" for n in range(8)]
        recorded_s[run_id] = events[-1]["timestamp"] - events[0]["timestamp"]
        await talk.say("unsubscribe", id=run_id)
        await talk.hear("done")
    assert took["r"] >= 0.9 * recorded_s["r"] / 0.5
    assert took["long"] < 60 < 8 * 60 < recorded_s["long"]  # at any other speed it would pause for 80 s


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
    await talk.socket.send(json.dumps(frame))
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


# -- snapshots -----------------------------------------------------------------------------------------------------------


async def several(stage, run_id="r"):
    """A chain that ended, then two that overlap: each has two turns, and a call between them."""
    async with stage.manager.run(chains=3, run_id=run_id) as run:
        first = run.chain([{"role": "user", "content": "0"}], chain_id="chain_0", group_id="g")
        with first as chain, chain.generation() as generation:
            generation.chunk("early\n", token_ids=[1], logprobs=[-0.1])
        chains = [
            run.chain([{"role": "user", "content": name}], chain_id=name, group_id="g").__enter__()
            for name in ("chain_1", "chain_2")
        ]
        for turn in range(2):
            for chain in chains:
                with chain.generation() as generation:
                    for word in range(3):
                        generation.chunk(f"{turn} {word}\n", token_ids=[word], logprobs=[-0.5])
                        await asyncio.sleep(0.002)
                with chain.tool_call("add", {"turn": turn}) as call:
                    call.observation(f"sum {turn}")
        for chain in chains:
            chain.reward(1.0)
            chain.end("answered", final_response="done")


def views_of(events):
    """What the events add up to, by chain."""
    views = {}
    for event in events:
        if event["chain_id"]:
            view = views.setdefault(event["chain_id"], ChainView())
            view.apply(event_from_dict(event))
    return {name: view.to_dict() for name, view in views.items()}


async def all_of(talk):
    """All events of the record, and the cursor before the first."""
    await talk.say("subscribe", id="all", since="start", speed="max")
    await talk.hear("subscribed")
    events, _ = await talk.events()
    await talk.say("unsubscribe", id="all")
    await talk.hear("done")
    return events


async def snapshots_in(talk, name="a"):
    """Those that a replay begins with, and the cursor behind them, once its answer has come."""
    answer = await talk.hear("subscribed", "error")
    assert (answer.get("id"), answer.get("cursor", "none")) == (name, None), answer
    events, part = [], 0
    while True:
        batch = await talk.hear("batch")
        part += 1
        assert batch.get("part", 1) in (1, part)
        events += batch["events"]
        if not batch["cursor"].endswith(".within") and batch.get("part", 1) == batch.get("parts", 1):
            return events, batch["cursor"]


@pytest.mark.parametrize("at", [1, 5, 9, 14, 20, 26, 32])
async def test_a_replay_that_begins_in_the_middle_begins_with_snapshots(recorded, talk, at):
    """Of the chains that are open there and no others; what follows adds up to what all events add up to."""
    await several(recorded)
    events = await all_of(talk)
    assert len(events) > 32
    time = events[at]["timestamp"]
    before = [e for e in events if e["timestamp"] < time]
    await talk.say("subscribe", id="a", time=time, speed=0, snapshots=True)
    snapshots, _ = await snapshots_in(talk)
    open_then = {n: v for n, v in views_of(before).items() if v["state"] != "ended"}
    assert {e["event_type"] for e in snapshots} <= {"chain_snapshot"}
    assert views_of(snapshots) == open_then
    await talk.say("speed", id="a", speed="max")
    rest, _ = await talk.events()
    assert rest == events[len(before) :]
    assert views_of(snapshots + rest) == {n: v for n, v in views_of(events).items() if n in views_of(rest)}


async def test_seek_and_update_begin_with_snapshots_if_they_are_asked_for(recorded, talk):
    """Backward, with another filter, and not if they are not asked for."""
    await several(recorded)
    events = await all_of(talk)
    late, early = events[30]["timestamp"], events[12]["timestamp"]
    await talk.say("subscribe", id="a", time=late, speed=0, snapshots=True, filter={"chains": ["chain_1"]})
    snapshots, _ = await snapshots_in(talk)
    assert set(views_of(snapshots)) == {"chain_1"}
    await talk.say("seek", id="a", time=early, snapshots=True)
    snapshots, cursor = await snapshots_in(talk)
    expected = views_of([e for e in events if e["timestamp"] < early])
    assert views_of(snapshots) == {"chain_1": expected["chain_1"]}
    await talk.say("update", id="a", filter={"chains": ["chain_2"]})
    snapshots, again = await snapshots_in(talk)
    assert views_of(snapshots) == {"chain_2": expected["chain_2"]}
    assert again == cursor
    await talk.say("seek", id="a", cursor=cursor)
    assert (await talk.hear("subscribed"))["cursor"] == cursor
    await talk.say("speed", id="a", speed="max")
    rest, _ = await talk.events(lambda e: e["event_type"] == "chain_end")
    assert {e["event_type"] for e in rest}.isdisjoint({"chain_snapshot"})


async def test_snapshots_come_in_parts_that_are_one_whole(recorded):
    """To a client of 0.1 in batches, of which only the last has a cursor to come back to."""
    async with recorded.manager.run(chains=8, run_id="r") as run:
        chains = [
            run.chain([{"role": "user", "content": "x" * 20_000}], chain_id=f"chain_{n}").__enter__()
            for n in range(8)
        ]
        for chain in chains:
            chain.end("answered", final_response="done")
    for features in (["parts"], []):
        async with connect(recorded.server.url, subprotocols=[SUBPROTOCOL]) as connection:
            talk = Talk(connection)
            await talk.say("hello", features=features)
            await talk.hear("welcome")
            events = await all_of(talk)
            end = next(e for e in events if e["event_type"] == "chain_end")["timestamp"]
            await talk.say("subscribe", id="a", time=end, speed=0, snapshots=True)
            assert (await talk.hear("subscribed"))["cursor"] is None
            batches = [await talk.hear("batch")]
            while (
                batches[-1]["part"] < batches[-1]["parts"]
                if features and "part" in batches[-1]
                else batches[-1]["cursor"].endswith(".within")
            ):
                batches.append(await talk.hear("batch"))
            assert len(batches) > 1
            assert len([e for batch in batches for e in batch["events"]]) == 8
            if features:
                assert [batch["part"] for batch in batches] == list(range(1, len(batches) + 1))
            else:
                await talk.say("subscribe", id="b", since=batches[0]["cursor"])
                assert not (await talk.hear("subscribed"))["recovered"]


async def test_a_snapshot_of_a_run_that_was_lost_is_none(recorded, talk):
    """Chains whose run is over are not open, whether or not they have an end."""
    async with recorded.manager.run(chains=1, run_id="r") as run:
        run.chain(chain_id="chain_0").__enter__().generation().__enter__()
    await speak(recorded, "r2")
    await all_of_two(talk)
    await talk.say("subscribe", id="a", time=1e11, speed=0, snapshots=True)
    assert await snapshots_in(talk) == ([], ANY)


async def all_of_two(talk):
    await talk.say("subscribe", id="all", since="start", speed="max")
    await talk.hear("subscribed")
    await talk.events(lambda e: e["event_type"] == "run_end" and e["run_id"] == "r2")
    await talk.say("unsubscribe", id="all")
    await talk.hear("done")


async def test_a_replay_may_begin_at_a_time(recorded, talk):
    """Without snapshots it is as after seek; without a speed it is refused, and the id may be used again."""
    await several(recorded)
    events = await all_of(talk)
    await talk.say("subscribe", id="a", time=events[20]["timestamp"])
    error = await talk.hear("error", "subscribed")
    assert (error["code"], error["id"]) == (400, "a")
    assert "a replay needs both" in error["message"]
    await talk.say("subscribe", id="a", time=events[20]["timestamp"], speed="max")
    assert (await talk.hear("subscribed", "error"))["recovered"]
    rest, _ = await talk.events()
    assert rest == [e for e in events if e["timestamp"] >= events[20]["timestamp"]]


async def test_the_story_of_an_open_chain_is_told_from_the_record_if_that_is_asked_for(recorded, talk):
    """By its events in place of a snapshot, with token ids."""
    async with recorded.manager.run(chains=1, run_id="r") as run:
        with run.chain(chain_id="chain_0") as chain:
            with chain.generation() as generation:
                generation.chunk("one\n", token_ids=[5], logprobs=[-0.5])
            with chain.generation() as generation:
                generation.chunk("two\n", token_ids=[6], logprobs=[-0.5])
                told = {}
                for recorded_too in (False, True):
                    asked = {"recorded": True} if recorded_too else {}
                    await talk.say("query", id="q", what="chain", chain="chain_0", run="r", **asked)
                    rows = []
                    while (frame := await talk.hear("rows", "done", "error"))["type"] == "rows":
                        rows += frame["rows"]
                    assert (frame["type"], frame.get("missing", [])) == ("done", [])
                    told[recorded_too] = [row["event_type"] for row in rows]
    assert told[False] == ["chain_snapshot"]
    assert told[True][0] == "chain_start"
    assert "llm_generation_end" in told[True]
    ids = [row["data"].get("token_ids") for row in rows if row["event_type"] == "llm_generation_end"]
    assert ids == [[5]]
