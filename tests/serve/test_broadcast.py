"""What each client gets, without sockets: whole, once, in order, from the moment it joins."""

import asyncio
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rollcast.records import EventFilter, GrammarChecker, StreamEvent, StreamEventType
from rollcast.serve.broadcast import Broadcaster
from rollcast.serve.protocol import CloseCode
from rollcast.serve.settings import ServerSettings
from rollcast.stream import StreamingManager
from rollcast.testing import EventCapture

CHUNK = "llm_generation_chunk"


class Outlet:
    """A client's connection that takes messages, or none."""

    def __init__(self, plain=False):
        self.plain = plain
        self.messages = []
        self.events = []
        self.cursor = None
        self.full = 0
        self.closed = None
        self.cut = False

    def unsent(self):
        return self.full

    def close(self, code, message):
        self.closed = code

    def got(self, message):
        if self.cut:
            return
        self.messages.append(message)
        frame = json.loads(message)
        if self.plain:
            self.events.append(StreamEvent.from_dict(frame))
        else:
            self.cursor = frame["cursor"]
            self.events += map(StreamEvent.from_dict, frame["events"])

    def types(self):
        return [e.event_type.value for e in self.events]


def transmit(outlets, *messages):
    for outlet in outlets:
        for message in messages:
            outlet.got(message)


class Stage:
    """A manager and a broadcaster that serves from this event loop."""

    def __init__(self, **options):
        options.setdefault("batch_s", 0)
        self.manager = StreamingManager()
        self.broadcaster = Broadcaster(ServerSettings(**options))
        self.broadcaster.attach(asyncio.get_running_loop(), transmit)
        self.manager.add_observer(self.broadcaster.observer)

    def join(self, filter=None, since="live", plain=False, id="1"):
        outlet = Outlet(plain)
        outlet.recovered, outlet.cursor = self.broadcaster.subscribe(
            outlet, id, filter or EventFilter(), since
        )
        return outlet

    async def settled(self):
        await self.manager.drain()
        for _ in range(200):
            await asyncio.sleep(0)
            subscriptions = self.broadcaster.subscriptions.values()
            if all(
                s.join is None and (s.position == self.broadcaster.history.head or s.behind)
                for s in subscriptions
            ):
                return
        await asyncio.sleep(0.01)


@pytest.fixture
async def stage(request):
    stages = []

    def make(**options):
        stages.append(Stage(**options))
        return stages[-1]

    yield make
    for each in stages:
        await each.manager.aclose()
        each.broadcaster.detach()


def talk(run, words, chain_id=None):
    with (
        run.chain([{"role": "user", "content": "Say it."}], chain_id=chain_id) as chain,
        chain.generation() as generation,
    ):
        for word in words:
            generation.chunk(word)


async def test_a_run_arrives_whole_and_in_order(stage):
    """Framed and plain."""
    stage = stage()
    framed, plain = stage.join(), stage.join(plain=True)
    async with stage.manager.run() as run:
        talk(run, "abc")
    await stage.settled()
    expected = ["run_start", "chain_start", "llm_generation_start", CHUNK, CHUNK, CHUNK, "llm_generation_end"]
    assert framed.types() == [*expected, "chain_end", "run_end"]
    assert plain.events == framed.events
    assert len(plain.messages) == len(plain.events)


async def test_clients_with_equal_filters_share_the_bytes_of_a_batch(stage):
    """The very same object, encoded once."""
    stage = stage()
    one, other = (stage.join(EventFilter(chains="chain_0")) for _ in range(2))
    await stage.settled()
    async with stage.manager.run() as run:
        talk(run, "abc")
    await stage.settled()
    one.messages.pop(0), other.messages.pop(0)  # each one's own beginning
    assert one.messages
    assert all(a is b for a, b in zip(one.messages, other.messages, strict=True))


