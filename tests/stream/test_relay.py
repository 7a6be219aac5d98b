"""Events of runs that are produced elsewhere are passed on as they are."""

import asyncio
import random

import pytest

from doubles import interleaved, part_of_run
from rollcast.errors import InputError
from rollcast.fleet.reading import read_quickly
from rollcast.records import EventFilter, StreamEvent, StreamEventType, check_events, decode, encode
from rollcast.stream import StreamingManager
from rollcast.stream.observer import EncodingObserver
from rollcast.stream.playback import Playback
from rollcast.stream.waiting import EncodableEvent, event_of
from rollcast.testing import EventCapture, capture_events

T = StreamEventType
ERROR = {"error": "x", "error_type": "X", "where": "agent"}
HELLO = [{"role": "user", "content": "hello"}]


async def recorded(chains=2):
    """What a run elsewhere emitted."""
    manager = StreamingManager(source="elsewhere")
    with capture_events(manager) as capture:
        async with manager.run(chains=chains) as run:
            for _ in range(chains):
                with run.chain(HELLO) as chain:
                    with chain.generation() as generation:
                        generation.chunk("Hel")
                        generation.chunk("lo")
                    with chain.tool_call("search", {"q": "x"}) as call:
                        call.observation("found")
    return capture.events


async def test_what_is_relayed_arrives_as_it_was():
    """Each event, its seq and its source, and the hooks of runs and chains."""
    events = await recorded()
    manager = StreamingManager()
    capture = EventCapture()
    manager.add_observer(capture)
    for event in events:
        manager.relay(event)
    await manager.drain()
    assert capture.events == events
    assert capture.closed_chains == ["chain_0", "chain_1"]
    assert capture.closed_runs == [events[0].run_id]
    assert not manager.fanout.runs
    await manager.aclose()


async def test_who_joins_in_the_middle_begins_with_snapshots():
    """Of the chains that are open elsewhere, as far as their events told; then the rest, without a hole."""
    events = await recorded(chains=1)
    for cut in range(1, len(events)):
        manager = StreamingManager()
        late = EventCapture()
        for event in events[:cut]:
            manager.relay(event)
        manager.add_observer(late)
        for event in events[cut:]:
            manager.relay(event)
        await manager.aclose()
        begun, ended = (
            next(i for i, e in enumerate(events) if e.event_type is t) for t in (T.CHAIN_START, T.CHAIN_END)
        )
        joined = [e for e in late.events if e.event_type is T.CHAIN_SNAPSHOT]
        assert len(joined) == (begun < cut <= ended)
        assert [e for e in late.events if e not in joined] == events[cut:]
        check_events(late.events, late=True)
        if joined:
            assert joined[0].data["as_of"] == events[cut - 1].seq


async def test_a_filter_narrows_what_is_relayed_and_no_gap_is_lost():
    """An observer of one chain gets that chain, and whatever stands for events that were lost."""
    events = await recorded()
    gap = StreamEvent(
        T.GAP, "", 0.0, {"from_seq": 90, "to_seq": 99, "dropped": {"reward": 1}, "reason": "test"}, seq=99,
        run_id=events[0].run_id,
    )  # fmt: skip
    manager = StreamingManager()
    capture = EventCapture(EventFilter(chains="chain_1", types=["llm_generation_chunk"]))
    manager.add_observer(capture)
    for event in [*events[:-1], gap, events[-1]]:
        manager.relay(event)
    await manager.aclose()
    assert [e.event_type for e in capture.events] == [T.LLM_GENERATION_CHUNK] * 2 + [T.GAP]
    assert {e.chain_id for e in capture.events} == {"chain_1", ""}


async def test_runs_that_never_end_close_with_the_manager_and_are_bounded():
    """Their producer may be gone: a thousand of them leave no thousand open."""
    (start, *_) = await recorded()
    manager = StreamingManager()
    capture = EventCapture()
    manager.add_observer(capture)
    for i in range(1000):
        manager.relay(StreamEvent(T.RUN_START, "", 0.0, start.data, seq=0, run_id=f"run_{i}"))
    assert len(manager.fanout.runs) <= 512
    await manager.aclose()
    assert not manager.fanout.runs
    assert capture.closed_runs == [f"run_{i}" for i in range(1000)]


async def test_relay_and_runs_of_its_own_go_side_by_side():
    """Neither's seq is the other's business."""
    events = await recorded()
    manager = StreamingManager()
    capture = EventCapture()
    manager.add_observer(capture)
    async with manager.run() as run:
        with run.chain(HELLO) as chain, chain.generation() as generation:
            for event in events:
                manager.relay(event)
                generation.chunk("x")
    await manager.aclose()
    check_events(capture.events)
    assert [e for e in capture.events if e.run_id != run.run_id] == events


