"""Runs of several sources on a server: nobody is told of a gap that is none, and no run is over too early."""

import asyncio
import random

import msgspec
import pytest

from doubles import interleaved, part_of_run
from rollcast.records import EventFilter, StreamEventType, check_events
from rollcast.records.lanes import Lane
from rollcast.serve import WebSocketStreamingClient
from rollcast.serve.continuity import Continuity
from rollcast.serve.history import History, Selector
from rollcast.serve.ledger import RunLedger
from rollcast.serve.losses import losses, way_back
from rollcast.serve.protocol import RunInfo, Subscribed
from rollcast.serve.runs import KnownRuns
from rollcast.stream import StreamingManager

T = StreamEventType
ALL = Selector(EventFilter())


def streams_of(dice):
    """What two to four sources emit of two runs."""
    streams = [
        part_of_run(run, f"rank{rank}", [f"chain_{rank}_{i}" for i in range(dice.randint(1, 3))])
        for run in ("one", "two")
        for rank in range(dice.randint(2, 4))
    ]
    starts = [stream.pop(0) for stream in streams]
    return [*starts, *interleaved(streams, dice)]


class House:
    """A server's memory of what it relays, without the network."""

    def __init__(self, limit):
        self.manager, self.history, self.ledger, self.runs = (
            StreamingManager(),
            History(limit),
            RunLedger(),
            KnownRuns(),
        )

    def take(self, events):
        for event in events:
            self.manager.relay(event)
            self.ledger.note([event], [self.history.append(event)], self.history.head - 1)
            if event.event_type in (T.RUN_START, T.RUN_END):
                self.runs.note(event)

    def welcome(self) -> list[RunInfo]:
        return self.runs.listed(self.manager.fanout.runs)


@pytest.mark.parametrize("seed", range(60))
def test_a_client_that_comes_back_is_told_exactly_what_it_missed_of_each_source(seed):
    """Each event is seen, or is within a gap of its own source, and never both."""
    dice = random.Random(seed)
    events = streams_of(dice)
    left, back = sorted(dice.sample(range(1, len(events)), 2))
    house = House(dice.choice([2_000, 6_000, 1 << 20]))
    client = Continuity(EventFilter(), "start", 4096)
    house.take(events[:left])
    client.welcomed(house.welcome())
    assert client.subscribed(Subscribed("1", True, None)) == []
    seen = client.arrived(events[:left])
    cursor = house.history.cursor(left)
    house.take(events[left:back])
    client.welcomed(house.welcome())
    place = way_back(house.history, house.ledger, ALL, cursor)
    if place.position is not None:
        seen += client.subscribed(Subscribed("1", True, None))
        seen += client.arrived(events[place.position :])
    else:
        as_of = house.manager.fanout.cut(EventFilter()).as_of
        answer = Subscribed("1", False, None, *losses(house.ledger, ALL, place, as_of))
        seen += client.subscribed(answer)
        seen += client.arrived(events[back:])
    house.manager.close()
    came = {}
    for event in seen:
        numbers = came.setdefault(Lane(event.run_id, event.source), [])
        is_gap = event.event_type is T.GAP
        numbers += range(event.data["from_seq"], event.data["to_seq"] + 1) if is_gap else [event.seq]
        if is_gap and "run_status" in event.data:
            assert event.data["run_status"] == "completed"
    whole = {}
    for event in events:
        whole.setdefault(Lane(event.run_id, event.source), []).append(event.seq)
    assert came == whole


async def test_a_viewer_sees_the_parts_of_a_run_and_may_ask_for_one(stage):
    """All of it, or what one source emits."""
    await stage.serve()
    streams = [part_of_run("r", name, [f"chain_{name}"]) for name in ("a", "b")]
    starts = [stream.pop(0) for stream in streams]
    events = [*starts, *interleaved(streams, random.Random(0))]
    whole, part = stage.client(), stage.client(filter=EventFilter(sources="b"))

    async def take(client: WebSocketStreamingClient, most):
        got = []
        async with asyncio.timeout(60):
            async for event in client:
                got.append(event)
                if len(got) == most:
                    break
        return got

    of_b = [event for event in events if event.source == "b"]
    async with whole, part:
        reading = asyncio.gather(take(whole, len(events)), take(part, len(of_b)))
        while stage.server.statistics().subscriptions < 2:
            await asyncio.sleep(0)
        for event in events:
            stage.manager.relay(event)
        everything, of_one = await reading
    assert everything == events
    assert of_one == of_b
    check_events(everything)


async def test_the_plain_feed_can_be_narrowed_to_a_source(stage):
    """`?source=b`."""
    from websockets.asyncio.client import connect

    await stage.serve()
    streams = [part_of_run("r", name, [f"chain_{name}"]) for name in ("a", "b")]
    async with connect(f"{stage.server.url}/?source=b") as feed:
        while stage.server.statistics().subscriptions < 1:
            await asyncio.sleep(0)
        for event in (event for stream in streams for event in stream):
            stage.manager.relay(event)
        got = [msgspec.json.decode(await asyncio.wait_for(feed.recv(), 60)) for _ in streams[1]]
    assert {event["source"] for event in got} == {"b"}