async def test_a_batch_is_bounded(stage):
    """By events and by bytes."""
    stage = stage(batch_events=10, batch_bytes=2000)
    outlet = stage.join()
    async with stage.manager.run() as run:
        talk(run, ["x"] * 50)
        talk(run, ["y" * 1500] * 5)
    await stage.settled()
    sizes = [json.loads(m)["events"] for m in outlet.messages]
    assert max(len(events) for events in sizes) <= 10
    assert all(len(m) < 2000 + 9000 for m in outlet.messages)
    GrammarChecker(late=True)
    assert outlet.types().count(CHUNK) == 55


async def test_the_first_chunk_of_a_generation_goes_at_once(stage):
    """However long a batch may wait; the second waits."""
    stage = stage(batch_s=3600)
    outlet = stage.join()
    async with stage.manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            generation.chunk("first")
            await stage.manager.drain()
            await asyncio.sleep(0)
            assert outlet.types()[-1] == CHUNK
            generation.chunk(" second")
            await stage.manager.drain()
            await asyncio.sleep(0)
            assert outlet.types().count(CHUNK) == 1
            stage.broadcaster.flush()
            assert outlet.types().count(CHUNK) == 2


async def test_who_joins_late_begins_with_snapshots(stage):
    """And then has every later event once, though some were on their way."""
    stage = stage()
    async with stage.manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            generation.chunk("one ")
            generation.chunk("two ")  # on its way while the client joins
            outlet = stage.join()
            assert outlet.recovered
            assert outlet.cursor is None
            generation.chunk("three")
            await stage.settled()
    await stage.settled()
    assert outlet.types()[:2] == ["chain_snapshot", CHUNK]
    assert outlet.events[0].data["content"] == "one two "
    assert outlet.events[1].data["content"] == "three"


# -- joining while events are on their way ------------------------------------------------------------------------------


def held(stage):
    """The observer takes nothing until the gate is opened: what is emitted waits in its queue."""
    gate, take = asyncio.Event(), stage.broadcaster.observer.on_batch

    async def on_batch(events):
        await gate.wait()
        await take(events)

    stage.broadcaster.observer.on_batch = on_batch
    return gate


async def turns(n=20):
    """Whatever the event loop has to do, done."""
    for _ in range(n):
        await asyncio.sleep(0)


def text_of(outlet):
    """The generation's text: that of the snapshot and of the chunks behind it, each at its offset."""
    text = ""
    for event in outlet.events:
        if event.event_type == "chain_snapshot":
            assert text == ""
            text = event.data["content"]
        elif event.event_type == CHUNK:
            assert event.data["offset"] == len(text)
            text += event.data["content"]
    return text


async def test_who_joins_waits_for_what_is_in_the_observers_queue(stage):
    """Its snapshots go when the history has all that they tell: nothing is missed, and nothing comes twice."""
    stage = stage()
    gate = held(stage)
    async with stage.manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            generation.chunk("one ")
            await turns()
            generation.chunk("two ")
            framed, plain = stage.join(), stage.join(plain=True)
            generation.chunk("three ")
            await turns()
            assert framed.messages == plain.messages == []
            gate.set()
            await stage.settled()
            assert framed.types() == ["chain_snapshot", CHUNK]
            assert plain.events[0].data["content"] == "one two "
            generation.chunk("four")
    await stage.settled()
    assert text_of(framed) == text_of(plain) == "one two three four"
    assert framed.events[1:] == plain.events[1:]


async def test_a_filter_that_changes_waits_for_what_is_in_the_observers_queue(stage):
    """Twice over: only the last change begins, and with one snapshot of each chain that is new."""
    stage = stage()
    outlet = stage.join(EventFilter(chains="a"))
    await stage.settled()
    gate = held(stage)
    async with stage.manager.run() as run:
        with (
            run.chain(chain_id="a") as a,
            run.chain(chain_id="b") as b,
            a.generation() as one,
            b.generation() as other,
        ):
            one.chunk("a1 "), other.chunk("b1 ")
            await turns()
            stage.broadcaster.update(outlet, "1", EventFilter(types="chain_end"))
            other.chunk("b2 ")
            stage.broadcaster.update(outlet, "1", EventFilter(chains=["a", "b"]))
            one.chunk("a2 "), other.chunk("b3 ")
            await turns()
            gate.set()
            await stage.settled()
    await stage.settled()
    told = [(e.chain_id, e.event_type.value) for e in outlet.events if e.event_type == "chain_snapshot"]
    assert told == [("b", "chain_snapshot")]
    texts = {
        name: "".join(
            e.data["content"]
            for e in outlet.events
            if e.chain_id == name and e.event_type in (CHUNK, "chain_snapshot")
        )
        for name in "ab"
    }
    assert texts == {"a": "a1 a2 ", "b": "b1 b2 b3 "}


