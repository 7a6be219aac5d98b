"""What a producer sends, and when, without a connection."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.errors import DecodeError
from rollcast.records import EventFilter, StreamEventType
from rollcast.records.codec import encode
from rollcast.records.event import StreamEvent
from rollcast.serve.producing import (
    FRAME_BYTES,
    FRAME_EVENTS,
    LIFECYCLE,
    Answer,
    Block,
    Handed,
    NoHubError,
    NotTaken,
    Outbox,
    Publishing,
    Wanted,
    Welcomed,
    publish_frame,
    wanted_of,
)
from rollcast.serve.protocol import (
    Ack,
    Cancel,
    ErrorFrame,
    FilterFrame,
    Interest,
    Ping,
    Pong,
    Publish,
    Welcome,
    decode_client_frame,
    encode_frame,
)
from rollcast.serve.settings import Limits
from rollcast.serve.spool import Numbers

T = StreamEventType
LIMITS = Limits(message_bytes=1 << 20, messages_per_s=500)


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def block(first, count=1, size=0):
    """Events that are told apart by a number of the test's."""
    return Block(b",".join(b'{"n":%d,"x":"%b"}' % (first + i, b"x" * size) for i in range(count)), count)


def connected(window=1 << 20, limits=LIMITS, clock=None):
    outbox = Outbox(window)
    outbox.connected(limits, clock or Clock())
    return outbox


def told(frames):
    """Numbers and contents of what was sent."""
    found = []
    for frame in frames:
        publish = decode_client_frame(frame)
        assert isinstance(publish, Publish)
        found += [(publish.seq + i, json.loads(bytes(raw))["n"]) for i, raw in enumerate(publish.events)]
    return found


def test_events_are_numbered_from_one_when_they_are_sent():
    """A number is given once, whatever the blocks."""
    outbox = connected()
    outbox.put(block(10, 2))
    assert told(outbox.frames()) == [(1, 10), (2, 11)]
    outbox.put(block(12))
    assert told(outbox.frames()) == [(3, 12)]
    assert outbox.frames() == []


def test_what_is_not_acknowledged_is_sent_again_under_its_number():
    """An acknowledgement in the middle of a block leaves the block, whose beginning the hub drops."""
    outbox = connected()
    outbox.put(block(10, 3))
    outbox.put(block(13, 2))
    outbox.frames()
    outbox.ack(2)
    outbox.connected(LIMITS, Clock())
    assert told(outbox.frames()) == [(1, 10), (2, 11), (3, 12), (4, 13), (5, 14)]
    outbox.ack(5)
    assert outbox.idle
    assert outbox.bytes == 0


def test_an_acknowledgement_of_what_was_never_sent_means_the_last_that_was():
    """A hub that says too much does not make a producer forget what waits."""
    outbox = connected()
    outbox.put(block(10))
    outbox.frames()
    outbox.put(block(11))
    outbox.ack(1 << 40)
    assert told(outbox.frames()) == [(2, 11)]


def test_no_more_than_the_window_is_sent_without_an_acknowledgement():
    """What waits beyond it goes on when there is one."""
    outbox = connected(window=100_000)
    for n in range(10):
        outbox.put(block(n, size=40_000))
    first = told(outbox.frames())
    assert 0 < len(first) < 10
    assert outbox.frames() == []
    outbox.ack(first[-1][0])
    assert told(outbox.frames())[0] == (first[-1][0] + 1, first[-1][1] + 1)


def test_frames_are_bounded():
    """At most so many events, and about so many bytes."""
    outbox = connected(window=64 << 20)
    for n in range(1000):
        outbox.put(block(n, size=10))
    for n in range(100):
        outbox.put(block(1000 + n, size=5000))
    frames = outbox.frames()
    assert [n for _, n in told(frames)] == [*range(1100)]
    assert max(len(decode_client_frame(frame).events) for frame in frames) <= FRAME_EVENTS
    assert max(map(len, frames)) <= FRAME_BYTES + 1024


