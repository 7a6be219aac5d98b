"""Events of a later version: of types and with fields that this one does not know. They are carried everywhere."""

import asyncio
import copy
import io
import pickle

import pytest

from rollcast import (
    ConsoleStreamObserver,
    EventFilter,
    JSONStreamObserver,
    StreamEvent,
    StreamEventType,
    StreamingManager,
    StreamObserver,
    WebSocketStreamingClient,
    WebSocketStreamingServer,
)
from rollcast.errors import DecodeError
from rollcast.records import decode, encode, encode_lines
from rollcast.records.codec import encode_described
from rollcast.records.event import ExtendedEvent, checked_event
from rollcast.records.grammar import check_events
from rollcast.records.run_view import RunView
from rollcast.records.view import ChainView
from rollcast.serve.fitting import fitted
from rollcast.serve.protocol import Batch, batch_frame, decode_server_frame

LATER = (
    b'{"event_type":"thought_graph","chain_id":"chain_0","timestamp":3.5,"data":{"nodes":[1,2]},"step":1,"depth":1,'
    b'"seq":2,"run_id":"r","group_id":"group_0","source":"","tenant":{"name":"x"}}'
)
FIELD = (
    b'{"event_type":"reward","chain_id":"chain_0","timestamp":3.5,"data":{"reward":1.0,"metrics":{},"judge":"j"},'
    b'"step":1,"depth":1,"seq":3,"run_id":"r","group_id":"group_0","source":"","tenant":7}'
)


def known(kind, seq, chain="chain_0", **data):
    return StreamEvent(
        StreamEventType(kind), chain, 1.0, data, None, None, seq, "r", "group_0" if chain else None
    )


START = known("run_start", 0, "", chains=1, groups=1, agent="a", model="m", backend="b", policy_version=0)
CHAIN = known("chain_start", 1, messages=[], tools=[], index=0, policy_version=0)
END = known(
    "run_end",
    9,
    "",
    status="completed",
    chains=1,
    failed=0,
    mean_reward=None,
    completion_tokens=0,
    duration_s=1.0,
)
CHAIN_END = known(
    "chain_end", 8, finish_reason="answered", final_response="", steps=0, completion_tokens=0, reward=1.0, metrics={},
    duration_s=1.0,
)  # fmt: skip


@pytest.fixture
def events():
    return [START, CHAIN, decode(LATER), decode(FIELD), CHAIN_END, END]


@pytest.mark.parametrize("line", [LATER, FIELD, LATER.replace(b',"tenant":{"name":"x"}', b"")])
def test_an_event_of_a_later_version_is_written_as_it_was_read(line):
    """Decoding and encoding keep the unknown type and the unknown fields, by every way there is."""
    event = decode(line)
    assert decode(encode(event)) == event
    assert StreamEvent.from_dict(event.to_dict()) == event
    assert encode_lines([event, START]) == encode(event) + b"\n" + encode(START) + b"\n"
    assert decode(encode_described(event)) == event
    assert pickle.loads(pickle.dumps(event)) == event
    assert copy.deepcopy(event) == event


def test_an_unknown_type_has_its_value():
    """It is a `StreamEventType` whose `value` is its name, equal to its name and to no type of this version."""
    kind = decode(LATER).event_type
    assert isinstance(kind, StreamEventType)
    assert kind.value == kind == str(kind) == "thought_graph"
    assert not kind.known
    assert kind not in set(StreamEventType)
    assert StreamEventType.of("gap") is StreamEventType.GAP
    assert {kind: 1}[StreamEventType.of("thought_graph")] == 1


def test_unknown_fields_stand_beside_the_others():
    """They are where they were in JSON, and never replace a field that this version knows."""
    event = decode(FIELD)
    assert isinstance(event, ExtendedEvent)
    assert event.to_dict()["tenant"] == 7
    assert event.data["judge"] == "j"
    shadowed = ExtendedEvent(
        **{n: getattr(event, n) for n in StreamEvent.__struct_fields__}, beyond={"seq": 99}
    )
    assert decode(encode(shadowed)).seq == 3


def test_a_misspelt_type_is_refused_where_code_names_it():
    """Only what is read may be of an unknown type: a filter or an event made by hand names a type that exists."""
    with pytest.raises(ValueError, match="tool_obs"):
        StreamEventType("tool_obs")
    with pytest.raises(ValueError, match="no event type"):
        EventFilter(types="tool_obs")