@pytest.mark.parametrize("others", [0, 600])
async def test_chunks_that_merge_while_a_client_joins_come_once(stage, others):
    """The observer falls behind by thousands of events, some emitted before the snapshots and some after."""
    stage = stage()
    gate = held(stage)
    async with stage.manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            generation.chunk("x")
            await turns()
            for i in range(1000):
                generation.chunk(f"{i} ")
            outlet = stage.join(EventFilter(chains="chain_0"))
            with run.chain() as other:
                for _ in range(others):
                    with other.generation():
                        pass
            for i in range(1500):
                generation.chunk(f"{i} ")
            gate.set()
            await stage.settled()
            generation.chunk("last")
    await stage.settled()
    assert outlet.types().count(CHUNK) < 1000
    assert text_of(outlet) == "x" + "".join(f"{i} " for i in [*range(1000), *range(1500)]) + "last"


async def test_who_joins_while_more_comes_than_the_history_holds_is_closed(stage):
    """With 4008, and without a part of it."""
    stage = stage(history_bytes=20_000, behind_bytes=20_000)
    gate = held(stage)
    async with stage.manager.run() as run:
        talk(run, ["x"])
        await turns()
        outlet = stage.join()
        for _ in range(30):
            talk(run, ["y" * 100] * 10)
        gate.set()
        await stage.settled()
    assert outlet.closed is CloseCode.TOO_SLOW
    assert outlet.events == []


async def test_a_client_comes_back_to_its_cursor(stage):
    """With a filter too: what it leaves out is no gap."""
    stage = stage()
    for wanted in (EventFilter(), EventFilter(types="chain_end"), EventFilter(chains="nobody")):
        first, whole = stage.join(wanted), stage.join(wanted)
        async with stage.manager.run() as run:
            talk(run, "abc")
            await stage.settled()
            stage.broadcaster.unsubscribe(first)
            talk(run, "def")
        await stage.settled()
        if first.cursor is None:
            continue
        second = stage.join(wanted, since=first.cursor)
        await stage.settled()
        assert second.recovered
        assert first.events + second.events == whole.events


async def test_the_start_is_replayed_as_it_was(stage):
    """Each event of the history, not merged."""
    stage = stage()
    live = stage.join()
    async with stage.manager.run() as run:
        talk(run, ["x"] * 5000)
        late = stage.join(since="start")
        assert late.recovered
        await stage.settled()
    await stage.settled()
    assert late.types().count(CHUNK) == live.types().count(CHUNK)
    assert late.events == live.events


async def test_a_cursor_that_is_gone_brings_snapshots(stage):
    """Of another server, and one that the ring has lost: `recovered` is False."""
    stage = stage(history_bytes=4000, behind_bytes=4000)
    outlet = stage.join()
    async with stage.manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            generation.chunk("so far")
            await stage.settled()
            stage.broadcaster.unsubscribe(outlet)
            for _ in range(50):
                generation.chunk(".")
            await stage.settled()
            for since in ("elsewhere.3", outlet.cursor, "start"):
                back = stage.join(since=since)
                assert not back.recovered
                await stage.settled()
                assert back.types() == ["chain_snapshot"]
                assert back.events[0].data["content"] == "so far" + "." * 50


async def test_a_silent_filter_is_told_its_cursor(stage):
    """So that the ring does not lose it: an empty batch now and then."""
    stage = stage(history_bytes=100_000, behind_bytes=100_000)
    outlet = stage.join(EventFilter(chains="nobody"))
    async with stage.manager.run() as run:
        for _ in range(20):
            talk(run, ["x" * 200] * 20)
            await stage.settled()
    await stage.settled()
    assert outlet.events == []
    back = stage.join(EventFilter(chains="nobody"), since=outlet.cursor)
    assert back.recovered
    assert 5 < len(outlet.messages) < 60