def test_no_more_messages_than_the_hub_allows():
    """Frames wait for the clock, since a hub closes the connection of one that sends too many, for good."""
    clock = Clock()
    outbox = connected(window=1 << 30, limits=Limits(message_bytes=1 << 20, messages_per_s=10), clock=clock)
    for n in range(100):
        outbox.put(block(n, size=FRAME_BYTES // 2 + 1))
    assert len(outbox.frames()) == 10
    assert outbox.frames() == []
    clock.now = 2.0
    assert len(outbox.frames()) == 10


def event(text):
    return encode(
        StreamEvent(T.MESSAGE, "chain_0", 0.0, {"role": "user", "content": text}, seq=1, run_id="r")
    )


def test_a_block_that_is_longer_than_a_message_is_split():
    """Its events keep their order, and one that is too long itself is shortened."""
    limits = Limits(message_bytes=16 << 10, messages_per_s=500)
    outbox = connected(limits=limits)
    events = [event("a" * 9000), event("b" * 9000), event("c" * 40_000), event("d")]
    outbox.put(Block(b",".join(events), 4))
    frames = [decode_client_frame(frame) for frame in outbox.frames()]
    contents = [json.loads(bytes(raw))["data"]["content"][0] for frame in frames for raw in frame.events]
    assert contents == ["a", "b", "c", "d"]
    numbers = [frame.seq + i for frame in frames for i in range(len(frame.events))]
    assert numbers == [1, 2, 3, 4]
    assert "truncated" in json.loads(bytes([raw for frame in frames for raw in frame.events][2]))["data"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 5)),
        st.tuples(st.just("send"), st.booleans()),
        st.tuples(st.just("arrive"), st.integers(0, 3)),
        st.tuples(st.just("ack"), st.booleans()),
        st.tuples(st.just("lose"), st.just(0)),
        st.tuples(st.just("record"), st.integers(1, 3)),
        st.tuples(st.just("read"), st.integers(1, 3)),
    ),
    max_size=60,
)


@given(STEPS)
def test_any_schedule_brings_every_event_once_and_in_order(steps):
    """Frames and acknowledgements are lost with their connections; what waits may take the way through a record."""
    outbox = connected(window=200)
    on_the_way, hub, record = [], {}, []
    put = number = 0

    def arrive(count):
        for frame in on_the_way[:count]:
            for seq, n in told([frame]):
                if seq > max(hub, default=0):
                    assert seq == max(hub, default=0) + 1
                    hub[seq] = n
        del on_the_way[:count]

    for what, how in [*steps, ("lose", 0), *[("rest", 0)] * 200]:
        if what == "put":
            outbox.put(block(put, how))
            put += how
        elif what == "send":
            on_the_way += outbox.frames(number=not record)
        elif what == "arrive":
            arrive(how)
        elif what == "ack":
            outbox.ack(max(hub, default=0))
        elif what == "lose":
            del on_the_way[:]
            outbox.connected(LIMITS, Clock())
            outbox.ack(max(hub, default=0))
        elif what == "record" and (waiting := outbox.take_waiting()) is not None:
            waiting.number = outbox.next_number
            outbox.next_number += waiting.count
            record.append(waiting)
        elif what == "read" and record and outbox.has_room:
            outbox.put_recorded(record.pop(0))
        elif what == "rest":
            while record:
                outbox.put_recorded(record.pop(0))
            on_the_way += outbox.frames()
            arrive(len(on_the_way))
            outbox.ack(max(hub, default=0))
        number = outbox.next_number
    assert [*hub.values()] == [*range(put)]
    assert [*hub] == [*range(1, number)]
    assert outbox.idle


# -- the session ---------------------------------------------------------------------------------------------------------


def session(clock=None):
    return Publishing("s", "h", "e", clock=clock or Clock())


def welcome(features=("hub", "record"), scopes=("publish",), acked=0):
    return Welcome(1, [], 20.0, LIMITS, [*scopes], features=[*features], acked=acked)


def receive(publishing, frame):
    return publishing.receive(encode_frame(frame))


def test_hello_tells_who_publishes():
    """Source, host, epoch and the clock."""
    hello = session().hello("t", 17.0)
    assert (hello.role, hello.source, hello.host, hello.epoch, hello.time, hello.token) == (
        "producer", "s", "h", "e", 17.0, "t"
    )  # fmt: skip


def test_a_server_that_is_no_hub_is_refused():
    """As is a token that may do everything but publish."""
    with pytest.raises(NoHubError, match="rollcast hub"):
        receive(session(), welcome(features=()))
    with pytest.raises(NoHubError, match="scope `publish`"):
        receive(session(), welcome(scopes=("read", "control")))


def test_a_hub_that_has_forgotten_is_known():
    """It has no record, and knows less than it had acknowledged."""
    publishing = session()
    assert receive(publishing, welcome()) == [Welcomed(True, False)]
    publishing.outbox.put(block(1, 3))
    publishing.outbox.frames()
    receive(publishing, Ack(3))
    publishing.lost()
    assert receive(publishing, welcome(acked=0)) == [Welcomed(True, False)]
    assert receive(publishing, welcome(features=("hub",), acked=0)) == [Welcomed(False, True)]
    assert receive(publishing, welcome(features=("hub",), acked=3)) == [Welcomed(False, False)]


