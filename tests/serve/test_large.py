"""Events that are larger than ordinary clients take in one message: nobody is cut off, and nothing is cut in silence."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from rollcast.errors import DecodeError
from rollcast.records import EventFilter, StreamEvent, StreamEventType, check_events, decode
from rollcast.records.codec import encode
from rollcast.serve.client import ClientSession
from rollcast.serve.fitting import fitted
from rollcast.serve.history import Selector
from rollcast.serve.opening import Opening
from rollcast.serve.protocol import Batch, Hello, Subscribe, encode_frame

MIB = 1 << 20
T = StreamEventType


def observation(text, **data):
    told = {"call_id": "c", "tool_name": "read", "observation": text, "status": "success", "partial": False}
    return StreamEvent(T.TOOL_OBSERVATION, "chain_0", 1.0, told | data, seq=3, run_id="r")


async def observe(manager, text):
    """A run in which a tool gives the text."""
    async with manager.run() as run:
        with run.chain([{"role": "user", "content": "Read it."}]) as chain:
            with chain.generation() as generation:
                generation.chunk("Reading.")
            with chain.tool_call("read", {}) as call:
                call.observation(text)


async def messages(socket, last):
    """The messages up to one that has these characters."""
    got = []
    async with asyncio.timeout(60):
        async for message in socket:
            got.append(message)
            if last in message:
                return got
    return got


# -- over real sockets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x" * 3_000_000, "\u2028" * 700_000, "\0" * 600_000, "😀" * 800_000])
async def test_an_ordinary_client_of_the_plain_feed_survives_a_large_event(stage, text):
    """With its own limit of 1 MiB: the event says what was cut, and the run goes on."""
    server = await stage.serve()
    async with connect(server.url, proxy=None) as socket:
        await observe(stage.manager, text)
        got = await messages(socket, '"run_end"')
    assert max(len(message.encode()) for message in got) <= MIB
    events = [decode(message) for message in got]
    check_events(events)
    (seen,) = [e for e in events if e.event_type is T.TOOL_OBSERVATION]
    assert seen.data["truncated"]["/observation"] == len(text)
    kept, mark, left_out = seen.data["observation"].rpartition("… [")
    assert mark
    assert text.startswith(kept)
    assert left_out == f"{len(text) - len(kept)} of {len(text)} characters left out]"
    assert len(kept) >= 50_000


async def test_our_client_gets_a_large_event_whole(stage, read):
    """It takes 64 MiB in a message, and says so in `hello`."""
    await stage.serve()
    client = stage.client(since="start")
    async with client:
        await observe(stage.manager, "x" * 3_000_000)
        events = await read(client)
    await client.aclose()
    (seen,) = [e for e in events if e.event_type is T.TOOL_OBSERVATION]
    assert seen.data["observation"] == "x" * 3_000_000
    assert "truncated" not in seen.data


async def test_a_late_client_of_the_plain_feed_survives_a_large_snapshot(stage):
    """A chain that has read much."""
    server = await stage.serve()
    async with stage.manager.run() as run:
        question = [
            {"role": "user", "content": "x" * 2_000_000},
            {"role": "user", "content": "y" * 2_000_000},
        ]
        with run.chain(question):
            await stage.manager.drain()
            async with connect(server.url, proxy=None) as socket, asyncio.timeout(60):
                snapshot = decode(await socket.recv())
    assert snapshot.event_type is T.CHAIN_SNAPSHOT
    assert snapshot.data["truncated"]["/messages/1/content"] == 2_000_000


@pytest.mark.parametrize("limit", [None, 16 << 10, 100_000])
async def test_a_client_of_v1_gets_messages_as_small_as_it_asked(stage, limit):
    """Without a word in `hello`: 1 MiB, as ordinary clients take. A batch comes in parts, with every event in its place."""
    server = await stage.serve(batch_bytes=8 << 20)
    most = limit or MIB
    async with connect(
        server.url, proxy=None, subprotocols=["rollcast.v1"], max_size=most, ping_interval=None
    ) as socket:
        await socket.send(encode_frame(Hello(max_message=limit)), text=True)
        await socket.recv()
        await socket.send(encode_frame(Subscribe("1", since="start")), text=True)
        await socket.recv()
        async with stage.manager.run() as run:
            for i in range(40):
                with run.chain([{"role": "user", "content": f"{i}" + "x" * 60_000}]):
                    pass
                await stage.manager.drain()
        frames = [json.loads(message) for message in await messages(socket, '"run_end"')]
    session = ClientSession(EventFilter())
    events = [e for frame in frames for e in session.receive(batch(frame))[1]]
    assert [e.seq for e in events] == list(range(len(events)))
    check_events(events)
    if most < 8 << 20:
        assert all(
            ("truncated" in e.data) == (most < 60_000) for e in events if e.event_type is T.CHAIN_START
        )


def batch(frame):
    told = {key: frame[key] for key in ("id", "cursor", "part", "parts") if key in frame}
    return Batch(**told, events=[StreamEvent.from_dict(e) for e in frame["events"]])


# -- parts -------------------------------------------------------------------------------------------------------------------


def test_a_batch_in_parts_is_nothing_until_it_is_whole():
    """A client that is cut in the middle goes on from the cursor before."""
    session = ClientSession(EventFilter(), check=False)
    session.receive(Batch("1", "h.1", []))
    assert session.receive(Batch("1", "h.9", [observation("a")], 1, 2)) == ([], [])
    assert session.cursor == "h.1"
    _, events = session.receive(Batch("1", "h.9", [observation("b")], 2, 2))
    assert [e.data["observation"] for e in events] == ["a", "b"]
    assert session.cursor == "h.9"


@pytest.mark.parametrize(
    "parts", [[(2, 2)], [(1, 3), (3, 3)], [(1, 2), (1, 2)], [(1, 2), (1, 1)], [(3, 2)], [(1, 9999)]]
)
def test_parts_that_do_not_follow_each_other_are_refused(parts):
    """A hole is never silent, and no server makes the client wait for ever."""
    session = ClientSession(EventFilter(), check=False)
    *before, last = (Batch("1", "h.9", [observation("a")], part, of) for part, of in parts)
    for each in before:
        session.receive(each)
    with pytest.raises(DecodeError, match="of a batch came after part"):
        session.receive(last)


# -- what is cut -------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=50) | st.dictionaries(st.text(max_size=20), inner, max_size=50),
    max_leaves=60,
)


@given(JSON, st.integers(16 << 10, 1 << 18), st.integers(1, 4000))
def test_whatever_an_event_has_it_fits_and_says_so(value, limit, times):
    """Texts, lists and objects of any shape, many times over."""
    event = encode(observation("", result=[value] * times))
    shorter = fitted(event, limit)
    assert len(shorter) <= max(limit, 0)
    if len(event) <= limit:
        assert shorter is event
    else:
        told = decode(shorter)
        assert told.event_type is T.ERROR or told.data["truncated"][""] == len(event)


@pytest.mark.parametrize(
    "data",
    [
        {"result": {f"key {i}": "x" * 10 for i in range(200_000)}},
        {"result": {"k" * 2_000_000: 1}},
        {"result": [[[["x" * 100] * 100] * 20] * 20]},
        {"k" * 2_000_000: 1},
        {f"key {i}": i for i in range(100_000)},
    ],
)
def test_what_no_cut_could_make_fit_is_an_error_in_its_place(data):
    """At the same `seq`: a reader knows that there was something, and how large it was."""
    event = encode(observation("short", **data))
    shorter = fitted(event, 16 << 10)
    assert len(shorter) <= 16 << 10
    told = decode(shorter)
    assert told.seq == 3
    assert told.event_type is T.ERROR or "truncated" in told.data


def test_the_ids_of_an_event_can_be_too_long_too():
    """They are cut in the last resort."""
    event = StreamEvent(
        T.CHAIN_START, "c" * 99_999, 1.0, {"k" * 99_999: 1}, run_id="r" * 99_999, source="s" * 99_999
    )
    assert len(fitted(encode(event), 16 << 10)) <= 16 << 10


@pytest.mark.parametrize("kind", ["tool_observation", "of_a_later_version"])
def test_fields_of_a_later_version_are_cut_too(kind):
    """Their paths lead out of `data`."""
    fields = observation("short").to_dict() | {"event_type": kind, "host": {"log": "x" * 100_000}}
    shorter = fitted(encode(StreamEvent.from_dict(fields)), 16 << 10)
    assert len(shorter) <= 16 << 10
    told = decode(shorter)
    assert (told.event_type, told.seq) == (kind, 3)
    assert told.data["truncated"]["/../host/log"] == 100_000
    assert told.beyond["host"]["log"].endswith("characters left out]")


def test_fields_of_a_later_version_that_no_cut_could_make_fit_are_left_out_of_the_error():
    """The error is an event of this version."""
    fields = observation("short").to_dict() | {"k" * 100_000: 1}
    shorter = fitted(encode(StreamEvent.from_dict(fields)), 16 << 10)
    assert len(shorter) <= 16 << 10
    told = decode(shorter)
    assert (told.event_type, told.seq, type(told)) == (T.ERROR, 3, StreamEvent)


def test_parts_hold_every_event_once_and_in_order():
    """As few as hold them."""
    sizes = (10, 9_000, 9_000, 100, 40_000, 10)
    opening = Opening(Selector(EventFilter()), None, 0, 0)
    opening.renew([observation("x" * size) for size in sizes], {"r": 3})
    parts = []
    while sum(map(len, parts)) < len(opening):
        part = opening.part(sum(map(len, parts)), 20_000)
        parts.append(part.events)
        assert part.next == sum(map(len, parts))
    assert [len(b",".join(part)) <= 20_000 for part in parts] == [True] * len(parts)
    told = [decode(e).data["truncated"][""] if b"truncated" in e else len(e) for part in parts for e in part]
    assert told == [len(encode(observation("x" * size))) for size in sizes]
    assert len(parts) <= 4