async def test_one_that_cannot_take_more_waits_and_gets_its_chunks_merged(stage):
    """The others are not held up; all of the text arrives."""
    stage = stage()
    slow, fast = stage.join(), stage.join()
    async with stage.manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            await stage.settled()
            slow.full = 2 << 20
            for i in range(100):
                generation.chunk(f"{i} ")
                await stage.settled()
            assert fast.types().count(CHUNK) == 100
            assert slow.types().count(CHUNK) == 0
            slow.full = 0
            stage.broadcaster.flush()
    await stage.settled()
    chunks = [e for e in slow.events if e.event_type == CHUNK]
    assert len(chunks) == 1
    assert chunks[0].data["content"] == "".join(f"{i} " for i in range(100))
    assert slow.closed is None
    checker = GrammarChecker()
    for event in slow.events:
        checker.feed(event)


async def test_one_that_never_reads_is_closed(stage):
    """Once it is behind by more than the limit; its cursor still serves."""
    stage = stage(behind_bytes=50_000)
    slow, fast = stage.join(), stage.join()
    async with stage.manager.run() as run:
        await stage.settled()
        slow.full = 2 << 20
        for _ in range(20):
            talk(run, ["x" * 100] * 10)
            await stage.settled()
        assert slow.closed is CloseCode.TOO_SLOW
        assert stage.broadcaster.clients.closed_slow == 1
        back = stage.join(since=slow.cursor)
        assert back.recovered
    await stage.settled()
    assert fast.closed is None
    assert slow.events + back.events == fast.events


# -- slow ones, in detail ------------------------------------------------------------------------------------------------


async def test_one_that_waits_goes_on_when_half_of_its_buffer_is_free(stage):
    """Not at every byte: and without a further event that would remind of it."""
    stage = stage(client_buffer=1000)
    slow = stage.join()
    async with stage.manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            await stage.settled()
            slow.full = 1001
            generation.chunk("a")
            await stage.settled()
            before = len(slow.events)
            slow.full = 501
            stage.broadcaster.flush()
            assert len(slow.events) == before
            slow.full = 500
            async with asyncio.timeout(60):
                while len(slow.events) == before:
                    await asyncio.sleep(0)
            assert slow.types()[-1] == CHUNK
            generation.chunk("b"), generation.chunk("c")
            await stage.settled()
            assert slow.types()[-3:] == [CHUNK] * 3  # it has caught up: nothing is merged any longer
    await stage.settled()


async def test_a_replay_is_not_merged_nor_closed_though_its_reader_is_slow(stage):
    """It may be behind by the whole history, which it asked for; only what is live counts."""
    stage = stage(client_buffer=10_000, behind_bytes=30_000)
    whole = stage.join()
    async with stage.manager.run() as run:
        for _ in range(3):
            talk(run, ["x" * 20] * 1000)
            await stage.settled()
        late = stage.join(since="start")
        late.full = 20_000
        stage.broadcaster.flush()
        assert late.closed is None
        talk(run, ["y"])
        await stage.settled()
        assert late.events == []
        late.full = 0
    await stage.settled()
    async with asyncio.timeout(60):
        while "run_end" not in late.types():
            await asyncio.sleep(0)
    assert late.closed is None
    assert late.types().count(CHUNK) == 3001
    assert late.events == whole.events


async def test_what_one_flush_gives_a_client_is_bounded(stage):
    """However much it has to catch up: the network may take nothing of it."""
    stage = stage(client_buffer=10_000)
    async with stage.manager.run() as run:
        for _ in range(20):
            talk(run, ["x" * 1000] * 100)
            await stage.settled()
        late = stage.join(since="start")
        late.unsent = lambda: sum(map(len, late.messages))
        for _ in range(50):
            stage.broadcaster.flush()
        assert 10_000 < late.unsent() < 600_000


