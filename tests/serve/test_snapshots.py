"""Snapshots of much that is open: in parts, as fast as a client takes them, and at no cost to the run."""

import asyncio
import json
import threading
from types import SimpleNamespace

import pytest
from websockets.asyncio.client import connect

from rollcast.records import EventFilter, GrammarChecker, StreamEvent, StreamEventType, check_events
from rollcast.serve import joins, opening, worker
from rollcast.serve.broadcast import Broadcaster
from rollcast.serve.client import ClientSession
from rollcast.serve.protocol import CloseCode, Hello, Subscribe, decode_server_frame, encode_frame
from rollcast.serve.settings import ServerSettings
from rollcast.stream import StreamingManager

T = StreamEventType
CHUNK = "llm_generation_chunk"
LONG = 100_000  # characters of a prompt
MOST = 2 * opening.PART_BYTES  # that may wait for a client that takes nothing


class Outlet:
    """A client's connection that takes everything, or nothing.

    Attributes:
        takes: whether what it is given is taken at once.
        waits: bytes that were given and not taken.
    """

    def __init__(self, plain=False, takes=True):
        self.plain = plain
        self.takes = takes
        self.waits = 0
        self.messages = []
        self.closed = None

    def unsent(self):
        return self.waits

    def close(self, code, message):
        self.closed = code

    def got(self, message):
        self.messages.append(message)
        if not self.takes:
            self.waits += len(message)

    @property
    def frames(self):
        return [json.loads(message) for message in self.messages]

    @property
    def events(self):
        if self.plain:
            return [StreamEvent.from_dict(frame) for frame in self.frames]
        return [StreamEvent.from_dict(event) for frame in self.frames for event in frame["events"]]

    @property
    def cursor(self):
        return self.frames[-1]["cursor"]

    def types(self):
        return [event.event_type.value for event in self.events]


def transmit(outlets, *messages):
    for outlet in outlets:
        for message in messages:
            outlet.got(message)