async def test_only_events_can_be_relayed():
    """One sentence."""
    with pytest.raises(InputError, match="relay got dict; expected a StreamEvent"):
        StreamingManager().relay({})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("event_type", 7, "event_type is int; expected str"),
        ("chain_id", None, "chain_id is NoneType; expected str"),
        ("run_id", 7, "run_id is int; expected str"),
        ("data", [], "data is list; expected dict"),
        ("seq", "1", "seq is str; expected int"),
    ],
)
def test_fields_of_a_relayed_event_have_their_types(field, value, said):
    """Otherwise nothing is relayed, and no run opens."""
    manager = StreamingManager()
    fields = {
        "event_type": T.RUN_START,
        "chain_id": "",
        "timestamp": 0.0,
        "data": {},
        "run_id": "r",
        "seq": 0,
    }
    with pytest.raises(InputError, match=f"relay got an event whose {said}"):
        manager.relay(StreamEvent(**fields | {field: value}))
    assert manager.totals().open_runs == 0


async def test_a_relayed_type_may_be_its_name():
    """Also one that a later version added."""
    manager, capture = StreamingManager(), EventCapture()
    manager.add_observer(capture)
    for seq, name in enumerate(("run_start", "of_tomorrow", "run_end")):
        manager.relay(StreamEvent(name, "", 0.0, {}, seq=seq, run_id="r"))
    await manager.aclose()
    assert [e.event_type.value for e in capture.events] == ["run_start", "of_tomorrow", "run_end"]
    assert capture.events[0].event_type is T.RUN_START


async def test_a_subscription_is_pulled():
    """From when it is made until it is closed, with snapshots of what was open, and no waiting for it at a run's end."""
    manager = StreamingManager(drain_timeout=60)
    async with manager.run() as run:
        with run.chain(HELLO) as chain, chain.generation() as generation:
            generation.chunk("before")
            early = manager.subscribe(EventFilter(types=["chain_snapshot", "llm_generation_chunk"]))
            generation.chunk("after")
    got = [await anext(early), await anext(early)]
    assert [e.event_type for e in got] == [T.CHAIN_SNAPSHOT, T.LLM_GENERATION_CHUNK]
    assert (got[0].data["content"], got[1].data["content"]) == ("before", "after")
    waiting = asyncio.create_task(anext(early, None))
    await asyncio.sleep(0)
    early.close()
    assert await waiting is None
    assert early.statistics().delivered == 2
    await manager.aclose()


async def test_a_subscription_ends_with_its_manager():
    """What waits is read first; then the loop over it ends, also one that has been waiting."""
    manager = StreamingManager()
    events = manager.subscribe()
    with manager.run() as run, run.chain():
        pass
    got = []

    async def read():
        got.extend([event.event_type.value async for event in events])

    reading = asyncio.create_task(read())
    while events.statistics().delivered < 4:
        await asyncio.sleep(0)
    await manager.aclose()
    await reading
    assert got == ["run_start", "chain_start", "chain_end", "run_end"]
    assert manager.deliveries == []


async def test_a_subscription_that_is_not_read_is_bounded():
    """A gap stands for what was dropped, and then snapshots."""
    manager = StreamingManager(queue_limit=20_000)
    async with manager.subscribe() as events, manager.run() as run:
        with run.chain(HELLO) as chain, chain.generation() as generation:
            for i in range(1000):
                generation.chunk(f"{i} " * 50)
            assert events.statistics().queued_bytes <= 20_000
            kinds = [(await anext(events)).event_type for _ in range(2)]
    assert kinds == [T.GAP, T.CHAIN_SNAPSHOT]
    await manager.aclose()


async def test_a_subscription_that_nobody_holds_costs_nothing():
    """It is closed."""
    manager = StreamingManager()
    for _ in range(100):
        manager.subscribe()
    assert manager.fanout.deliveries == []
    assert not manager.fanout._leaving
    assert not manager.wants(T.LLM_GENERATION_CHUNK)