def test_interest_widens_and_narrows_the_filter():
    """To the tokens of what is watched, until the connection is lost."""
    publishing = session()
    receive(publishing, welcome())
    (wanted,) = receive(publishing, Interest(1, [FilterFrame(chains=["c"])], 60.0))
    assert isinstance(wanted, Wanted)
    assert wanted.filter.wants(T.LLM_GENERATION_CHUNK, "c")
    assert not wanted.filter.wants(T.LLM_GENERATION_CHUNK, "d")
    assert wanted.filter.wants(T.CHAIN_END, "d")
    assert receive(publishing, Interest(1, [FilterFrame(chains=["c"])], 60.0)) == []
    assert receive(publishing, Interest(0, [], 60.0)) == []
    assert publishing.lost() == Wanted(LIFECYCLE)
    assert publishing.lost() is None


def test_interest_expires_unless_it_is_renewed():
    """After the time that the hub named."""
    clock = Clock()
    publishing = session(clock)
    receive(publishing, welcome())
    receive(publishing, Interest(1, [FilterFrame()], 10.0))
    clock.now = 9.0
    assert publishing.tick() is None
    receive(publishing, Interest(1, [FilterFrame()], 10.0))
    clock.now = 18.0
    assert publishing.tick() is None
    assert publishing.wait_s == 1.0
    clock.now = 19.0
    assert publishing.tick() == Wanted(LIFECYCLE)
    assert publishing.tick() is None


def test_no_tokens_are_made_while_the_hub_is_behind():
    """What is watched is wanted again afterwards."""
    publishing = session()
    receive(publishing, welcome())
    (before,) = receive(publishing, Interest(1, [FilterFrame()], 10.0))
    assert publishing.shut(shut=True) == Wanted(LIFECYCLE)
    assert receive(publishing, Interest(2, [FilterFrame(chains=["c"])], 10.0)) == []
    after = publishing.shut(shut=False)
    assert after.filter != before.filter
    assert after.filter.wants(T.LLM_GENERATION_CHUNK, "c")


def test_what_else_a_hub_says():
    """Pings are answered, cancels and answers about other records passed on, and refusals told."""
    publishing = session()
    receive(publishing, welcome())
    assert receive(publishing, Ping()) == [Answer(Pong())]
    assert receive(publishing, Cancel("r", id="1")) == [Cancel("r", id="1")]
    assert receive(publishing, Ack(3, "other", "e2")) == [Handed(Ack(3, "other", "e2"))]
    assert publishing.outbox.acked == 0
    assert receive(publishing, ErrorFrame(400, "no\x1b[31m")) == [NotTaken("no\\x1b[31m")]
    assert publishing.receive('{"type":"of_a_later_version"}') == []
    (told,) = receive(publishing, Interest(5, [FilterFrame(types=["no_such_type"])], 10.0))
    assert isinstance(told, NotTaken)


@given(st.text() | st.binary())
def test_nothing_that_comes_breaks_it(message):
    """What is no frame raises what says so."""
    publishing = session()
    with contextlib.suppress(DecodeError, NoHubError):
        publishing.receive(message)


def test_everything_but_tokens_is_wanted_always():
    """And a chain that comes into view gets a snapshot, which it did not get before."""
    chains = EventFilter(chains=["c"])
    assert not LIFECYCLE.wants_snapshot("c", None, "r")
    assert wanted_of([chains]).wants_snapshot("c", None, "r")
    assert not wanted_of([chains]).wants_snapshot("d", None, "r")
    for kind in T:
        assert wanted_of([]).wants(kind, "c") == (kind not in (T.LLM_GENERATION_CHUNK, T.CHAIN_SNAPSHOT))


@given(st.integers(1), st.text(max_size=20), st.text(max_size=20), st.booleans())
def test_a_publish_frame_is_one(number, source, epoch, last):
    """It is read as what it was made of."""
    frame = decode_client_frame(publish_frame(number, b"{},{}", source=source, epoch=epoch, last=last))
    assert (frame.seq, len(frame.events), frame.last) == (number, 2, last)
    assert (frame.source, frame.epoch) == ((source, epoch) if source else ("", ""))


# -- the numbers of a record ---------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=20))
def test_numbers_by_position(stretches):
    """Each event of a record has the number that it was noted with, and only jumps are kept."""
    numbers, expected, number = Numbers(), [], 1
    for count, jump in stretches:
        number += jump
        numbers.note(len(expected), number)
        expected += range(number, number + count)
        number += count
    assert [numbers.at(position) for position in range(len(expected))] == expected
    for number in range(expected[-1] + 1):
        assert numbers.after(number) == sum(each <= number for each in expected)
    assert len(numbers.pieces) <= 1 + sum(jump > 0 for _, jump in stretches)