async def test_one_flush_that_comes_after_the_history_let_go_closes(stage):
    """More came at once than is kept: 4008, and never a silent hole."""
    stage = stage(history_bytes=20_000, behind_bytes=20_000)
    outlet = stage.join()
    async with stage.manager.run() as run:
        await stage.settled()
        talk(run, ["x" * 200] * 200)
        await stage.settled()
    assert outlet.closed is CloseCode.TOO_SLOW
    assert outlet.types() == ["run_start"]


async def test_closing_one_that_is_too_slow_ends_all_of_its_subscriptions(stage):
    """It is one client, and counted once."""
    stage = stage(behind_bytes=20_000)
    slow = stage.join()
    stage.broadcaster.subscribe(slow, "2", EventFilter(chains="chain_0"))
    fast = stage.join()
    async with stage.manager.run() as run:
        await stage.settled()
        slow.full = 2 << 20
        for _ in range(20):
            talk(run, ["x" * 100] * 10)
            await stage.settled()
    await stage.settled()
    assert slow.closed is CloseCode.TOO_SLOW
    assert [s.outlet for s in stage.broadcaster.subscriptions.values()] == [fast]
    assert stage.broadcaster.clients.closed_slow == 1


async def test_a_silent_filter_is_not_told_its_cursor_all_the_time(stage):
    """Only after much has passed it by."""
    stage = stage()
    outlet = stage.join(EventFilter(chains="nobody"))
    async with stage.manager.run() as run:
        for _ in range(20):
            talk(run, ["x"])
            await stage.settled()
    assert len(outlet.messages) == 1


@pytest.mark.parametrize("words", [["x"] * 256, ["x" * 4000] * 17])
async def test_a_full_batch_does_not_wait_for_its_time(stage, words):
    """By events or by bytes."""
    stage = stage(batch_s=3600)
    outlet = stage.join()
    async with stage.manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            generation.chunk("first")
            await stage.manager.drain()
            await turns()
            for word in words:
                generation.chunk(word)
            await stage.manager.drain()
            await turns()
            assert outlet.types().count(CHUNK) == 1 + len(words)


async def test_a_filter_that_changes_in_the_middle_of_a_replay_changes_when_that_is_over(stage):
    """What was asked for first is there whole, in batches; then come the snapshots of what is newly wanted."""
    stage = stage()
    async with stage.manager.run() as run:
        with run.chain(chain_id="b") as b, b.generation() as generation:
            generation.chunk("b so far")
            for _ in range(3):
                talk(run, ["x"] * 1000)
                await stage.settled()
            outlet = stage.join(EventFilter(types=CHUNK), since="start")
            recovered, cursor = stage.broadcaster.update(outlet, "1", EventFilter(chains="b"))
            assert recovered
            assert cursor is not None  # no snapshots yet
            await stage.settled()
            await turns()
            await stage.settled()
    await stage.settled()
    assert outlet.types()[:3001] == [CHUNK] * 3001
    assert outlet.types()[3001:] == ["llm_generation_end", "chain_end"]
    assert max(len(json.loads(m)["events"]) for m in outlet.messages) <= 256


async def test_what_is_remembered_of_clients_and_runs_is_bounded(stage):
    """Filters that nobody uses any more, and runs that ended long ago; and a broadcaster that stops has nobody."""
    stage = stage()
    outlets = [stage.join(EventFilter(chains=f"chain_{i}")) for i in range(1000)]
    for outlet in outlets:
        stage.broadcaster.unsubscribe(outlet)
    for i in range(1000):
        stage.broadcaster.unsubscribe(stage.join(EventFilter(chains=f"other_{i}")))
    assert len(stage.broadcaster._selectors) < 200
    for i in range(100):
        async with stage.manager.run(parent_run_id=f"training {i}"):
            pass
    await stage.settled()
    known = stage.broadcaster.upstream.known_runs()
    assert [r.parent_run_id for r in known] == [f"training {i}" for i in range(36, 100)]
    stage.join()
    stage.broadcaster.detach()
    assert stage.broadcaster.subscriptions == {}