@pytest.mark.parametrize(
    "line",
    [
        b'{"event_type":"","chain_id":"","timestamp":1,"data":{}}',
        b'{"event_type":7,"chain_id":"","timestamp":1,"data":{}}',
        b'{"event_type":"new","chain_id":7,"timestamp":1,"data":{}}',
        b'{"event_type":"new","chain_id":"","timestamp":1}',
        b'{"event_type":"new","chain_id":"","timestamp":1,"data":[]}',
        b'{"event_type":"%b","chain_id":"","timestamp":1,"data":{}}' % (b"x" * 300),
        b'["new"]',
        b'{"tenant":1}',
        b'{"event_type":"gap","chain_id":"","timestamp":1,"data":{},"tenant":1}',
        b'{"event_type":"new","data":' + b"[" * 5000,
    ],
)
def test_what_is_no_event_of_any_version_is_refused(line):
    """The fields that every version has must be there, with their types."""
    with pytest.raises(DecodeError):
        decode(line)


def test_filters_that_name_types_leave_an_unknown_one_out():
    """A filter of types wants what it names; every other filter lets it pass."""
    event = decode(LATER)
    assert EventFilter().matches(event)
    assert EventFilter(chains="chain_0").matches(event)
    assert not EventFilter(types=list(StreamEventType)).matches(event)


def test_views_and_the_grammar_go_on(events):
    """An unknown event may stand anywhere in a run, and a view's place moves with it."""
    check_events(events)
    chain, run = ChainView(), RunView()
    for event in events:
        chain.apply(event)
        run.apply(event)
    assert chain.finish_reason == "answered"
    assert chain.reward == 1.0
    assert checked_event(events[2]) is events[2]


class Collect(StreamObserver):
    def __init__(self):
        self.got = []

    async def on_event(self, event):
        self.got.append(event)


async def relayed(events, *observers):
    manager = StreamingManager()
    for observer in observers:
        manager.add_observer(observer)
    for event in events:
        manager.relay(event)
    await manager.drain()
    totals = manager.totals()
    await manager.aclose()
    return totals


async def test_every_observer_gets_it(events, tmp_path):
    """A queue, a log and the console take it: the log has its line as it was, the console shows a plain line."""
    collect, out = Collect(), io.StringIO()
    log = JSONStreamObserver(tmp_path / "log.jsonl")
    totals = await relayed(events, collect, log, ConsoleStreamObserver(file=out))
    assert collect.got == events
    assert [decode(line) for line in (tmp_path / "log.jsonl").read_bytes().splitlines()] == events
    assert 'thought_graph {"nodes": [1, 2]}' in out.getvalue()
    assert totals.emitted["unknown"] == 1


async def test_many_unknown_types_are_counted_as_one():
    """A peer that makes up names of types does not fill the memory of who counts them."""
    events = [START, CHAIN]
    for i in range(200):
        events.append(
            decode(LATER.replace(b"thought_graph", b"kind_%d" % i).replace(b'"seq":2', b'"seq":%d' % (i + 2)))
        )
    totals = await relayed(events, Collect())
    assert totals.emitted == {"run_start": 1, "chain_start": 1, "unknown": 200}


def test_a_frame_carries_it():
    """A batch with events of a later version is read whole; one that is damaged is refused."""
    frame = decode_server_frame(batch_frame("a", "c.1", LATER + b"," + FIELD))
    assert type(frame) is Batch
    assert frame.events == [decode(LATER), decode(FIELD)]
    with pytest.raises(DecodeError):
        decode_server_frame(batch_frame("a", "c.1", b'{"event_type":"x"}'))


def test_one_that_is_too_large_for_a_client_is_cut_as_others_are():
    """Its texts are shortened, and its type and unknown fields stay."""
    large = ExtendedEvent(
        **{n: getattr(decode(LATER), n) for n in StreamEvent.__struct_fields__}
        | {"data": {"text": "x" * 50_000}},
        beyond={"tenant": 1},
    )
    short = decode(fitted(encode(large), 5_000))
    assert short.event_type == "thought_graph"
    assert short.to_dict()["tenant"] == 1
    assert len(short.data["text"]) < 5_000


async def test_a_server_and_its_client_carry_it(events):
    """Over a socket it arrives as it was sent, and the connection stays."""
    manager = StreamingManager()
    server = WebSocketStreamingServer("127.0.0.1", 0)
    await server.start()
    manager.add_observer(server.get_observer())
    got = []
    client = WebSocketStreamingClient(server.url, since="start")

    async def watch():
        async for event in client:
            got.append(event)
            if event.event_type == "run_end":
                return

    async with client:
        task = asyncio.create_task(watch())
        for event in events:
            manager.relay(event)
        await asyncio.wait_for(task, 60)
    await server.stop()
    await manager.aclose()
    assert got == events