class House:
    """A manager, and a broadcaster that serves from this event loop; its runs have chains with long prompts."""

    def __init__(self, **options):
        self.manager = StreamingManager()
        self.broadcaster = Broadcaster(ServerSettings(**{"batch_s": 0.001} | options))
        self.broadcaster.attach(asyncio.get_running_loop(), transmit)
        self.manager.add_observer(self.broadcaster.observer)

    def join(self, filter=None, since="live", plain=False, takes=True, parts=True, limit=1 << 20):
        outlet = Outlet(plain, takes)
        outlet.recovered, _ = self.broadcaster.subscribe(
            outlet, "1", filter or EventFilter(), since, max_message=limit, parts=parts
        )
        return outlet

    def generations(self, run, chains, chars=LONG):
        return [
            run.chain([{"role": "user", "content": f"{i} " + "x" * chars}]).start().generation().start()
            for i in range(chains)
        ]

    def joining(self):
        return [s for s in self.broadcaster.subscriptions.values() if s.join is not None]

    async def talk(self, generations, chars):
        """So many characters of each, in chunks, and until the history has them."""
        for _ in range(chars // 1000):
            for generation in generations:
                generation.chunk("y" * 1000)
        await self.manager.drain()
        self.broadcaster.flush()


@pytest.fixture
async def house():
    houses = []

    def make(**options):
        houses.append(House(**options))
        return houses[-1]

    yield make
    for each in houses:
        await each.manager.aclose()
        each.broadcaster.detach()


def whole(outlet):
    """The events as a client has them that knows of parts; what was not whole is not among them."""
    session = ClientSession(EventFilter(), check=False)
    return [
        event for message in outlet.messages for event in session.receive(decode_server_frame(message))[1]
    ]


def as_of(events):
    return {event.chain_id: event.seq for event in events if event.event_type is T.CHAIN_SNAPSHOT}


# -- parts -----------------------------------------------------------------------------------------------------------------


async def test_snapshots_come_in_parts_then_the_live_tail(house, until):
    """Each within the limit, numbered, all at one moment; and nothing is missing or doubled after it."""
    house = house()
    async with house.manager.run() as run:
        generations = house.generations(run, 30)
        outlet = house.join()
        for generation in generations:
            generation.chunk("later")
        await until(lambda: not house.joining())
        await house.manager.drain()
        for generation in generations:
            generation.end()
            generation.chain.end("answered")
    await until(lambda: "run_end" in outlet.types())
    assert all(len(message) <= 1 << 20 for message in outlet.messages)
    parts = [frame for frame in outlet.frames if "part" in frame]
    assert [frame["part"] for frame in parts] == list(range(1, len(parts) + 1))
    assert all(frame["part"] < frame["parts"] for frame in parts[:-1])
    assert parts[-1]["part"] == parts[-1]["parts"] > 3
    events = whole(outlet)
    assert len(set(as_of(events).values())) == 1
    first = max(as_of(events).values()) + 1
    assert [e.event_type for e in events[:30]] == [T.CHAIN_SNAPSHOT] * 30
    assert [e.seq for e in events[30:]] == list(range(first, first + len(events) - 30))
    checker = GrammarChecker(late=True)
    for event in events:
        checker.feed(event)


async def test_one_that_takes_nothing_is_given_one_part(house, until):
    """However much is open, and however many they are: no more is made than somebody takes."""
    house = house()
    async with house.manager.run() as run:
        house.generations(run, 60)
        dead = [house.join(takes=False, plain=bool(i % 2)) for i in range(10)]
        alive = house.join()
        await until(lambda: as_of(alive.events).keys() == {f"chain_{i}" for i in range(60)})
        await until(lambda: all(outlet.waits for outlet in dead))
        for _ in range(20):
            house.broadcaster.flush()
            await asyncio.sleep(0)
        assert max(outlet.waits for outlet in dead) <= MOST
        openings = {s.join.opening for s in house.joining()}
        assert len(openings) == 1
        held = sum(len(e) for (o,) in [tuple(openings)] for part in o._kept.values() for e in part.events)
        assert held <= opening.MAX_KEPT_PARTS * 2 * opening.PART_BYTES
        dead[0].waits = 0
        dead[0].takes = True
        await until(lambda: len(as_of(dead[0].events)) == 60)


async def test_several_subscriptions_of_one_client_have_one_part_in_flight(house, until):
    """Its limit is the client's, not that of each subscription."""
    house = house()
    async with house.manager.run() as run:
        house.generations(run, 30)
        await house.manager.drain()
        outlet = Outlet(takes=False)
        for i in range(16):
            house.broadcaster.subscribe(outlet, f"{i}", EventFilter(), max_message=1 << 20, parts=True)
        await until(lambda: outlet.waits)
        for _ in range(20):
            house.broadcaster.flush()
            await asyncio.sleep(0)
        assert outlet.waits <= MOST
        outlet.takes, outlet.waits = True, 0
        await until(lambda: not house.joining())
    assert len([e for e in outlet.events if e.event_type is T.CHAIN_SNAPSHOT]) == 16 * 30


async def test_those_that_begin_together_share_the_bytes_of_their_parts(house, until):
    """The very same object."""
    house = house()
    async with house.manager.run() as run:
        house.generations(run, 20)
        one, other = house.join(), house.join()
        await until(lambda: not house.joining())
    assert len(one.messages) > 3
    assert all(a is b for a, b in zip(one.messages, other.messages, strict=False))


@pytest.mark.parametrize("limit", [16 << 10, 200_000])
async def test_parts_are_as_small_as_the_client_asked(house, until, limit):
    """Plain, with parts, and without."""
    house = house()
    async with house.manager.run() as run:
        house.generations(run, 10, chars=9000)
        outlets = [house.join(limit=limit, parts=parts) for parts in (True, False)]
        outlets.append(house.join(limit=limit, plain=True))
        await until(lambda: not house.joining())
    for outlet in outlets:
        assert max(map(len, outlet.messages)) <= limit
        assert len(as_of(outlet.events)) == 10
        assert not any("truncated" in event.data for event in outlet.events)


async def test_one_that_does_not_know_parts_gets_several_batches(house, until):
    """0.1's clients: only the cursor of the last is one to come back to."""
    house = house()
    async with house.manager.run() as run:
        house.generations(run, 20)
        outlet = house.join(parts=False)
        await until(lambda: not house.joining())
        await house.manager.drain()
        cursors = [frame["cursor"] for frame in outlet.frames if frame["events"]]
        assert not any("part" in frame for frame in outlet.frames)
        assert len(cursors) > 3
        recovered = [house.join(since=cursor).recovered for cursor in cursors]
        assert recovered == [False] * (len(cursors) - 1) + [True]


# -- the run goes on -------------------------------------------------------------------------------------------------------


async def test_neither_the_run_nor_its_loop_waits_while_snapshots_are_encoded(house, until, monkeypatch):
    """They are encoded on another thread, which holds no lock."""
    house, gate, begun = house(), threading.Event(), threading.Event()
    encoded = opening.encoded

    def slowly(event):
        begun.set()
        assert gate.wait(60)
        return encoded(event)

    monkeypatch.setattr(opening, "encoded", slowly)
    try:
        async with house.manager.run() as run:
            (generation,) = house.generations(run, 1)
            ready = house.join(since="start")
            outlet = house.join()
            await until(begun.is_set)
            generation.chunk("meanwhile")
            await until(lambda: CHUNK in ready.types())
            assert outlet.messages == []
            gate.set()
            await until(lambda: CHUNK in outlet.types())
    finally:
        gate.set()


async def test_who_waits_for_an_event_that_cannot_be_shortened_is_closed(house, until, monkeypatch, caplog):
    """With a code of its own, and the log has the traceback; the others go on."""

    def failing(event, room):
        raise MemoryError("no room for a copy")

    monkeypatch.setattr(worker, "fitted", failing)
    house = house()
    large, small = house.join(limit=None), house.join(limit=100_000)
    async with house.manager.run() as run:
        (generation,) = house.generations(run, 1, chars=300_000)
        await until(lambda: small.closed)
        generation.chunk("after it")
        await until(lambda: CHUNK in large.types())
    assert small.closed is CloseCode.FAILED
    assert small.types() == ["run_start"]
    assert large.closed is None
    assert "no room for a copy" in caplog.text


@pytest.mark.parametrize("chars", [300_000, 10])
async def test_who_waits_for_snapshots_that_cannot_be_encoded_is_closed(
    house, until, monkeypatch, caplog, chars
):
    """It has nothing of them, whether they are encoded on the worker or in the loop, and the others go on."""
    house = house()
    ready = house.join()
    await until(lambda: not house.joining())
    async with house.manager.run() as run:
        (generation,) = house.generations(run, 1, chars)

        def failing(self, index, room):
            raise MemoryError("no room for a part")

        monkeypatch.setattr(opening.Opening, "part", failing)
        outlets = [house.join(), house.join(limit=100_000)]
        await until(lambda: all(outlet.closed for outlet in outlets))
        generation.chunk("meanwhile")
        await until(lambda: CHUNK in ready.types())
    assert [outlet.closed for outlet in outlets] == [CloseCode.FAILED] * 2
    assert [outlet.messages for outlet in outlets] == [[], []]
    assert "no room for a part" in caplog.text


async def test_a_large_event_is_shortened_off_the_loop_and_keeps_its_place(house, until, monkeypatch):
    """Others go on meanwhile; who waits for it gets nothing that came after it before."""
    house, gate, begun = house(), threading.Event(), threading.Event()
    fitted = worker.fitted

    def slowly(event, room):
        begun.set()
        assert gate.wait(60)
        return fitted(event, room)

    monkeypatch.setattr(worker, "fitted", slowly)
    try:
        large, small = (
            house.join(limit=None),
            [house.join(limit=100_000), house.join(limit=100_000, plain=True)],
        )
        async with house.manager.run() as run:
            (generation,) = house.generations(run, 1, chars=300_000)
            await until(begun.is_set)
            generation.chunk("after it")
            await until(lambda: CHUNK in large.types())
            assert [outlet.types() for outlet in small] == [["run_start"]] * 2
            gate.set()
            await until(lambda: all(CHUNK in outlet.types() for outlet in small))
    finally:
        gate.set()
    for outlet in small:
        assert [e.seq for e in outlet.events] == list(range(len(outlet.events)))
        assert ["truncated" in e.data for e in outlet.events][:3] == [False, True, False]


# -- too slow --------------------------------------------------------------------------------------------------------------

SMALL = {"history_bytes": 100_000, "behind_bytes": 100_000}


@pytest.mark.parametrize("plain", [False, True])
async def test_one_too_slow_for_the_history_begins_anew_and_is_told(house, until, plain):
    """A `gap` with a reason stands between the snapshots that it had and the new ones; then it has the whole tail."""
    house = house(**SMALL)
    async with house.manager.run() as run:
        generations = house.generations(run, 20)
        await house.manager.drain()
        outlet = house.join(takes=False, plain=plain)
        await until(lambda: outlet.messages)
        await house.talk(generations, 10_000)
        outlet.takes, outlet.waits = True, 0
        await until(lambda: not house.joining())
        for generation in generations:
            generation.end()
            generation.chain.end("answered")
            await house.manager.drain()
            await until(
                lambda: all(s.position == house.broadcaster.history.head for s in subscriptions(house))
            )
    await until(lambda: "run_end" in outlet.types())
    events = outlet.events if plain else whole(outlet)
    (gap,) = (i for i, event in enumerate(events) if event.event_type is T.GAP)
    before, after = as_of(events[:gap]), as_of(events[gap:])
    assert 0 < len(before) < 20
    assert len(after) == 20
    assert events[gap].data["from_seq"] == max(before.values()) + 1
    assert events[gap].data["to_seq"] == max(after.values())
    assert "snapshots were read too slowly" in events[gap].data["reason"]
    tail = [event.seq for event in events[gap + 21 :]]
    assert tail == list(range(max(after.values()) + 1, events[-1].seq + 1))
    check_events(events[gap + 1 :], late=True)
    assert outlet.closed is None


async def test_a_run_that_ended_while_its_snapshots_were_read_too_slowly_is_told_to_have_ended(house, until):
    """By the `gap` itself, since there is no snapshot of it any more."""
    house = house(**SMALL)
    async with house.manager.run() as run:
        generations = house.generations(run, 20)
        await house.manager.drain()
        outlet = house.join(takes=False)
        await until(lambda: outlet.messages)
        await house.talk(generations, 10_000)
        for generation in generations:
            generation.end()
            generation.chain.end("answered")
    await house.manager.drain()
    outlet.takes, outlet.waits = True, 0
    house.broadcaster.flush()
    await until(lambda: not house.joining())
    gap = whole(outlet)[-1]
    assert gap.event_type is T.GAP
    assert gap.data["run_status"] == "completed"
    assert (gap.data["to_seq"], gap.run_id) == (run.seq, run.run_id)
    assert gap.data["reason"].endswith("; the run has ended meanwhile")


def subscriptions(house):
    return house.broadcaster.subscriptions.values()


async def test_a_run_that_passed_while_snapshots_were_read_too_slowly_has_a_gap(house, until):
    """It opened and ended between the two moments, so neither knows it. One that goes on has a gap from its first event."""
    house = house(**SMALL)
    async with house.manager.run() as run:
        generations = house.generations(run, 20)
        await house.manager.drain()
        outlet = house.join(takes=False)
        await until(lambda: outlet.messages)
        async with house.manager.run() as passed:
            house.generations(passed, 1, chars=1)
        open_run = house.manager.run().open()
        await house.talk(generations, 10_000)
        outlet.takes, outlet.waits = True, 0
        await until(lambda: not house.joining())
        gaps = {event.run_id: event.data for event in whole(outlet) if event.event_type is T.GAP}
        assert gaps.keys() == {run.run_id, passed.run_id, open_run.run_id}
        told = gaps[passed.run_id]
        assert (told["from_seq"], told["to_seq"], told["run_status"]) == (0, passed.seq, "completed")
        assert (gaps[open_run.run_id]["from_seq"], gaps[open_run.run_id]["to_seq"]) == (0, 0)
        open_run.close()


@pytest.mark.parametrize("parts", [True, False])
async def test_the_gaps_of_many_runs_fit_into_messages(house, until, parts):
    """As everything else that a client is sent."""
    house = house(history_bytes=400_000, behind_bytes=400_000)
    runs = [house.manager.run().open() for _ in range(200)]
    generations = house.generations(runs[0], 20)
    await house.manager.drain()
    outlet = house.join(takes=False, parts=parts, limit=16 << 10)
    await until(lambda: outlet.messages)
    for run in runs[1:]:
        house.generations(run, 1, chars=1)
    await house.talk(generations, 20_000)
    outlet.takes, outlet.waits = True, 0
    await until(lambda: not house.joining())
    assert outlet.closed is None
    assert max(map(len, outlet.messages)) <= 16 << 10
    assert len({e.run_id for e in whole(outlet) if e.event_type is T.GAP}) == 200
    for run in runs:
        run.close()


async def test_who_comes_back_to_snapshots_made_for_others_is_told_only_of_what_came_before_them(
    house, until
):
    """Somebody slow is given them still; what came since then comes after them, the end of a run too."""
    house = house(**SMALL)
    async with house.manager.run() as run:
        generations = house.generations(run, 5)
        await house.manager.drain()
        gone = f"{house.broadcaster.history.cursor(0)}"
        await house.talk(generations, 20_000)
        slow = house.join(takes=False)
        await until(lambda: slow.messages)
        generations[0].chunk("since")
        async with house.manager.run() as later:
            pass
        await house.manager.drain()
        outlet = house.join(since=gone)
        shared = {s.join.opening for s in house.joining()}
        lost = house.broadcaster.losses(outlet, "1").lost
        await until(lambda: "run_end" in outlet.types())
    events = whole(outlet)
    assert len(shared) == 1
    assert [(each.run_id, each.status) for each in lost] == [(run.run_id, "running")]
    assert lost[0].to_seq == set(as_of(events).values()).pop()
    assert [e.event_type.value for e in events if e.run_id == later.run_id] == ["run_start", "run_end"]
    assert [e.seq for e in events if e.run_id == run.run_id and e.event_type.value == CHUNK] == [
        lost[0].to_seq + 1
    ]


async def test_one_that_is_too_slow_again_and_again_is_closed(house, until):
    """With 4008, after so many beginnings: it is no loop without an end."""
    house = house(**SMALL)
    async with house.manager.run() as run:
        generations = house.generations(run, 20)
        await house.manager.drain()
        outlet = house.join(takes=False)
        await until(lambda: outlet.messages)
        for _ in range(joins.MAX_RESTARTS + 1):
            assert outlet.closed is None
            seen = len(outlet.messages)
            await house.talk(generations, 10_000)
            outlet.waits = 0
            await until(lambda: len(outlet.messages) > seen or outlet.closed)  # noqa: B023  (it is awaited here)
    assert outlet.closed is CloseCode.TOO_SLOW
    assert house.broadcaster.clients.closed_slow == 1


async def test_a_filter_that_changes_in_the_middle_of_snapshots_changes_at_once(house, until):
    """Who asks for less on a slow link does not wait for all of it; a `gap` says that some had been sent."""
    house = house()
    async with house.manager.run() as run:
        generations = house.generations(run, 20)
        await house.manager.drain()
        outlet = house.join(takes=False)
        await until(lambda: outlet.messages)
        generations[3].chunk("meanwhile")
        house.broadcaster.update(outlet, "1", EventFilter(chains="chain_3"))
        outlet.takes, outlet.waits = True, 0
        await until(lambda: not house.joining())
        generations[3].chunk("later")
        await until(lambda: CHUNK in outlet.types())
    events = whole(outlet)
    (gap,) = (i for i, event in enumerate(events) if event.event_type is T.GAP)
    assert "the filter was changed" in events[gap].data["reason"]
    assert [(e.chain_id, e.event_type.value) for e in events[gap + 1 : gap + 3]] == [
        ("chain_3", "chain_snapshot"),
        ("chain_3", CHUNK),
    ]
    assert events[gap + 1].data["content"] == "meanwhile"
    assert len(events) < 15


# -- over real sockets -----------------------------------------------------------------------------------------------------


async def open_chains(manager, run, chains, chars=LONG):
    return [
        run.chain([{"role": "user", "content": f"{i} " + "x" * chars}]).start().generation().start()
        for i in range(chains)
    ]


async def test_a_link_slower_than_the_heartbeat_is_alive_while_bytes_move(stage, proxy, read, until):
    """A message takes many heartbeats, at both ends: the client gets everything, and neither end gives up."""
    server = await stage.serve(heartbeat_s=0.5)
    passed = SimpleNamespace(bytes=0)

    def count(data):
        passed.bytes += len(data)
        return data

    async with proxy(server.port) as link, stage.manager.run() as run:
        link.mangle, link.pause_s = count, 0.006
        (generation,) = await open_chains(stage.manager, run, 1, chars=2_000_000)
        async with stage.client(link.url) as client:
            events = await read(client, until="chain_snapshot")
            generation.chunk("still here")
            events += await read(client, until=CHUNK)
        assert client.reconnections == 0
        assert passed.bytes > 2_000_000
        assert link.connections == 1
    assert len(events[0].data["messages"][0]["content"]) > 2_000_000


async def test_a_plain_client_that_says_nothing_is_asked_and_stays(stage, say, until):
    """Its library answers for it, for many heartbeats."""
    server = await stage.serve(heartbeat_s=1)
    async with connect(server.url, proxy=None, ping_interval=None) as socket:
        pings = []
        received = socket.process_event
        socket.process_event = lambda event: (pings.append(event), received(event))
        await until(lambda: len(pings) > 3)
        async with stage.manager.run() as run:
            say(run, ["one"])
        async with asyncio.timeout(60):
            assert "run_start" in await socket.recv()
    assert server.statistics().closed_slow == 0


async def test_a_plain_client_that_does_not_answer_is_let_go(stage, until):
    """Though nothing waits for it."""
    server = await stage.serve(heartbeat_s=0.05, close_s=0.1)
    socket = await connect(server.url, proxy=None, ping_interval=None)
    socket.transport.pause_reading()
    await until(lambda: server.statistics().connections == 0)
    assert server.statistics().closed_slow == 0, "it was silent, not slow"
    socket.transport.abort()


async def test_the_list_of_runs_fits_into_a_message(stage):
    """Thousands of open runs: those that run and are the latest are listed, and the number of the others is told."""
    server = await stage.serve()
    runs = [stage.manager.run().open() for _ in range(2000)]
    async with connect(
        server.url, proxy=None, subprotocols=["rollcast.v1"], max_size=16 << 10, ping_interval=None
    ) as socket:
        await socket.send(encode_frame(Hello(max_message=16 << 10, features=["parts"])), text=True)
        welcome = decode_server_frame(await socket.recv())
    assert welcome.features == ["parts", "queries", "replay", "replay_at"]
    assert 50 < len(welcome.runs) < 200
    assert welcome.more_runs == 2000 - len(welcome.runs)
    assert [run.run_id for run in welcome.runs] == [run.run_id for run in runs[-len(welcome.runs) :]]
    for run in runs:
        run.close()


async def test_a_run_that_is_watched_on_a_slow_link_keeps_its_word(stage, proxy, read):
    """Many snapshots over a slow link while the run goes on: each chain's text is whole, and nothing comes twice."""
    server = await stage.serve()
    async with proxy(server.port) as link:
        link.pause_s = 0.0005
        async with stage.manager.run() as run:
            generations = await open_chains(stage.manager, run, 30)
            async with stage.client(link.url) as client:
                reading = asyncio.create_task(read(client))
                for word in range(50):
                    for generation in generations:
                        generation.chunk(f"{word} ")
                    await stage.manager.drain()
                    await asyncio.sleep(0.001)
                for generation in generations:
                    generation.end()
                    generation.chain.end("answered")
                run.close()
                events = await reading
    texts = dict.fromkeys((g.chain.trajectory.chain_id for g in generations), "")
    for event in events:
        if event.event_type is T.CHAIN_SNAPSHOT:
            texts[event.chain_id] = event.data["content"]
        elif event.event_type == CHUNK:
            assert event.data["offset"] == len(texts[event.chain_id])
            texts[event.chain_id] += event.data["content"]
    assert set(texts.values()) == {"".join(f"{word} " for word in range(50))}
    assert not any(event.event_type is T.GAP for event in events)
    assert link.connections == 1


async def test_forty_that_never_read_hold_little(stage, until):
    """Bytes that wait for them in the server, together: a part or two each, and not a copy of what is open."""
    server = await stage.serve(heartbeat_s=600)
    async with stage.manager.run() as run:
        await open_chains(stage.manager, run, 100, chars=400_000)  # 40 MB
        sockets = [
            await connect(
                server.url, subprotocols=["rollcast.v1"], proxy=None, ping_interval=None, max_queue=1
            )
            for _ in range(40)
        ]
        for socket in sockets:
            socket.transport.pause_reading()
            await socket.send(encode_frame(Hello(features=["parts"])), text=True)
            await socket.send(encode_frame(Subscribe("1")), text=True)
        await until(lambda: server.statistics().subscriptions == 40)
        await until(lambda: all(client.unsent() for client in server._clients), timeout=60)
        assert max(client.unsent() for client in server._clients) <= MOST
        for socket in sockets:
            socket.transport.abort()