@pytest.mark.parametrize("seed", range(10))
async def test_a_run_of_several_sources_opens_and_closes_once(seed):
    """It closes with the last of its ends, and its chains close with their own."""
    dice = random.Random(seed)
    streams = [part_of_run("r", f"rank{rank}", [f"chain_{rank}"]) for rank in range(3)]
    starts = [stream.pop(0) for stream in streams]
    events = [*starts, *interleaved(streams, dice)]
    manager, capture, played = StreamingManager(), EventCapture(), EventCapture()
    manager.add_observer(capture)
    for event in events:
        assert manager.fanout.runs or event is events[0]
        manager.relay(event)
    assert not manager.fanout.runs
    await manager.aclose()
    await Playback([played]).play(events, lambda: None)
    for each in (capture, played):
        assert each.events == events
        assert each.closed_runs == ["r"]
        assert sorted(each.closed_chains) == ["chain_0", "chain_1", "chain_2"]


async def test_the_chains_of_a_source_that_ended_close_while_the_run_goes_on():
    """Their own ends were lost."""
    one, other = part_of_run("r", "a", ["chain_0"]), part_of_run("r", "b", ["chain_1"])
    manager, capture = StreamingManager(), EventCapture()
    manager.add_observer(capture)
    for event in [*one[:4], *other[:4], one[-1]]:
        manager.relay(event)
    await manager.drain()
    assert (capture.closed_chains, capture.closed_runs) == (["chain_0"], [])
    assert manager.fanout.runs["r"].chain_ids() == ["chain_1"]
    await manager.aclose()


async def test_who_joins_a_run_of_several_sources_knows_how_far_each_is():
    """Snapshots have the numbers of their own source."""
    one, other = part_of_run("r", "a", ["chain_0"]), part_of_run("r", "b", ["chain_1", "chain_2"])
    manager = StreamingManager()
    for event in [*one[:5], *other[:12]]:
        manager.relay(event)
    cut = manager.fanout.cut(EventFilter())
    assert cut.as_of == {("r", "a"): 4, ("r", "b"): 11}
    assert [(s.chain_id, s.source, s.data["as_of"]) for s in cut.snapshots] == [
        ("chain_0", "a", 4),
        ("chain_2", "b", 11),
    ]
    assert manager.fanout.runs["r"].expected_chains == 3
    await manager.aclose()


async def test_a_filter_of_sources_lets_only_theirs_pass():
    """Also the snapshots of a late observer."""
    one, other = part_of_run("r", "a", ["chain_0"]), part_of_run("r", "b", ["chain_1"])
    manager, from_a, late = StreamingManager(), EventCapture(), EventCapture()
    from_a.filter = late.filter = EventFilter(sources="a")
    manager.add_observer(from_a)
    for event in [*one[:4], *other[:4]]:
        manager.relay(event)
    manager.add_observer(late)
    for event in [*one[4:], *other[4:]]:
        manager.relay(event)
    await manager.aclose()
    assert from_a.events == one
    assert [e.event_type for e in late.events[:1]] == ["chain_snapshot"]
    assert late.events[1:] == one[4:]


async def test_what_is_emitted_by_hand_into_another_source_s_run_has_its_own_numbers():
    """So the run's own ones stay without a hole."""
    manager, capture = StreamingManager(source="here"), EventCapture()
    manager.add_observer(capture)
    async with manager.run() as run:
        manager.emit(StreamEvent(T.ERROR, "", 1.0, ERROR, run_id=run.run_id, source="guest"))
        manager.emit(StreamEvent(T.ERROR, "", 1.0, ERROR, run_id=run.run_id))
    await manager.aclose()
    assert [(e.source, e.seq) for e in capture.events] == [
        ("here", 0),
        ("guest", 1),
        ("here", 1),
        ("here", 2),
    ]


async def test_what_workers_left_open_closes_with_their_leader():
    """A worker that was killed says nothing more."""
    driver, worker = part_of_run("r", "driver"), part_of_run("r", "worker", ["chain_0"])
    worker[0].data["leader"] = "driver"
    manager, capture, played = StreamingManager(), EventCapture(), EventCapture()
    manager.add_observer(capture)
    events = [driver[0], *worker[:4], driver[1]]
    for event in events:
        manager.relay(event)
    assert not manager.fanout.runs
    await manager.aclose()
    await Playback([played]).play(events, lambda: None)
    for each in (capture, played):
        assert (each.closed_chains, each.closed_runs) == (["chain_0"], ["r"])


class Lossless(EncodingObserver):
    """Keeps what it was given, and how."""

    mode = "lossless"

    def __init__(self):
        self.given = []  # the events of each call, with their lines; None: they came without

    async def on_encodable(self, events):
        self.given.append(([*events], None))

    async def on_passage(self, events, lines):
        self.given.append(([*events], [*lines]))


class Following(Lossless):
    """Wants to know of each chain that closes."""

    def __init__(self):
        super().__init__()
        self.closed = []  # how many events came before each chain closed

    async def on_chain_closed(self, run_id, chain_id):
        self.closed.append(sum(len(events) for events, _ in self.given))