async def test_a_filter_can_be_changed(stage):
    """What is newly wanted begins with a snapshot; what was wanted before goes on without one."""
    stage = stage()
    outlet = stage.join(EventFilter(chains="a"))
    async with stage.manager.run() as run:
        with (
            run.chain(chain_id="a") as a,
            run.chain(chain_id="b") as b,
            a.generation() as ga,
            b.generation() as gb,
        ):
            ga.chunk("a1"), gb.chunk("b1")
            await stage.settled()
            ga.chunk("a2"), gb.chunk("b2")
            stage.broadcaster.update(outlet, "1", EventFilter(chains=["a", "b"]))
            ga.chunk("a3"), gb.chunk("b3")
            await stage.settled()
    await stage.settled()
    texts = {
        name: [
            e.data["content"]
            for e in outlet.events
            if e.chain_id == name and e.event_type in (CHUNK, "chain_snapshot")
        ]
        for name in "ab"
    }
    assert texts == {"a": ["a1", "a2", "a3"], "b": ["b1b2", "b3"]}


async def test_without_history_the_manager_is_asked_only_for_what_clients_want(stage):
    """The union of their filters; nothing while nobody is there; and no memory."""
    stage = stage(history_bytes=0)
    wants = stage.manager.wants
    assert not wants(StreamEventType.RUN_START)
    one = stage.join(EventFilter(chains="chain_0", types=CHUNK))
    other = stage.join(EventFilter(types="chain_end"))
    assert wants(CHUNK, "chain_0")
    assert wants("chain_end", "chain_1")
    assert not wants(CHUNK, "chain_1")
    stage.broadcaster.update(one, "1", EventFilter(chains="chain_1", types=CHUNK))
    assert not wants(CHUNK, "chain_0")
    async with stage.manager.run() as run:
        talk(run, "ab"), talk(run, "cd")
        await stage.settled()
        late = stage.join(EventFilter(chains="chain_2"))
        talk(run, "ef")
    await stage.settled()
    assert [e.data["content"] for e in one.events] == ["c", "d"]
    assert other.types() == ["chain_end"] * 3
    assert late.types() == [
        "chain_start",
        "llm_generation_start",
        CHUNK,
        CHUNK,
        "llm_generation_end",
        "chain_end",
    ]
    assert stage.broadcaster.history.bytes == 0
    for outlet in (one, other, late):
        stage.broadcaster.unsubscribe(outlet)
    assert not wants("chain_end")
    assert not stage.join(since=other.cursor).recovered


async def test_the_runs_are_known(stage):
    """Open ones, and those that ended, with their status."""
    stage = stage()
    async with stage.manager.run(chains=1, parent_run_id="training") as run:
        talk(run, "abc")
        assert [(r.status, r.parent_run_id) for r in stage.broadcaster.upstream.known_runs()] == [
            ("running", "training")
        ]
    await stage.settled()
    assert [(r.run_id, r.status, r.chains) for r in stage.broadcaster.upstream.known_runs()] == [
        (run.run_id, "completed", 1)
    ]


# -- all of it at once -------------------------------------------------------------------------------------------------

FILTERS = [EventFilter(), EventFilter(chains=["c0", "c2"]), EventFilter(chains="c1")]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["chunk"] * 6
            + ["begin", "end", "turn", "turn", "join", "cut", "update", "fill", "free", "start", "newrun"]
        ),
        st.integers(0, 3),
    ),
    min_size=20,
    max_size=100,
)