def read(events):
    """As a hub reads them from JSON."""
    lines = [encode(event) for event in events]
    return [(read_quickly(line) or decode(line), line) for line in lines]


async def test_who_loses_nothing_and_encodes_is_given_what_was_read_in_one_piece():
    """With the JSON of each event; what was made here has none."""
    events = await recorded()
    manager, observer = StreamingManager(), Lossless()
    manager.add_observer(observer)
    manager.relay_read([*read(events[:3]), (events[3], None), *read(events[4:])])
    await manager.drain()
    assert sum(len(given) for given, _ in observer.given) == len(events)
    assert [event_of(event) for given, _ in observer.given for event in given] == events
    lines = [line for _, lines in observer.given for line in lines]
    assert lines == [None if at == 3 else encode(event) for at, event in enumerate(events)]
    assert len(observer.given) == 1
    assert manager.statistics()[0].delivered == len(events)
    await manager.aclose()


async def test_who_does_not_ask_for_what_was_read_gets_events():
    """Whole ones, one by one or in batches, whoever else is given them as they were read."""

    class Encoding(EncodingObserver):
        mode = "lossless"

        def __init__(self):
            self.given = []

        async def on_encodable(self, events):
            self.given += events

    events = await recorded()
    manager, passages, encoding, one_by_one = StreamingManager(), Lossless(), Encoding(), EventCapture()
    for observer in (passages, encoding, one_by_one):
        manager.add_observer(observer)
    manager.relay_read(read(events))
    await manager.drain()
    assert any(isinstance(event, EncodableEvent) for given, _ in passages.given for event in given)
    assert not any(isinstance(event, EncodableEvent) for event in encoding.given)
    assert [event_of(event) for event in encoding.given] == one_by_one.events == events
    await manager.aclose()


async def test_a_chain_that_closes_parts_what_was_read_for_those_who_want_to_know():
    """Each is told when it has all of the chain and nothing that came after."""
    events = await recorded()
    manager, following, other = StreamingManager(), Following(), Lossless()
    capture = EventCapture()
    for observer in (following, other, capture):
        manager.add_observer(observer)
    manager.relay_read(read(events))
    await manager.drain()
    ends = [at for at, event in enumerate(events, 1) if event.event_type is T.CHAIN_END]
    assert following.closed == ends
    for observer in (following, other):
        assert [event_of(event) for given, _ in observer.given for event in given] == events
    assert capture.events == events
    assert capture.closed_chains == ["chain_0", "chain_1"]
    await manager.aclose()


async def test_what_was_read_waits_as_so_many_events():
    """In the numbers of its reader, and for the producer, who waits while the queue is full."""
    events = await recorded()
    manager, observer = StreamingManager(queue_limit=1), Lossless()
    manager.add_observer(observer)
    manager.relay_read(read(events))
    (numbers,) = manager.statistics()
    assert numbers.queued == len(events)
    assert numbers.queued_bytes > sum(len(encode(event)) for event in events)
    assert numbers.lag_s > 0
    assert manager.fanout.congested
    await manager.ready()
    await manager.drain()
    assert [event_of(event) for given, _ in observer.given for event in given] == events
    await manager.aclose()


async def test_what_was_read_is_counted_as_it_waits(monkeypatch):
    """No event is made for the numbers: many may wait, and the lock is held meanwhile."""
    events = await recorded()
    manager, observer = StreamingManager(), Lossless()
    manager.add_observer(observer)
    manager.relay_read(read(events))
    with monkeypatch.context() as patch:
        patch.setattr(EncodableEvent, "event", lambda _: pytest.fail("an event is made"))
        assert manager.statistics()[0].queued == len(events)
    await manager.aclose()
    assert sum(len(given) for given, _ in observer.given) == len(events)


@pytest.mark.parametrize("later", [False, True])
async def test_what_was_read_passes_a_filter_of_the_readers_own(later):
    """Event by event, as its code wants; also if it has that filter only since the events wait."""

    class Short(EventFilter):
        def wants(self, event_type, chain_id="", group_id=None, run_id=""):
            return event_type is T.TOOL_OBSERVATION

    events = await recorded()
    manager, observer = StreamingManager(), Lossless()
    if not later:
        observer.filter = Short()
    manager.add_observer(observer)
    manager.relay_read(read(events))
    if later:
        observer.filter = Short()
        manager.refresh(observer)
    await manager.drain()
    given = [event for some, _ in observer.given for event in some]
    assert given == [event for event in events if event.event_type is T.TOOL_OBSERVATION]
    await manager.aclose()