class Watcher:
    """A client that joins, is cut, comes back, changes its mind; and what it must have seen."""

    def __init__(self, stage, wanted, since):
        self.stage, self.wanted = stage, wanted
        self.events = []
        self.outlet = None
        self.cursor = None
        self.steady = True
        runs = stage.manager.fanout.runs
        self.as_of = {run_id: run.seq for run_id, run in runs.items()} if since == "live" else {}
        self.begin(since)

    def begin(self, since):
        self.outlet = self.stage.join(self.wanted, since)
        if since not in ("live", "start"):
            assert self.outlet.recovered

    def cut(self):
        outlet = self.outlet
        outlet.cut = True
        self.stage.broadcaster.unsubscribe(outlet)
        self.events += outlet.events
        self.cursor = outlet.cursor or self.cursor
        if self.cursor is None:
            self.steady = False  # it joins anew
        self.begin(self.cursor or "live")

    def update(self, wanted):
        self.wanted, self.steady = wanted, False
        self.stage.broadcaster.update(self.outlet, "1", wanted)

    def check(self, emitted):
        """Every generation's text as it was; nothing twice; where the filter stayed, nothing missing but in a merger."""
        events = self.events + self.outlet.events
        assert self.outlet.closed is None
        texts, seen = {}, set()
        for event in events:
            place, kind = (event.run_id, event.chain_id), event.event_type
            if kind == "chain_snapshot":
                texts[place] = event.data["content"]
                continue
            assert (event.run_id, event.seq) not in seen, event
            seen.add((event.run_id, event.seq))
            if kind == "llm_generation_start":
                texts[place] = ""
            elif kind == CHUNK and texts.get(place) is not None:
                assert event.data["offset"] == len(texts[place])
                texts[place] += event.data["content"]
            elif kind == "llm_generation_end" and texts.get(place) is not None:
                assert texts.pop(place) == event.data["content"]
        if self.steady:
            wanted = {(e.run_id, e.seq) for e in emitted if e.event_type != CHUNK and self.wanted.matches(e)}
            joined = {(run_id, seq) for run_id, seq in wanted if seq > self.as_of.get(run_id, -1)}
            assert joined <= seen


@settings(max_examples=120, deadline=None)
@given(STEPS, st.booleans())
@example(
    [("begin", 0), ("turn", 0), ("update", 1), ("start", 1)], False
)  # the run ends, and nobody asked for that
def test_whatever_happens_each_client_sees_each_chain_whole(steps, keeps):
    """Joins, cuts, returns, changed filters, full buffers, in any order: no text is missing and none comes twice."""
    assert (
        asyncio.run(asyncio.wait_for(play(steps, keeps), 60)) >= 1
    )  # so many watchers saw all that was theirs


async def play(steps, keeps):
    stage = Stage(history_bytes=(8 << 20) if keeps else 0, batch_events=7)
    capture = EventCapture()
    stage.manager.add_observer(capture)
    watchers = [Watcher(stage, FILTERS[0], "live")]
    runs = [stage.manager.run().open()]
    chains, generations, begun = {}, {}, set()
    for n, (what, i) in enumerate(steps):
        watcher = watchers[i % len(watchers)]
        if what == "begin" and (runs[-1], i) not in begun:
            if i in chains:
                continue
            begun.add((runs[-1], i))
            chain = chains[i] = runs[-1].chain(chain_id=f"c{i}").start()
            generations[i] = chain.generation().start()
        elif what == "chunk" and i in generations:
            generations[i].chunk(f"{n} ")
        elif what == "end" and i in chains:
            generations.pop(i).end()
            chains.pop(i).end("answered")
        elif what == "turn":
            for _ in range(i + 1):
                await asyncio.sleep(0)
        elif what in ("join", "start") and len(watchers) < 6:
            watchers.append(
                Watcher(stage, FILTERS[i % 3], "live" if what == "join" or not keeps else "start")
            )
        elif what == "cut" and keeps:
            watcher.cut()
        elif what == "update":
            watcher.update(FILTERS[i % 3])
        elif what == "fill":
            watcher.outlet.full = 2 << 20
        elif what == "free":
            watcher.outlet.full = 0
        elif what == "newrun":
            runs.append(stage.manager.run().open())
    for i in list(chains):
        generations[i].end()
        chains[i].end("answered")
    for run in runs:
        run.close()
    for watcher in watchers:
        watcher.outlet.full = 0
    await stage.manager.drain()
    async with asyncio.timeout(60):
        while any(
            s.position < stage.broadcaster.history.head or s.join
            for s in stage.broadcaster.subscriptions.values()
        ):
            await asyncio.sleep(0)
    for watcher in watchers:
        watcher.check(capture.events)
    await stage.manager.aclose()
    stage.broadcaster.detach()
    return len(watchers)
